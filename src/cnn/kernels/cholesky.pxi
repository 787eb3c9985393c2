# A symmetric matrix by panels of its lower triangle, its Cholesky factor, and what is solved with it.
#
# A panel is `side` = TILE_NV vectors of columns: panel q holds the rows from q side on, each `side` numbers behind the
# row before, so that it is read and written from end to end, and a product's tile is as wide as a panel. The matrix is
# padded to whole panels.
#
# The factor L is made panel by panel from those on its left (left-looking), with S = sum over p < q of L_p L_p^T and
# the block on the diagonal U^T U = A - S in double:
#
#     L_q = (A - S) U^-1        n**3 / 3 FLOPs, all but the blocks on the diagonal in `product`
#
# U^-1 of each block is kept, as -U^-1, in place of L's blocks on the diagonal: solving is products too. Rows are shared
# among threads, and each number is one chain of multiply-adds in the order of p: the result does not depend on them.

cdef struct Panels:
    Py_ssize_t n            # of the matrix
    Py_ssize_t side         # columns of a panel
    Py_ssize_t padded
    Py_ssize_t count        # of panels


cdef Panels panels_of(Py_ssize_t n) noexcept nogil:
    cdef Panels p
    p.n, p.side = n, TILE_NV * VL
    p.count = (n + p.side - 1) // p.side
    p.padded = p.count * p.side
    return p


cdef inline Py_ssize_t panel_at(const Panels* p, Py_ssize_t q, Py_ssize_t block) noexcept nogil:
    """Where the rows of a block (q or a later one) begin in panel q."""
    return p.side * p.side * (q * p.count - q * (q - 1) // 2 + block - q)


cdef struct Factor:
    Panels panels
    const real* a           # the matrix
    const real* diagonal    # is added to the matrix's own
    real* l
    real* inverse           # -U^-1 of each block on the diagonal, (side, side)
    real* square            # of each thread: (padded, side) for a panel of the inverse of L
    double* traces          # of each panel
    real* work              # panels of `product`, one a thread
    Py_ssize_t work_size
    Py_ssize_t q            # the panel that is made
    Py_ssize_t rows         # that a thread takes at a time
    int64_t claimed
    bint last_step          # times U^-1, else the sums


cdef void block_product(const Factor* f, Py_ssize_t m, const real* a, bint a_transposed, const real* b,
                        bint b_transposed, bint add, real* c, int thread) noexcept nogil:
    """C = A B, or C + A B, all of them `side` numbers wide and B (side, side); C may be A."""
    cdef Product p
    memset(&p, 0, sizeof(p))
    p.m, p.n, p.k = m, f.panels.side, f.panels.side
    p.a, p.a_row, p.a_col = a, f.panels.side, 1
    if a_transposed:
        p.a_row, p.a_col = 1, f.panels.side
    p.b, p.b_row, p.b_transposed, p.b_valid = b, f.panels.side, b_transposed, f.panels.side
    p.c, p.c_row = c, f.panels.side
    p.epilogue = EPILOGUE_ADD if add else EPILOGUE_STORE
    p.floor = <real>-INFINITY
    p.act = IDENTITY
    p.panel = f.work + thread * f.work_size
    product(&p)


cdef void factor_task(void* argument, int thread) noexcept nogil:
    """Some rows of panel q: S - A, or then (S - A) (-U^-1)."""
    cdef Factor* f = <Factor*>argument
    cdef const Panels* n = &f.panels
    cdef Py_ssize_t q = f.q, p, first, rows, i, at, all_rows = n.padded - (q + f.last_step) * n.side
    cdef real* l = f.l + panel_at(n, q, q + f.last_step)
    while True:
        first = atomic_add(&f.claimed, 1) * f.rows
        if first >= all_rows:
            break
        rows = smaller(f.rows, all_rows - first)
        if f.last_step:
            block_product(f, rows, l + first * n.side, False, f.inverse + q * n.side * n.side, False, False,
                          l + first * n.side, thread)
            continue
        at = panel_at(n, q, q) + first * n.side
        for i from 0 <= i < rows * n.side by VL:
            vf_store(f.l + at + i, vf_set(0) - vf_load(f.a + at + i))
        for i in range(first, smaller(first + rows, n.side)):
            f.l[panel_at(n, q, q) + i * n.side + i] -= f.diagonal[q * n.side + i]
        for p in range(q):
            block_product(f, rows, f.l + panel_at(n, p, q) + first * n.side, False, f.l + panel_at(n, p, q), True, True,
                          l + first * n.side, thread)


cdef bint factor_block(const Panels* n, const real* c, real* inverse) noexcept nogil:
    """-U^-1 with U^T U = -C, of C (side, side) the lower triangle; whether -C is positive definite."""
    cdef double[48 * 48] u
    cdef double[48 * 48] x
    cdef Py_ssize_t side = n.side, i, j, k
    cdef double pivot, factor
    for i in range(side):
        for j in range(i, side):
            u[i * side + j] = -c[j * side + i]
    for k in range(side):
        pivot = u[k * side + k]
        if not (pivot > 0 and isfinite(pivot)):
            return False
        pivot = sqrt(pivot)
        for j in range(k, side):
            u[k * side + j] /= pivot
        for i in range(k + 1, side):
            factor = u[k * side + i]
            for j in range(i, side):
                u[i * side + j] -= factor * u[k * side + j]
    memset(x, 0, side * side * sizeof(double))
    for i in range(side - 1, -1, -1):
        x[i * side + i] = -1
        for k in range(i + 1, side):
            factor = u[i * side + k]
            for j in range(k, side):
                x[i * side + j] -= factor * x[k * side + j]
        for j in range(i, side):
            x[i * side + j] /= u[i * side + i]
    for i in range(side * side):
        inverse[i] = <real>x[i]
    return True


cdef bint factorize(Factor* f, int threads) noexcept nogil:
    """Make L; whether the matrix, with what is added to its diagonal, is positive definite in this precision."""
    cdef const Panels* n = &f.panels
    cdef Py_ssize_t q, work
    cdef int some
    for q in range(n.count):
        f.q = q
        work = (n.padded - q * n.side) * n.side * q * n.side
        some = threads if work > THREAD_WORK else 1
        f.rows = n.padded if some == 1 else 2 * n.side
        f.last_step, f.claimed = False, 0
        parallel(factor_task, f, some)
        if not factor_block(n, f.l + panel_at(n, q, q), f.inverse + q * n.side * n.side):
            return False
        f.last_step, f.claimed, f.rows = True, 0, n.padded
        factor_task(f, 0)
    return True


cdef void solve(const Factor* f, real* b, real* part) noexcept nogil:
    """b = A^-1 b by the factor; b (padded,), part (side,). 2 n**2 FLOPs, as long as it takes to read L twice."""
    cdef const Panels* n = &f.panels
    cdef Py_ssize_t side = n.side, q, i, j
    cdef const real* u
    cdef const real* l
    cdef vf[3] sums
    cdef vf dot
    for q in range(n.count):                # L z = b; -z, as -U^-1 is there, until the end
        u = f.inverse + q * side * side
        for j in range(TILE_NV):
            sums[j] = vf_set(0)
        for i in range(side):
            for j in range(TILE_NV):
                sums[j] = vf_fma(vf_set(b[q * side + i]), vf_load(u + i * side + j * VL), sums[j])
        for j in range(TILE_NV):
            vf_store(b + q * side + j * VL, sums[j])
        l = f.l + panel_at(n, q, q + 1)
        for i in range((q + 1) * side, n.padded):
            dot = vf_set(0)
            for j in range(TILE_NV):
                dot = vf_fma(vf_load(l + j * VL), sums[j], dot)
            b[i] += vf_sum(dot, VL)
            l += side
    for q in range(n.count - 1, -1, -1):    # L^T x = z
        u = f.inverse + q * side * side
        l = f.l + panel_at(n, q, q + 1)
        for j in range(TILE_NV):
            sums[j] = vf_load(b + q * side + j * VL)
        for i in range((q + 1) * side, n.padded):
            for j in range(TILE_NV):
                sums[j] = vf_fma(vf_set(b[i]), vf_load(l + j * VL), sums[j])
            l += side
        for j in range(TILE_NV):
            vf_store(part + j * VL, sums[j])
        for i in range(side):
            dot = vf_set(0)
            for j in range(TILE_NV):
                dot = vf_fma(vf_load(u + i * side + j * VL), vf_load(part + j * VL), dot)
            b[q * side + i] = vf_sum(dot, VL)


cdef void trace_task(void* argument, int thread) noexcept nogil:
    """The sum of the squares of L^-1, panel by panel: the trace of A^-1."""
    cdef Factor* f = <Factor*>argument
    cdef const Panels* n = &f.panels
    cdef Py_ssize_t square = n.side * n.side, q, p, s, i, j
    cdef real* x = f.square + thread * (n.padded + n.side) * n.side
    cdef real* sums = x + n.padded * n.side
    while True:
        q = atomic_add(&f.claimed, 1)
        if q >= n.count:
            break
        for i in range(n.side):
            for j in range(n.side):
                x[q * square + i * n.side + j] = -f.inverse[q * square + j * n.side + i]
        for p in range(q + 1, n.count):
            memset(sums, 0, square * sizeof(real))
            for s in range(q, p):
                block_product(f, n.side, f.l + panel_at(n, s, p), False, x + s * square, False, True, sums, thread)
            block_product(f, n.side, f.inverse + p * square, True, sums, False, False, x + p * square, thread)
        f.traces[q] = sum_of_squares((n.count - q) * square, x + q * square)


cdef double trace_of_inverse(Factor* f, int threads) noexcept nogil:
    """Of the padded matrix; n**3 / 3 FLOPs after `factorize`."""
    cdef double total = 0
    cdef Py_ssize_t q
    f.claimed = 0
    parallel(trace_task, f, threads)
    for q in range(f.panels.count):
        total += f.traces[q]
    return total
