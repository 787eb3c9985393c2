# Sweeps over a block of gradients or parameters, for what needs all of them at once: the norm, clipping, penalties, and
# the moving average of the parameters.

cdef double sum_of_squares(Py_ssize_t n, const real* g) noexcept nogil:
    """sum of g**2 over n numbers, in double, as 16 partial sums: in one order, whatever the vectors.

    A multiply-add and sizeof(real) bytes read an element. Squares do not overflow in float32 gradients.
    """
    cdef double[16] s
    cdef double total = 0
    cdef Py_ssize_t i, blocks = n // 16 * 16
    cdef int j
    memset(s, 0, sizeof(s))
    for i from 0 <= i < blocks by 16:
        for j in range(16):
            s[j] += <double>g[i + j] * <double>g[i + j]
    for i in range(n - blocks):
        s[i] += <double>g[blocks + i] * <double>g[blocks + i]
    for j in range(16):
        total += s[j]
    return total


cdef void scale_block(Py_ssize_t n, real* g, real factor) noexcept nogil:
    """g = factor g, n a multiple of VL: a product an element, read and written once."""
    cdef Py_ssize_t i
    for i from 0 <= i < n by VL:
        vf_store(g + i, vf_set(factor) * vf_load(g + i))


cdef inline double clip_factor(double square, double max_norm) noexcept nogil:
    """What gradients whose squares sum to `square` are multiplied by: torch.nn.utils.clip_grad_norm_'s coefficient."""
    cdef double factor = max_norm / (sqrt(square) + 1e-6)
    return 1 if factor > 1 else factor


cdef void clip_block(Py_ssize_t n, real* g, real limit) noexcept nogil:
    """g = min(max(g, -limit), limit), n a multiple of VL; NaN stays. Read and written once."""
    cdef Py_ssize_t i
    for i from 0 <= i < n by VL:
        vf_store(g + i, vf_max(vf_set(-limit), vf_min(vf_set(limit), vf_load(g + i))))


cdef double penalty(Py_ssize_t n, const real* w, real* g, double l1, double l2) noexcept nogil:
    """l1 sum |w| + l2 sum w**2, in double and in one order; its gradient, l1 sign(w) + 2 l2 w, is added to g.

    n is a multiple of VL; sign(0) = 0; g may be NULL. 2 multiply-adds an element for the value and 2 for the gradient.
    """
    cdef double[16] absolute
    cdef double[16] square
    cdef double sums = 0, squares = 0
    cdef Py_ssize_t i, blocks = n // 16 * 16
    cdef int j
    cdef vf w_i, step
    memset(absolute, 0, sizeof(absolute))
    memset(square, 0, sizeof(square))
    for i from 0 <= i < blocks by 16:
        for j in range(16):
            absolute[j] += fabs(<double>w[i + j])
            square[j] += <double>w[i + j] * <double>w[i + j]
    for i in range(n - blocks):
        absolute[i] += fabs(<double>w[blocks + i])
        square[i] += <double>w[blocks + i] * <double>w[blocks + i]
    for j in range(16):
        sums += absolute[j]
        squares += square[j]
    if g != NULL:
        for i from 0 <= i < n by VL:
            w_i = vf_load(w + i)
            step = vf_select_gt(vf_abs(w_i), vf_set(0), vf_copysign(vf_set(<real>l1), w_i), vf_set(0))
            vf_store(g + i, vf_load(g + i) + vf_fma(vf_set(<real>(2 * l2)), w_i, step))
    return l1 * sums + l2 * squares


cdef double half_squares(Py_ssize_t n, const real* w, real* g, double factor) noexcept nogil:
    """factor / 2 sum w**2; its gradient, factor w, is added to g."""
    return penalty(n, w, g, 0, factor / 2) if factor != 0 else 0


cdef double dot_block(Py_ssize_t n, const real* a, const real* b) noexcept nogil:
    """sum of a b over n numbers, as `sum_of_squares`."""
    cdef double[16] s
    cdef double total = 0
    cdef Py_ssize_t i, blocks = n // 16 * 16
    cdef int j
    memset(s, 0, sizeof(s))
    for i from 0 <= i < blocks by 16:
        for j in range(16):
            s[j] += <double>a[i + j] * <double>b[i + j]
    for i in range(n - blocks):
        s[i] += <double>a[blocks + i] * <double>b[blocks + i]
    for j in range(16):
        total += s[j]
    return total


cdef void add_block(Py_ssize_t n, real* z, const real* y, double factor, const real* x) noexcept nogil:
    """z = y + factor x, n a multiple of VL: a multiply-add an element; z may be y."""
    cdef Py_ssize_t i
    for i from 0 <= i < n by VL:
        vf_store(z + i, vf_fma(vf_set(<real>factor), vf_load(x + i), vf_load(y + i)))


cdef double largest_block(Py_ssize_t n, const real* g) noexcept nogil:
    """max |g|, n a multiple of VL; g is finite."""
    cdef Py_ssize_t i
    cdef vf most = vf_set(0)
    for i from 0 <= i < n by VL:
        most = vf_max(most, vf_abs(vf_load(g + i)))
    return vf_largest(most)


cdef void lerp_block(Py_ssize_t n, real* y, const real* x, double part) noexcept nogil:
    """y = y + part (x - y), n a multiple of VL: a multiply-add an element, as torch.lerp."""
    cdef Py_ssize_t i
    cdef vf y_i
    for i from 0 <= i < n by VL:
        y_i = vf_load(y + i)
        vf_store(y + i, vf_fma(vf_set(<real>part), vf_load(x + i) - y_i, y_i))
