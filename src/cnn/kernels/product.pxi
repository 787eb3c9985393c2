# Matrix products. A linear layer needs three, all of one form, C(m, n) = sum over k of A(m, k) B(k, n):
#
#     forward   Y (batch, out)  = X W + b      A = X         k = in       the bias starts the sums, f ends them
#     dX        (batch, in)     = dZ W^T       A = dZ        k = out      times f'(z) of the layer before
#     dW, db    (in + 1, out)   = [X 1]^T dZ   A = X^T       k = batch    the bias is one more row, fed by ones
#
# B is read in vectors along n: its rows lie VL-padded in memory, or are packed (and, for dX, transposed) into a panel.
# A is read one number at a time and broadcast, so any pair of strides will do and X^T is X with its strides swapped.
#
# A tile of C (up to TILE_MR rows x TILE_NV vectors) is summed in registers over a block of k. Each step of k costs
# nv loads, mr broadcasts and mr * nv multiply-adds: 24 multiply-adds (12 cycles on two ports) against 11 loads in the
# largest AVX-512 tile, so that the multiply-adds are the limit as long as B comes from L2 (16 bytes a cycle) and A from
# L3 (3 bytes a cycle). What else is done to a tile is done while it is in registers (bias, ReLU, ReLU', accumulation,
# the optimiser's update) or in L1 (every other activation).
#
# Each element of C is one chain of multiply-adds in the order of k, whatever the tile, the panel and the block: the
# result of a row does not depend on the rows beside it, nor on how the work is cut.
#
# One body for every tile shape: the micro-kernel `tiles` is inlined with literal mr and nv into the small functions of
# TILE_TABLE. Its loops over the registers must sit inside another loop (over the tiles), or GCC leaves the array on the
# stack.

cdef enum Epilogue:
    EPILOGUE_STORE        # C = max(floor, sums)
    EPILOGUE_ADD          # C = C + sums
    EPILOGUE_MASK         # C = sums where saved > 0, else 0: ReLU'
    EPILOGUE_UPDATE       # the optimiser's step on `param`, with the sums as gradient

cdef enum:
    K_BLOCK = 1024      # a packed panel is K_BLOCK x TILE_NV vectors, at most 192 KiB: L2
    CHUNK = 8           # tiles between two visits to the activation: a chunk of C stays in L1
    A_BLOCK = 1 << 20   # reals of A that are packed at a time
    SPREAD = 16         # steps of k between two visits to the next rows' prefetches
    AHEAD = 24          # rows that packing asks memory for before it reads them
    MANY_PANELS = 16    # that read A one after the other: packing it pays
    LEVELS = 12         # of the tree in which sums over runs of k are added up
    TILE_SIZE = 8 * 3 * 16


cdef inline Py_ssize_t panel_size(Py_ssize_t batch, Py_ssize_t widest) noexcept nogil:
    """Reals of workspace for the products of a batch with weights of at most `widest` columns; 0, 0 without gradients.

    The weight gradient's k, the batch, is never cut into blocks.
    """
    return larger(K_BLOCK, batch) * TILE_NV * VL + (A_BLOCK if widest > (MANY_PANELS - 1) * TILE_NV * VL else 0)


cdef struct Product:
    Py_ssize_t m
    Py_ssize_t n                # a multiple of VL
    Py_ssize_t k
    const real* a               # A(i, l) = a[i * a_row + l * a_col]
    Py_ssize_t a_row
    Py_ssize_t a_col
    const real* b               # B(l, j) = b[l * b_row + j]; with b_transposed b[j * b_row + l], j < b_valid
    Py_ssize_t b_row
    bint b_transposed
    Py_ssize_t b_valid
    bint ones_row               # row m of A is all ones: C has m + 1 rows
    real* c
    Py_ssize_t c_row
    const real* start           # row that starts the sums, NULL: zero
    Epilogue epilogue
    real floor                  # EPILOGUE_STORE: 0 for ReLU, else -inf
    const real* saved           # EPILOGUE_MASK and backward activations: what the forward pass kept
    Py_ssize_t saved_row
    real* param                 # EPILOGUE_UPDATE: laid out like c
    const Update* update
    Activation act              # applied (or its derivative) to each chunk of C while in L1; IDENTITY: nothing
    real act_param
    bint act_backward
    bint act_saved_is_input
    real* act_out               # forward: where f(C) goes, laid out like c
    Py_ssize_t act_width        # columns that f is applied to
    real* panel                 # workspace of panel_size reals
    const int64_t* cuts         # NULL: each element of C is one sum over k; else, in the weight gradient, the sums over
    int runs                    # k from cuts[i] to cuts[i + 1] - 1, i < runs, added up in a tree (see shards.pxi)
    real* partial               # ... in this room: LEVELS * TILE_SIZE


cdef struct Tile:
    Py_ssize_t count            # tiles below each other
    Py_ssize_t k
    const real* a               # at row i, this block's first k
    Py_ssize_t a_row
    Py_ssize_t a_col
    Py_ssize_t a_next           # rows * a_next from a tile to the next: a_row, or k where A is packed
    const real* b               # at column j, this block's first k
    Py_ssize_t b_row
    Py_ssize_t i
    Py_ssize_t j
    bint packed                 # A
    bint first                  # block of k
    bint last
    const Product* p


cdef real[3 * 16] ZEROS      # a row as wide as a tile can be: never written


cdef extern from *:
    """
    /* After `done` runs: add up what is complete of the tree of their sums, each of n numbers; how many are left.
     * Not inlined: the loop over k needs all registers. */
    static __attribute__((noinline)) int join_runs(real *partial, int depth, int done, Py_ssize_t n)
    {
        for (; done % 2 == 0; done /= 2, depth--) {
            real *low = partial + (depth - 2) * 384, *high = low + 384;
            for (Py_ssize_t i = 0; i < n; i += VL)
                vf_store(low + i, vf_load(low + i) + vf_load(high + i));
        }
        return depth;
    }
    """
    int join_runs(real* partial, int depth, int done, Py_ssize_t n) nogil


cdef inline void tiles(const int mr, const int nv, const Tile* t) noexcept nogil:
    cdef const Product* p = t.p
    cdef vf acc[24]
    cdef vf b_k[3]
    cdef vf a_k
    cdef int r, q
    cdef Py_ssize_t ahead[3]
    cdef Py_ssize_t tile, l, end, row, next_cut
    cdef int run, depth
    cdef real* part
    cdef int stream, streams = 0
    cdef Py_ssize_t a_row = t.a_row, a_col = t.a_col, b_row = t.b_row, c_row = p.c_row
    cdef const real* a
    cdef const real* b
    cdef real* c
    cdef real* w
    cdef real[8 * 3 * 16] sums
    cdef const real* s
    cdef const real* start = <const real*>ZEROS if p.start == NULL else p.start + t.j
    cdef Py_ssize_t s_row = 0 if t.first else c_row
    if p.epilogue == EPILOGUE_UPDATE:
        ahead[0] = p.param - p.c
        ahead[1] = ahead[0] + p.update.state
        ahead[2] = ahead[1] + p.update.block
        streams = 1 + UPDATE_PREFETCHED[p.update.kind]
    elif not t.first:
        ahead[0] = mr * c_row
        streams = 1
    elif p.epilogue == EPILOGUE_MASK:
        ahead[0] = p.saved - p.c
        streams = 1
    for tile in range(t.count):
        c = p.c + (t.i + tile * mr) * c_row + t.j
        a = t.a + tile * mr * t.a_next
        b = t.b
        s = start if t.first else c
        for r in range(mr):
            for q in range(nv):
                acc[r * nv + q] = vf_load(s + r * s_row + q * VL)
        row = 0 if streams else mr
        l = run = depth = 0
        next_cut = t.k if p.cuts == NULL else p.cuts[1]
        while l < t.k:
            end = smaller(t.k, next_cut)
            if row < mr:
                for stream in range(streams):
                    for q in range(nv):
                        prefetch(c + ahead[stream] + row * c_row + q * VL)
                end = smaller(end, l + SPREAD)
                row += 1
            while l < end:
                for q in range(nv):
                    b_k[q] = vf_load(b + q * VL)
                for r in range(mr):
                    a_k = vf_set(a[r * a_row])
                    for q in range(nv):
                        acc[r * nv + q] = vf_fma(a_k, b_k[q], acc[r * nv + q])
                a += a_col
                b += b_row
                l += 1
            while l == next_cut and run + 1 < p.runs:
                part = p.partial + depth * TILE_SIZE
                for r in range(mr):
                    for q in range(nv):
                        vf_store(part + (r * nv + q) * VL, acc[r * nv + q])
                        acc[r * nv + q] = vf_set(0)
                run += 1
                depth = join_runs(p.partial, depth + 1, run, mr * nv * VL)
                next_cut = p.cuts[run + 1]
        while depth > 0:
            depth -= 1
            part = p.partial + depth * TILE_SIZE
            for r in range(mr):
                for q in range(nv):
                    acc[r * nv + q] = vf_load(part + (r * nv + q) * VL) + acc[r * nv + q]
        if not t.last:
            for r in range(mr):
                for q in range(nv):
                    vf_store(c + r * c_row + q * VL, acc[r * nv + q])
        elif p.epilogue == EPILOGUE_STORE:
            for r in range(mr):
                for q in range(nv):
                    vf_store(c + r * c_row + q * VL, vf_max(vf_set(p.floor), acc[r * nv + q]))
        elif p.epilogue == EPILOGUE_ADD:
            for r in range(mr):
                for q in range(nv):
                    vf_store(c + r * c_row + q * VL, vf_load(c + r * c_row + q * VL) + acc[r * nv + q])
        elif p.epilogue == EPILOGUE_MASK:
            s = p.saved + (t.i + tile * mr) * p.saved_row + t.j
            for r in range(mr):
                for q in range(nv):
                    vf_store(c + r * c_row + q * VL,
                             vf_select_gt(vf_load(s + r * p.saved_row + q * VL), vf_set(0), acc[r * nv + q], vf_set(0)))
        elif p.update.kind == UPDATE_PLAIN:
            w = p.param + (c - p.c)
            for r in range(mr):
                for q in range(nv):
                    vf_store(w + q * VL, updated(UPDATE_PLAIN, vf_load(w + q * VL), acc[r * nv + q], NULL, p.update))
                w += c_row
        else:
            for r in range(mr):
                for q in range(nv):
                    vf_store(sums + (r * nv + q) * VL, acc[r * nv + q])
            update_rows(mr, nv * VL, p.param + (c - p.c), c_row, sums, nv * VL, p.update)


ctypedef void (*tile_function)(const Tile* t) noexcept nogil

cdef void tile_1x1(const Tile* t) noexcept nogil: tiles(1, 1, t)
cdef void tile_1x2(const Tile* t) noexcept nogil: tiles(1, 2, t)
cdef void tile_1x3(const Tile* t) noexcept nogil: tiles(1, 3, t)
cdef void tile_2x1(const Tile* t) noexcept nogil: tiles(2, 1, t)
cdef void tile_2x2(const Tile* t) noexcept nogil: tiles(2, 2, t)
cdef void tile_2x3(const Tile* t) noexcept nogil: tiles(2, 3, t)
cdef void tile_3x1(const Tile* t) noexcept nogil: tiles(3, 1, t)
cdef void tile_3x2(const Tile* t) noexcept nogil: tiles(3, 2, t)
cdef void tile_3x3(const Tile* t) noexcept nogil: tiles(3, 3, t)
cdef void tile_4x1(const Tile* t) noexcept nogil: tiles(4, 1, t)
cdef void tile_4x2(const Tile* t) noexcept nogil: tiles(4, 2, t)
cdef void tile_4x3(const Tile* t) noexcept nogil: tiles(4, 3, t)
cdef void tile_5x1(const Tile* t) noexcept nogil: tiles(5, 1, t)
cdef void tile_5x2(const Tile* t) noexcept nogil: tiles(5, 2, t)
cdef void tile_5x3(const Tile* t) noexcept nogil: tiles(5, 3, t)
cdef void tile_6x1(const Tile* t) noexcept nogil: tiles(6, 1, t)
cdef void tile_6x2(const Tile* t) noexcept nogil: tiles(6, 2, t)
cdef void tile_6x3(const Tile* t) noexcept nogil: tiles(6, 3, t)
cdef void tile_7x1(const Tile* t) noexcept nogil: tiles(7, 1, t)
cdef void tile_7x2(const Tile* t) noexcept nogil: tiles(7, 2, t)
cdef void tile_7x3(const Tile* t) noexcept nogil: tiles(7, 3, t)
cdef void tile_8x1(const Tile* t) noexcept nogil: tiles(8, 1, t)
cdef void tile_8x2(const Tile* t) noexcept nogil: tiles(8, 2, t)
cdef void tile_8x3(const Tile* t) noexcept nogil: tiles(8, 3, t)

cdef tile_function TILE_TABLE[9][4]      # by rows and vectors


cdef void fill_tile_table() noexcept nogil:
    TILE_TABLE[1][1] = tile_1x1
    TILE_TABLE[1][2] = tile_1x2
    TILE_TABLE[2][1] = tile_2x1
    TILE_TABLE[2][2] = tile_2x2
    TILE_TABLE[3][1] = tile_3x1
    TILE_TABLE[3][2] = tile_3x2
    TILE_TABLE[4][1] = tile_4x1
    TILE_TABLE[4][2] = tile_4x2
    if TILE_MR > 4:
        TILE_TABLE[5][1] = tile_5x1
        TILE_TABLE[5][2] = tile_5x2
        TILE_TABLE[6][1] = tile_6x1
        TILE_TABLE[6][2] = tile_6x2
    if TILE_MR > 6:
        TILE_TABLE[7][1] = tile_7x1
        TILE_TABLE[7][2] = tile_7x2
        TILE_TABLE[8][1] = tile_8x1
        TILE_TABLE[8][2] = tile_8x2
    if TILE_NV > 2:
        TILE_TABLE[1][3] = tile_1x3
        TILE_TABLE[2][3] = tile_2x3
        TILE_TABLE[3][3] = tile_3x3
        TILE_TABLE[4][3] = tile_4x3
        TILE_TABLE[5][3] = tile_5x3
        TILE_TABLE[6][3] = tile_6x3
        TILE_TABLE[7][3] = tile_7x3
        TILE_TABLE[8][3] = tile_8x3


fill_tile_table()


cdef void pack(const real* b, Py_ssize_t b_row, Py_ssize_t k, Py_ssize_t n, real* panel) noexcept nogil:
    """Copy B (k, n), n a multiple of VL, into the panel, row after row: 2 k n numbers moved."""
    cdef Py_ssize_t l, j
    for l in range(k):
        for j from 0 <= j < n by VL:
            prefetch_ahead(b + (l + AHEAD) * b_row + j)
            vf_store(panel + l * n + j, vf_load(b + l * b_row + j))


cdef void pack_transposed(const real* b, Py_ssize_t b_row, Py_ssize_t k, Py_ssize_t n, Py_ssize_t valid,
                          real* panel) noexcept nogil:
    """panel(l, j) = b[j * b_row + l] for l < k and j < n; zero from column `valid` on.

    Blocks of VL x VL are transposed in registers, log2(VL) rounds of VL shuffles each. Reads whole vectors along l, so
    the rows of b must be padded to VL.
    """
    cdef vf r[16]
    cdef vf s[16]
    cdef Py_ssize_t j, l, width
    cdef int i, turn
    for j from 0 <= j < n by VL:
        for l from 0 <= l < k by VL:
            if j + VL <= valid:
                for i in range(VL):
                    r[i] = vf_load(b + (j + i) * b_row + l)
            else:
                for i in range(VL):
                    r[i] = vf_load(b + (j + i) * b_row + l) if j + i < valid else vf_set(0)
            turn = 1
            while turn < VL:
                for i in range(VL // 2):
                    s[2 * i] = vf_zip_lo(r[i], r[i + VL // 2])
                    s[2 * i + 1] = vf_zip_hi(r[i], r[i + VL // 2])
                for i in range(VL):
                    r[i] = s[i]
                turn *= 2
            width = smaller(VL, k - l)
            if width == VL:
                for i in range(VL):
                    vf_store(panel + (l + i) * n + j, r[i])
            else:
                for i in range(width):
                    vf_store(panel + (l + i) * n + j, r[i])


cdef void pack_rows(const real* a, Py_ssize_t a_col, Py_ssize_t k, Py_ssize_t count, Py_ssize_t height,
                    real* packed) noexcept nogil:
    """Copy `count` tiles of A = X^T, each (height, k), one behind the other, each in the order that it is read in."""
    cdef Py_ssize_t tile, l, r
    for tile in range(count):
        for l in range(k):
            prefetch_ahead(a + (l + AHEAD) * a_col)
            for r in range(height):
                packed[r] = a[l * a_col + r]
            packed += height
        a += height


cdef inline void run_tiles(Tile* t, Py_ssize_t rows, Py_ssize_t height, Py_ssize_t nv) noexcept nogil:
    """Run `rows` rows of tiles, all of this height, and step t down past them."""
    t.count = rows
    if t.packed:
        t.a_col = height
    if rows:
        TILE_TABLE[height][nv](t)
    t.i += rows * height
    t.a += rows * height * t.a_next


cdef void activate_chunk(const Product* p, Py_ssize_t i, Py_ssize_t rows, Py_ssize_t j, Py_ssize_t n) noexcept nogil:
    """Apply the activation, or its derivative, to rows i.. and columns j.. of C: they are still in L1."""
    cdef real* c = p.c + i * p.c_row + j
    n = smaller(n, p.act_width - j)
    if p.act_backward:
        activate_backward_rows(p.act, p.act_param, p.act_saved_is_input, rows, n, c, p.c_row,
                               p.saved + i * p.saved_row + j, p.saved_row, c, p.c_row)
    else:
        activate_rows(p.act, p.act_param, rows, n, c, p.c_row, p.act_out + i * p.c_row + j, p.c_row)


cdef real ONE = 1


cdef void sum_rows(Py_ssize_t k, Py_ssize_t n, const real* b, Py_ssize_t b_row, real* sums) noexcept nogil:
    """sums(j) = sum over l < k of B(l, j), j < n, n a multiple of VL.

    In eight chains, or each addition would wait for the one before: row l goes to chain l % 8, and the chains are added
    pairwise at the end. The order depends on k only.
    """
    cdef vf s[8]
    cdef const real* at
    cdef Py_ssize_t j, l
    cdef int i
    for j from 0 <= j < n by VL:
        at = b + j
        for i in range(8):
            s[i] = vf_set(0)
        for l from 0 <= l <= k - 8 by 8:
            for i in range(8):
                s[i] = s[i] + vf_load(at + i * b_row)
            at += 8 * b_row
        for i in range(8):
            if i < k % 8:
                s[i] = s[i] + vf_load(at + i * b_row)
        for i in range(4):
            s[i] = s[i] + s[i + 4]
        vf_store(sums + j, (s[0] + s[2]) + (s[1] + s[3]))


cdef void sum_rows_by_runs(const Product* p, Py_ssize_t n, const real* b, Py_ssize_t b_row, real* sums) noexcept nogil:
    """`sum_rows` of each run, added up in the tree."""
    cdef int run, done, depth = 0
    for run in range(p.runs):
        sum_rows(p.cuts[run + 1] - p.cuts[run], n, b + p.cuts[run] * b_row, b_row, sums)
        done = run + 1
        while done & 1 == 0 or (run + 1 == p.runs and depth > 0):
            done >>= 1
            depth -= 1
            add_rows(1, n, p.partial + depth * TILE_SIZE, 0, True, sums, 0)
        memcpy(p.partial + depth * TILE_SIZE, sums, n * sizeof(real))
        depth += 1


cdef void product(const Product* p) noexcept nogil:
    """C = A B with everything that Product asks for; 2 m n k FLOPs.

    X^T is packed where many panels read it, as many rows at a time as A_BLOCK holds: unpacked, each tile would touch
    k cache lines far apart, once for each panel.
    """
    cdef Py_ssize_t vectors = p.n // VL
    cdef Py_ssize_t panels = (vectors + TILE_NV - 1) // TILE_NV
    cdef Py_ssize_t k_block, rows, blocks, block, i0, m, k0 = 0
    cdef bint pack_a
    # an update or an addition needs whole sums: partial ones would have no place to go
    k_block = larger(1, p.k)
    if p.epilogue != EPILOGUE_UPDATE and p.epilogue != EPILOGUE_ADD and p.cuts == NULL:
        k_block = smaller(k_block, K_BLOCK)
    rows = A_BLOCK // k_block // TILE_MR * TILE_MR
    pack_a = p.a_col != 1 and panels >= MANY_PANELS and rows >= 32 * TILE_MR and p.m > 0
    blocks = (p.m + rows - 1) // rows if pack_a else 1
    while True:
        i0 = 0
        for block in range(blocks):
            m = (p.m - i0) // (blocks - block)
            product_rows(p, i0, m, k0, smaller(k_block, p.k - k0), block == blocks - 1, pack_a)
            i0 += m
        k0 += k_block
        if k0 >= p.k:
            break


cdef inline bint scattered(Py_ssize_t k, Py_ssize_t row_bytes) noexcept nogil:
    """Whether k rows of a panel lie too far apart to be read again and again where they are: each on a page of its own,
    or in so few sets of L2 (64 KiB to a way, 16 ways) that they push each other out."""
    return row_bytes > 4096 or k * (row_bytes & -row_bytes) > 16 * 65536


cdef void product_rows(const Product* p, Py_ssize_t i0, Py_ssize_t m, Py_ssize_t k0, Py_ssize_t k, bint last_rows,
                       bint pack_a) noexcept nogil:
    """What a block of A, m rows from i0 and k columns from k0 on, adds to C.

    The rows are cut into tiles of near-equal height, the columns into panels of near-equal width: no thin rest.
    """
    cdef Py_ssize_t row_tiles = (m + TILE_MR - 1) // TILE_MR
    cdef Py_ssize_t height = m // row_tiles if row_tiles else 0
    cdef Py_ssize_t taller = m % row_tiles if row_tiles else 0        # so many tiles have one row more
    cdef Py_ssize_t vectors = p.n // VL
    cdef Py_ssize_t panels = (vectors + TILE_NV - 1) // TILE_NV
    cdef Py_ssize_t panel, nv, j = 0, done, some, tall, i, step
    cdef bint packed = p.b_transposed or (m > 4 * TILE_MR and scattered(k, p.b_row * <Py_ssize_t>sizeof(real)))
    cdef const real* a = p.a + i0 * p.a_row + k0 * p.a_col
    cdef real* a_packed = p.panel + k * TILE_NV * VL
    cdef real[3 * 16] sums
    cdef Product whole
    cdef Tile t
    t.p = p
    t.k = k
    t.first = k0 == 0
    t.last = k0 + k == p.k
    if pack_a:
        pack_rows(a, p.a_col, k, taller, height + 1, a_packed)
        pack_rows(a + taller * (height + 1), p.a_col, k, row_tiles - taller, height,
                  a_packed + taller * (height + 1) * k)
    for panel in range(panels):
        nv = (vectors - j // VL) // (panels - panel)
        t.j = j
        if not packed:
            t.b = p.b + k0 * p.b_row + j
            t.b_row = p.b_row
        else:
            if p.b_transposed:
                pack_transposed(p.b + j * p.b_row + k0, p.b_row, k, nv * VL, p.b_valid - j, p.panel)
            else:
                pack(p.b + k0 * p.b_row + j, p.b_row, k, nv * VL, p.panel)
            t.b = p.panel
            t.b_row = nv * VL
        t.i = i0
        t.a, t.a_row, t.a_col, t.a_next = a, p.a_row, p.a_col, p.a_row
        t.packed = pack_a
        if pack_a:
            t.a, t.a_row, t.a_next = a_packed, 1, k
        step = row_tiles if p.act == IDENTITY else CHUNK
        for done from 0 <= done < row_tiles by step:
            some = smaller(step, row_tiles - done)
            tall = larger(0, smaller(some, taller - done))
            i = t.i
            run_tiles(&t, tall, height + 1, nv)
            run_tiles(&t, some - tall, height, nv)
            if t.last and p.act != IDENTITY:
                activate_chunk(p, i, t.i - i, j, nv * VL)
        if p.ones_row and last_rows:
            if p.cuts == NULL:
                sum_rows(k, nv * VL, t.b, t.b_row, sums)
            else:
                sum_rows_by_runs(p, nv * VL, t.b, t.b_row, sums)
            t.a, t.a_row, t.a_col, t.packed = &ONE, 0, 0, False
            t.b, t.b_row, t.k = sums, 0, 1
            whole = p[0]
            whole.cuts, whole.runs = NULL, 0
            t.p = &whole
            run_tiles(&t, 1, 1, nv)
            t.p, t.k = p, k
        j += nv * VL
