# One sample at a time: the sweeps of `fit` with batch_size=1 and of `train_step` on one row.
#
# With one row there is nothing to tile: each layer's forward pass is a product of a vector with a matrix, and its
# backward pass one sweep over W that gives dx = W dz and takes the optimiser's step, so that W is read twice and
# written once a sample. In L1 the store port is the limit, one vector a cycle. A W that is larger than L1 is read
# forward by blocks of rows and swept back from the last row to the first: what was read last is still in L1.
#
# Sums run in another order here than in a batch, forward (row_panel) and back: the step of one row equals forward +
# backward + step within a few roundings.

cdef enum:
    L1_BYTES = 32768        # W up to this size stays in L1 beside everything else
    BLOCK_BYTES = 24576     # of a larger W are read as a block, row after row


cdef inline void row_panel(const int nv, const int sums, Py_ssize_t panels, Py_ssize_t k, const real* x, const real* w,
                           Py_ssize_t w_row, const real* start, vf floor, real* y) noexcept nogil:
    """`panels` times nv vectors of y = max(floor, x W + start). nv and sums are literals.

    With sums = 1 in the order of k, as the tiles do; else so many partial sums, each of every so many-th row, added
    pairwise.
    """
    cdef vf acc[8]
    cdef vf x_l
    cdef const real* w_l
    cdef Py_ssize_t panel, l
    cdef int q, r, half
    for panel in range(panels):
        for q in range(nv):
            acc[q] = vf_load(start + q * VL)
        for q in range(nv, sums * nv):
            acc[q] = vf_set(0)
        w_l = w
        l = 0
        while l + sums <= k:
            for r in range(sums):
                x_l = vf_set(x[l + r])
                for q in range(nv):
                    acc[r * nv + q] = vf_fma(x_l, vf_load(w_l + q * VL), acc[r * nv + q])
                w_l += w_row
            l += sums
        while sums > 1 and l < k:
            x_l = vf_set(x[l])
            for q in range(nv):
                acc[q] = vf_fma(x_l, vf_load(w_l + q * VL), acc[q])
            w_l += w_row
            l += 1
        half = sums * nv // 2
        while half >= nv and sums > 1:
            for q in range(half):
                acc[q] = acc[q] + acc[half + q]
            half //= 2
        for q in range(nv):
            vf_store(y + q * VL, vf_max(floor, acc[q]))
        w += nv * VL
        y += nv * VL
        start += nv * VL


cdef void row_panels(Py_ssize_t nv, bint in_order, Py_ssize_t panels, Py_ssize_t k, const real* x, const real* w,
                     Py_ssize_t w_row, const real* start, real floor, real* y) noexcept nogil:
    """row_panel for nv = 1 .. 8; not in_order: with as many sums as keep both multiply-add units busy."""
    if nv == 1 and in_order:
        row_panel(1, 1, panels, k, x, w, w_row, start, vf_set(floor), y)
    elif nv == 1:
        row_panel(1, 4, panels, k, x, w, w_row, start, vf_set(floor), y)
    elif nv == 2 and in_order:
        row_panel(2, 1, panels, k, x, w, w_row, start, vf_set(floor), y)
    elif nv == 2:
        row_panel(2, 4, panels, k, x, w, w_row, start, vf_set(floor), y)
    elif nv == 3 and in_order:
        row_panel(3, 1, panels, k, x, w, w_row, start, vf_set(floor), y)
    elif nv == 3:
        row_panel(3, 2, panels, k, x, w, w_row, start, vf_set(floor), y)
    elif nv == 4 and in_order:
        row_panel(4, 1, panels, k, x, w, w_row, start, vf_set(floor), y)
    elif nv == 4:
        row_panel(4, 2, panels, k, x, w, w_row, start, vf_set(floor), y)
    elif nv == 5:
        row_panel(5, 1, panels, k, x, w, w_row, start, vf_set(floor), y)
    elif nv == 6:
        row_panel(6, 1, panels, k, x, w, w_row, start, vf_set(floor), y)
    elif nv == 7:
        row_panel(7, 1, panels, k, x, w, w_row, start, vf_set(floor), y)
    else:
        row_panel(8, 1, panels, k, x, w, w_row, start, vf_set(floor), y)


cdef void row_forward(bint in_order, Py_ssize_t k, Py_ssize_t vectors, const real* x, const real* w, Py_ssize_t w_row,
                      const real* bias, real floor, real* y) noexcept nogil:
    """y = max(floor, x W + b), W (k, vectors * VL): 2 k n FLOPs, one load of W for each vector of them.

    Columns in panels of near-equal width. in_order: each sum in the order of k, as in a batch.
    """
    cdef Py_ssize_t panels = (vectors + 7) // 8
    cdef Py_ssize_t nv = vectors // panels, wider = vectors % panels        # so many panels have one vector more
    cdef Py_ssize_t row_bytes = w_row * sizeof(real), done = wider * (nv + 1) * VL
    cdef Py_ssize_t block = k if k * row_bytes <= L1_BYTES else larger(8, BLOCK_BYTES // row_bytes)
    cdef Py_ssize_t l = 0, rows
    cdef const real* start = bias
    cdef real least
    while True:
        rows = smaller(block, k - l)
        least = <real>(floor if l + rows == k else -INFINITY)
        if wider:
            row_panels(nv + 1, in_order, wider, rows, x + l, w, w_row, start, least, y)
        row_panels(nv, in_order, panels - wider, rows, x + l, w + done, w_row, start + done, least, y + done)
        start = y
        w += rows * w_row
        l += rows
        if l >= k:
            break


# Backward, and the step -----------------------------------------------------------------------------------------------

cdef inline void sweep_block(const int kind, const bint wants_dx, const int rows, const int nv, const real* dz,
                             real* w, Py_ssize_t w_row, const vf* scale, const Update* u, vf* s) noexcept nogil:
    """`rows` rows of nv vectors of W: s gathers their products with dz, lane by lane; then each takes its step.

    All but the pointers are literals. For each vector: a load and a store of W, 2 to 5 multiply-adds.
    """
    cdef vf d[2]
    cdef vf w_j
    cdef real* at
    cdef int r, q
    for q in range(nv):
        d[q] = vf_load(dz + q * VL)
    for r in range(rows):
        for q in range(nv):
            at = w + r * w_row + q * VL
            w_j = vf_load(at)
            if wants_dx:
                s[r] = vf_fma(w_j, d[q], s[r])
            if kind == UPDATE_PLAIN:
                vf_store(at, vf_fma(scale[r], d[q], w_j))
            else:
                vf_store(at, updated(kind, w_j, scale[r] * d[q], at + u.state, u))


cdef inline vf sweep_rows(const int kind, const bint wants_dx, const int rows, Py_ssize_t n, const real* x,
                          const real* dz, real* w, Py_ssize_t w_row, const Update* u) noexcept nogil:
    """The step on `rows` rows of W; their products with dz, folded. kind, wants_dx and rows are literals."""
    cdef vf s[4]
    cdef vf scale[4]
    cdef Py_ssize_t j = 0
    cdef int r
    for r in range(4):
        s[r] = vf_set(0)
    for r in range(rows):
        scale[r] = vf_set(-u.lr * x[r] if kind == UPDATE_PLAIN else x[r])
    if kind == UPDATE_PLAIN:
        while j + 2 * VL <= n:
            sweep_block(kind, wants_dx, rows, 2, dz + j, w + j, w_row, scale, u, s)
            j += 2 * VL
    while j < n:
        sweep_block(kind, wants_dx, rows, 1, dz + j, w + j, w_row, scale, u, s)
        j += VL
    if not wants_dx:
        return vf_set(0)
    return vf_fold(s[0], s[1], s[2], s[3]) if rows > 1 else vf_set(vf_sum(s[0], n))


cdef inline void store_gradient(real* dx, vf a, const real* mask) noexcept nogil:
    """dx = a; with a mask only where that is positive, else 0: ReLU' of the layer that made x."""
    vf_store(dx, a if mask == NULL else vf_select_gt(vf_load(mask), vf_set(0), a, vf_set(0)))


cdef inline void sweep(const int kind, const bint wants_dx, Py_ssize_t k, Py_ssize_t n, const real* x, const real* dz,
                       real* w, Py_ssize_t w_row, const Update* u, real* dx, const real* mask) noexcept nogil:
    """dx = W dz and the step on W (k, n), VL rows after VL rows, from the last to the first."""
    cdef vf folded[4]
    cdef vf dot
    cdef Py_ssize_t i = (k - 1) // VL * VL, r
    cdef int q
    while i >= 0:
        for q in range(4):
            folded[q] = vf_set(0)
        r = smaller(VL, k - i)
        while r % 4 or VL < 4 and r:
            r -= 1
            dot = sweep_rows(kind, wants_dx, 1, n, x + i + r, dz, w + (i + r) * w_row, w_row, u)
            folded[r // 4] = with_lane(folded[r // 4], r % 4, dot)
        while r > 0:
            r -= 4
            folded[r // 4] = sweep_rows(kind, wants_dx, 4, n, x + i + r, dz, w + (i + r) * w_row, w_row, u)
        if wants_dx:
            store_gradient(dx + i, vf_sum_folded(folded), mask + i if mask != NULL else NULL)
        i -= VL


cdef inline void sweep_transposed(const int kind, Py_ssize_t k, Py_ssize_t n, const real* x, const real* dz, real* w,
                                  Py_ssize_t w_row, const Update* u, real* dx, const real* mask) noexcept nogil:
    """The same for W^T (n, k), n small: dx is a sum of the n rows."""
    cdef vf s, w_j, x_j
    cdef Py_ssize_t i, j
    for j from 0 <= j < k by VL:
        s = vf_set(0)
        x_j = vf_load(x + j)
        for i in range(n):
            w_j = vf_load(w + i * w_row + j)
            s = vf_fma(vf_set(dz[i]), w_j, s)
            if kind == UPDATE_PLAIN:
                vf_store(w + i * w_row + j, vf_fma(vf_set(-u.lr * dz[i]), x_j, w_j))
            else:
                vf_store(w + i * w_row + j, updated(kind, w_j, vf_set(dz[i]) * x_j, w + i * w_row + j + u.state, u))
        if dx != NULL:
            store_gradient(dx + j, s, mask + j if mask != NULL else NULL)


cdef inline void sample_step "sample_step"(const int kind, bint transposed, Py_ssize_t k, Py_ssize_t n,
                                           const real* x, const real* dz, real* w, Py_ssize_t w_row, real* bias,
                                           const Update* u, real* dx, const real* mask) noexcept nogil:
    cdef Py_ssize_t j, padded_n = round_up(n, VL)
    cdef Update own = u[0]      # stores to w cannot change it: it stays in registers
    if transposed:
        sweep_transposed(kind, k, n, x, dz, w, w_row, &own, dx, mask)
    elif dx != NULL:
        sweep(kind, True, k, padded_n, x, dz, w, w_row, &own, dx, mask)
    else:
        sweep(kind, False, k, padded_n, x, dz, w, w_row, &own, dx, mask)
    if bias != NULL:
        for j from 0 <= j < padded_n by VL:
            vf_store(bias + j, updated(kind, vf_load(bias + j), vf_load(dz + j), bias + j + own.state, &own))


cdef extern from *:
    """
    #define SAMPLE_STEP(KIND, name, blocks, varies, ...) case KIND: sample_step(KIND, __VA_ARGS__); break;
    #define each_sample_step(kind, ...) do switch (kind) { UPDATES(SAMPLE_STEP, __VA_ARGS__) \\
        default: __builtin_trap(); } while (0)
    """
    void each_sample_step(int kind, bint transposed, Py_ssize_t k, Py_ssize_t n, const real* x, const real* dz, real* w,
                          Py_ssize_t w_row, real* bias, const Update* u, real* dx, const real* mask) nogil


cdef void sample_backward(bint transposed, Py_ssize_t k, Py_ssize_t n, const real* x, const real* dz, real* w,
                          Py_ssize_t w_row, real* bias, const Update* u, real* dx, const real* mask) noexcept nogil:
    """The backward pass and step of a layer for one sample, compiled for each kind of update.

    bias, dx and mask (see store_gradient) may be NULL.
    """
    each_sample_step(u.kind, transposed, k, n, x, dz, w, w_row, bias, u, dx, mask)
