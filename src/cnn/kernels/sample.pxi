# One sample at a time: the sweeps of `fit` with batch_size=1 and of `train_step` on one row.
#
# With one row there is nothing to tile: each layer's forward pass is a product of a vector with a matrix, and its
# backward pass one sweep over W that gives dx = W dz and takes the optimiser's step, so that W is read twice and
# written once a sample. All of it in L1 or L2: the limit is one load and, going back, one store for each vector of W.

cdef inline void row_panel(const int nv, Py_ssize_t panels, Py_ssize_t k, const real* x, const real* w,
                           Py_ssize_t w_row, const real* bias, vf floor, real* y) noexcept nogil:
    """`panels` times nv vectors of y = max(floor, x W + b). Sums in the order of k, as the tiles do."""
    cdef vf acc[8]
    cdef vf x_l
    cdef const real* w_l
    cdef Py_ssize_t panel, l
    cdef int q
    for panel in range(panels):
        for q in range(nv):
            acc[q] = vf_load(bias + q * VL)
        w_l = w
        for l in range(k):
            x_l = vf_set(x[l])
            for q in range(nv):
                acc[q] = vf_fma(x_l, vf_load(w_l + q * VL), acc[q])
            w_l += w_row
        for q in range(nv):
            vf_store(y + q * VL, vf_max(floor, acc[q]))
        w += nv * VL
        y += nv * VL
        bias += nv * VL


cdef void row_forward(Py_ssize_t k, Py_ssize_t vectors, const real* x, const real* w, Py_ssize_t w_row,
                      const real* bias, real floor, real* y) noexcept nogil:
    """y = max(floor, x W + b), W (k, vectors * VL): 2 k n FLOPs, one load of W for each vector of them."""
    cdef Py_ssize_t eights = vectors // 8, done = 8 * VL * eights
    cdef Py_ssize_t rest = vectors - 8 * eights
    row_panel(8, eights, k, x, w, w_row, bias, vf_set(floor), y)
    w += done
    y += done
    bias += done
    if rest == 1:
        row_panel(1, 1, k, x, w, w_row, bias, vf_set(floor), y)
    elif rest == 2:
        row_panel(2, 1, k, x, w, w_row, bias, vf_set(floor), y)
    elif rest == 3:
        row_panel(3, 1, k, x, w, w_row, bias, vf_set(floor), y)
    elif rest == 4:
        row_panel(4, 1, k, x, w, w_row, bias, vf_set(floor), y)
    elif rest == 5:
        row_panel(5, 1, k, x, w, w_row, bias, vf_set(floor), y)
    elif rest == 6:
        row_panel(6, 1, k, x, w, w_row, bias, vf_set(floor), y)
    elif rest == 7:
        row_panel(7, 1, k, x, w, w_row, bias, vf_set(floor), y)


cdef inline void sweep_rows(const int kind, const bint wants_dx, const int rows, Py_ssize_t n, const real* x,
                            const real* dz, real* w, Py_ssize_t w_row, const Update* u, vf* sums) noexcept nogil:
    """`rows` rows of W: the dot products of each with dz go to `sums`, lane by lane; then each takes its step.

    kind, wants_dx and rows are literals. For each vector: a load and a store of W, 2 to 5 multiply-adds.
    """
    cdef vf s[4]
    cdef vf scale[4]
    cdef vf d, w_j
    cdef real* at
    cdef Py_ssize_t j
    cdef int r
    for r in range(rows):
        s[r] = vf_set(0)
        scale[r] = vf_set(-u.lr * x[r] if kind == UPDATE_PLAIN else x[r])
    for j from 0 <= j < n by VL:
        d = vf_load(dz + j)
        for r in range(rows):
            at = w + r * w_row + j
            w_j = vf_load(at)
            if wants_dx:
                s[r] = vf_fma(w_j, d, s[r])
            if kind == UPDATE_PLAIN:
                vf_store(at, vf_fma(scale[r], d, w_j))
            else:
                vf_store(at, updated(kind, w_j, scale[r] * d, at + u.state, u))
    if wants_dx:
        for r in range(rows):
            sums[r] = s[r]


cdef inline void halve(vf* part, const int count) noexcept nogil:
    """Sum vectors 0 .. count - 1 with those from count on, the halves of each pair interleaved. count is a literal."""
    cdef int r
    for r in range(count):
        part[r] = vf_zip_lo(part[r], part[r + count]) + vf_zip_hi(part[r], part[r + count])


cdef inline vf sums_of(vf* part) noexcept nogil:
    """The vector of the sums of VL vectors, in VL - 1 additions."""
    if VL >= 16:
        halve(part, 8)
    if VL >= 8:
        halve(part, 4)
    if VL >= 4:
        halve(part, 2)
    halve(part, 1)
    return part[0]


cdef inline void sweep(const int kind, const bint wants_dx, Py_ssize_t k, Py_ssize_t n, const real* x, const real* dz,
                       real* w, Py_ssize_t w_row, const Update* u, real* dx) noexcept nogil:
    """dx = W dz and the step on W (k, n), VL rows after VL rows."""
    cdef vf part[16]
    cdef Py_ssize_t i, r, rows
    for i from 0 <= i < k by VL:
        rows = smaller(VL, k - i)
        r = 0
        while r + 4 <= rows:
            sweep_rows(kind, wants_dx, 4, n, x + i + r, dz, w, w_row, u, &part[r])
            w += 4 * w_row
            r += 4
        while r < rows:
            sweep_rows(kind, wants_dx, 1, n, x + i + r, dz, w, w_row, u, &part[r])
            w += w_row
            r += 1
        if wants_dx:
            while r < VL:
                part[r] = vf_set(0)
                r += 1
            vf_store(dx + i, sums_of(part))


cdef inline void sweep_transposed(const int kind, Py_ssize_t k, Py_ssize_t n, const real* x, const real* dz, real* w,
                                  Py_ssize_t w_row, const Update* u, real* dx) noexcept nogil:
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
            vf_store(dx + j, s)


cdef inline void sample_step(const int kind, bint transposed, Py_ssize_t k, Py_ssize_t n, const real* x,
                             const real* dz, real* w, Py_ssize_t w_row, real* bias, const Update* u,
                             real* dx) noexcept nogil:
    """The backward pass and step of a layer for one sample; dx or bias may be NULL."""
    cdef Py_ssize_t j, padded_n = round_up(n, VL)
    if transposed:
        sweep_transposed(kind, k, n, x, dz, w, w_row, u, dx)
    elif dx != NULL:
        sweep(kind, True, k, padded_n, x, dz, w, w_row, u, dx)
    else:
        sweep(kind, False, k, padded_n, x, dz, w, w_row, u, dx)
    if bias != NULL:
        for j from 0 <= j < padded_n by VL:
            vf_store(bias + j, updated(kind, vf_load(bias + j), vf_load(dz + j), bias + j + u.state, u))


cdef void sample_backward(bint transposed, Py_ssize_t k, Py_ssize_t n, const real* x, const real* dz, real* w,
                          Py_ssize_t w_row, real* bias, const Update* u, real* dx) noexcept nogil:
    """sample_step, compiled for each kind of update."""
    if u.kind == UPDATE_PLAIN:
        sample_step(UPDATE_PLAIN, transposed, k, n, x, dz, w, w_row, bias, u, dx)
    elif u.kind == UPDATE_SGD:
        sample_step(UPDATE_SGD, transposed, k, n, x, dz, w, w_row, bias, u, dx)
    elif u.kind == UPDATE_ADAM:
        sample_step(UPDATE_ADAM, transposed, k, n, x, dz, w, w_row, bias, u, dx)
    elif u.kind == UPDATE_MOMENTUM:
        sample_step(UPDATE_MOMENTUM, transposed, k, n, x, dz, w, w_row, bias, u, dx)
    elif u.kind == UPDATE_AMSGRAD:
        sample_step(UPDATE_AMSGRAD, transposed, k, n, x, dz, w, w_row, bias, u, dx)
    else:
        sample_step(UPDATE_RMSPROP, transposed, k, n, x, dz, w, w_row, bias, u, dx)
