# Products of vectors over lanes, in which nothing goes from lane to lane. They have two users, which keep their numbers
# [...][lane]: lanes.pxi, where a lane is one of VL models, and samples.pxi, where it is one of VL rows of a batch.
#
#                                 models in the lanes             rows in the lanes
#     forward  y = f(x W + b)     rows x out, sums over in        out x rows, sums over in
#     backward dx = dz W^T        rows x in, sums over out        in x rows, sums over out
#     gradient dW = x^T dz        in x out, sums over rows        in x out, sums over vectors of rows and their lanes
#
# All are one product C = start + A B with other strides, where B and C are vectors and A is vectors or numbers that are
# broadcast (x that all models share; the weights, where rows are in the lanes): register blocks of 4 rows x 4 columns
# of vectors (4 x 2 with 16 registers), 8 loads for 16 multiply-adds. Each sum is one chain in the order of its terms.

cdef struct LaneProduct:
    Py_ssize_t rows
    Py_ssize_t columns
    Py_ssize_t depth
    const real* a               # vectors, or numbers that are broadcast
    Py_ssize_t a_row            # reals from row to row
    Py_ssize_t a_k              # ... and from term to term of the sums
    const real* b
    Py_ssize_t b_k
    Py_ssize_t b_column
    const real* start           # NULL, or what the sums begin with: vectors
    Py_ssize_t start_row        # reals from row to row; 0: all rows begin with the same
    Py_ssize_t start_column
    real floor                  # sums below it become it: 0 for ReLU, else -infinity
    real* c
    Py_ssize_t c_row            # from column to column it is a vector


cdef inline void lane_tiles "lane_tiles"(const int mr, const int nc, const bint broadcast, const LaneProduct* p,
                                         Py_ssize_t first, Py_ssize_t end, Py_ssize_t column) noexcept nogil:
    """nc columns of the rows from first to end, mr at a time."""
    cdef vf acc[16]
    cdef vf b_k[4]
    cdef vf a_k, floor = vf_set(p.floor)
    cdef int i, j
    cdef Py_ssize_t r, a_row = p.a_row, a_step = p.a_k, b_step = p.b_k, b_column = p.b_column, c_row = p.c_row
    cdef const real* a
    cdef const real* stop
    cdef const real* b
    cdef const real* s
    cdef Py_ssize_t s_row = p.start_row, s_column = p.start_column
    cdef real* c
    for r from first <= r < end by mr:
        a = p.a + r * a_row
        stop = a + p.depth * a_step
        b = p.b + column * b_column
        s = p.start + r * s_row + column * s_column
        for i in range(mr):
            for j in range(nc):
                acc[i * nc + j] = vf_load(s + j * s_column)
            s += s_row
        while a != stop:
            for j in range(nc):
                b_k[j] = vf_load(b + j * b_column)
            for i in range(mr):
                a_k = vf_set(a[i * a_row]) if broadcast else vf_load(a + i * a_row)
                for j in range(nc):
                    acc[i * nc + j] = vf_fma(a_k, b_k[j], acc[i * nc + j])
            a += a_step
            b += b_step
        c = p.c + r * c_row + column * VL
        for i in range(mr):
            for j in range(nc):
                vf_store(c + j * VL, vf_max(floor, acc[i * nc + j]))
            c += c_row


ctypedef void (*lane_tile)(const LaneProduct* p, Py_ssize_t first, Py_ssize_t end, Py_ssize_t column) noexcept nogil

cdef void lanes_1x1(const LaneProduct* p, Py_ssize_t first, Py_ssize_t end, Py_ssize_t column) noexcept nogil:
    lane_tiles(1, 1, False, p, first, end, column)
cdef void lanes_1x2(const LaneProduct* p, Py_ssize_t first, Py_ssize_t end, Py_ssize_t column) noexcept nogil:
    lane_tiles(1, 2, False, p, first, end, column)
cdef void lanes_1x4(const LaneProduct* p, Py_ssize_t first, Py_ssize_t end, Py_ssize_t column) noexcept nogil:
    lane_tiles(1, 4, False, p, first, end, column)
cdef void lanes_4x1(const LaneProduct* p, Py_ssize_t first, Py_ssize_t end, Py_ssize_t column) noexcept nogil:
    lane_tiles(4, 1, False, p, first, end, column)
cdef void lanes_4x2(const LaneProduct* p, Py_ssize_t first, Py_ssize_t end, Py_ssize_t column) noexcept nogil:
    lane_tiles(4, 2, False, p, first, end, column)
cdef void lanes_4x4(const LaneProduct* p, Py_ssize_t first, Py_ssize_t end, Py_ssize_t column) noexcept nogil:
    lane_tiles(4, 4 if TILE_MR == 8 else 2, False, p, first, end, column)        # else it is not called
cdef void numbers_1x1(const LaneProduct* p, Py_ssize_t first, Py_ssize_t end, Py_ssize_t column) noexcept nogil:
    lane_tiles(1, 1, True, p, first, end, column)
cdef void numbers_1x2(const LaneProduct* p, Py_ssize_t first, Py_ssize_t end, Py_ssize_t column) noexcept nogil:
    lane_tiles(1, 2, True, p, first, end, column)
cdef void numbers_1x4(const LaneProduct* p, Py_ssize_t first, Py_ssize_t end, Py_ssize_t column) noexcept nogil:
    lane_tiles(1, 4, True, p, first, end, column)
cdef void numbers_4x1(const LaneProduct* p, Py_ssize_t first, Py_ssize_t end, Py_ssize_t column) noexcept nogil:
    lane_tiles(4, 1, True, p, first, end, column)
cdef void numbers_4x2(const LaneProduct* p, Py_ssize_t first, Py_ssize_t end, Py_ssize_t column) noexcept nogil:
    lane_tiles(4, 2, True, p, first, end, column)
cdef void numbers_4x4(const LaneProduct* p, Py_ssize_t first, Py_ssize_t end, Py_ssize_t column) noexcept nogil:
    lane_tiles(4, 4 if TILE_MR == 8 else 2, True, p, first, end, column)        # else it is not called

cdef lane_tile LANE_TABLE[2][2][5]      # by whether A is numbers, 4 rows or one, and columns


cdef void fill_lane_table() noexcept nogil:
    LANE_TABLE[0][0][1] = lanes_1x1
    LANE_TABLE[0][0][2] = lanes_1x2
    LANE_TABLE[0][0][4] = lanes_1x4
    LANE_TABLE[0][1][1] = lanes_4x1
    LANE_TABLE[0][1][2] = lanes_4x2
    LANE_TABLE[0][1][4] = lanes_4x4
    LANE_TABLE[1][0][1] = numbers_1x1
    LANE_TABLE[1][0][2] = numbers_1x2
    LANE_TABLE[1][0][4] = numbers_1x4
    LANE_TABLE[1][1][1] = numbers_4x1
    LANE_TABLE[1][1][2] = numbers_4x2
    LANE_TABLE[1][1][4] = numbers_4x4


fill_lane_table()


cdef Py_ssize_t lane_columns(bint broadcast, LaneProduct* p, Py_ssize_t column) noexcept nogil:
    """A block of columns of a product, from `column` on: how many."""
    cdef Py_ssize_t nc = p.columns - column, fours = p.rows // 4 * 4
    if p.start == NULL:
        p.start, p.start_row, p.start_column = ZEROS, 0, 0
    nc = 4 if nc >= 4 and TILE_MR == 8 else 2 if nc >= 2 else 1         # TILE_MR of 8: there are 32 registers
    LANE_TABLE[broadcast][1][nc](p, 0, fours, column)
    LANE_TABLE[broadcast][0][nc](p, fours, p.rows, column)
    return nc


cdef void lane_product(bint broadcast, LaneProduct* p) noexcept nogil:
    cdef Py_ssize_t column = 0
    while column < p.columns:
        column += lane_columns(broadcast, p, column)


# The same with the lanes of each sum added up -------------------------------------------------------------------------

cdef inline vf folded(const vf* r) noexcept nogil:
    """The sums of VL vectors, in the order of vf_sum."""
    cdef vf fours[4]
    cdef int i
    if VL == 2:
        fours[0] = vf_fold(r[0], r[1], r[0], r[0])
    for i in range(VL // 4):
        fours[i] = vf_fold(r[4 * i], r[4 * i + 1], r[4 * i + 2], r[4 * i + 3])
    return vf_sum_folded(fours)


cdef inline void sum_tiles "sum_tiles"(const int mr, const int nc, const LaneProduct* p, Py_ssize_t first,
                                       Py_ssize_t end, Py_ssize_t column, real* c, bint add) noexcept nogil:
    """`lane_tiles` from zero, A in vectors; the sums of a tile go to c or are added there, row after row, in whole
    vectors."""
    cdef vf acc[16]
    cdef vf b_k[4]
    cdef vf a_k
    cdef int i, j
    cdef Py_ssize_t r, a_row = p.a_row, a_step = p.a_k, b_step = p.b_k, b_column = p.b_column
    cdef const real* a
    cdef const real* stop
    cdef const real* b
    for r from first <= r < end by mr:
        a = p.a + r * a_row
        stop = a + p.depth * a_step
        b = p.b + column * b_column
        for i in range(VL if mr * nc < VL else mr * nc):
            acc[i] = vf_set(0)
        while a != stop:
            for j in range(nc):
                b_k[j] = vf_load(b + j * b_column)
            for i in range(mr):
                a_k = vf_load(a + i * a_row)
                for j in range(nc):
                    acc[i * nc + j] = vf_fma(a_k, b_k[j], acc[i * nc + j])
            a += a_step
            b += b_step
        for i from 0 <= i < mr * nc by VL:
            a_k = folded(acc + i)
            vf_store(c, vf_load(c) + a_k if add else a_k)
            c += VL


ctypedef void (*sum_tile)(const LaneProduct* p, Py_ssize_t first, Py_ssize_t end, Py_ssize_t column, real* c,
                          bint add) noexcept nogil

cdef void sums_1x1(const LaneProduct* p, Py_ssize_t first, Py_ssize_t end, Py_ssize_t column, real* c,
                   bint add) noexcept nogil:
    sum_tiles(1, 1, p, first, end, column, c, add)
cdef void sums_1x2(const LaneProduct* p, Py_ssize_t first, Py_ssize_t end, Py_ssize_t column, real* c,
                   bint add) noexcept nogil:
    sum_tiles(1, 2, p, first, end, column, c, add)
cdef void sums_1x4(const LaneProduct* p, Py_ssize_t first, Py_ssize_t end, Py_ssize_t column, real* c,
                   bint add) noexcept nogil:
    sum_tiles(1, 4, p, first, end, column, c, add)
cdef void sums_4x1(const LaneProduct* p, Py_ssize_t first, Py_ssize_t end, Py_ssize_t column, real* c,
                   bint add) noexcept nogil:
    sum_tiles(4, 1, p, first, end, column, c, add)
cdef void sums_4x2(const LaneProduct* p, Py_ssize_t first, Py_ssize_t end, Py_ssize_t column, real* c,
                   bint add) noexcept nogil:
    sum_tiles(4, 2, p, first, end, column, c, add)
cdef void sums_4x4(const LaneProduct* p, Py_ssize_t first, Py_ssize_t end, Py_ssize_t column, real* c,
                   bint add) noexcept nogil:
    sum_tiles(4, 4 if TILE_MR == 8 else 2, p, first, end, column, c, add)       # else it is not called

cdef sum_tile SUM_TABLE[2][5]           # by 4 rows or one, and columns


cdef void fill_sum_table() noexcept nogil:
    SUM_TABLE[0][1] = sums_1x1
    SUM_TABLE[0][2] = sums_1x2
    SUM_TABLE[0][4] = sums_1x4
    SUM_TABLE[1][1] = sums_4x1
    SUM_TABLE[1][2] = sums_4x2
    SUM_TABLE[1][4] = sums_4x4


fill_sum_table()


cdef Py_ssize_t lane_sums(const LaneProduct* p, real* c, bint add, real* matrix, Py_ssize_t row) noexcept nogil:
    """The sums of a product over its terms and the lanes, tile by tile to c, or added there: how many reals. With
    matrix, compute nothing and put what is in c there, rows `row` apart; with c NULL, only count."""
    cdef Py_ssize_t column = 0, nc, first, end, mr, at = 0, size, r, i, j
    while column < p.columns:
        nc = p.columns - column
        nc = 4 if nc >= 4 and TILE_MR == 8 else 2 if nc >= 2 else 1
        for mr from 4 >= mr > 0 by 3:
            first, end = 0 if mr == 4 else p.rows // 4 * 4, p.rows // 4 * 4 if mr == 4 else p.rows
            size = round_up(mr * nc, VL)
            if matrix != NULL:
                for r in range(first, end):
                    i = at + (r - first) // mr * size + (r - first) % mr * nc
                    for j in range(nc):
                        matrix[r * row + column + j] = c[i + j]
            elif c != NULL:
                SUM_TABLE[mr == 4][nc](p, first, end, column, c + at, add)
            at += (end - first) // mr * size
        column += nc
    return at
