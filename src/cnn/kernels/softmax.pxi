# Softmax and log-softmax along rows, and their gradients. No Jacobian is formed: the product with it is one sum and one
# pass (Goodfellow, Bengio and Courville, Deep Learning, 2016, section 6.2.2.3, for the stable form).
#
# x may end at n; y, dy and dx are padded to VL, and the padding of y and dx is written with zeros.


cdef void softmax_rows(bint logarithm, Py_ssize_t rows, Py_ssize_t n, const real* x, Py_ssize_t x_row, real* y,
                       Py_ssize_t y_row) noexcept nogil:
    """y = exp(x - t) / sum(exp(x - t)), or its logarithm y = x - t - log(sum(exp(x - t))), t the largest x of the row.

    x, y (rows, n); y may be x. One exponential an element, three passes over the row: two reads of x, one write of y
    and for softmax one more read and write of it. A row with NaN or inf, or with -inf alone, gives NaN.
    """
    cdef Py_ssize_t i, j, last = (n - 1) // VL * VL, rest = n - last
    cdef vf e, top, sums, shift
    cdef double total
    for i in range(rows):
        top = vf_first(vf_load_first(x + last, rest), rest, vf_set(<real>-INFINITY))
        for j from 0 <= j < last by VL:
            top = vf_max(top, vf_load(x + j))
        shift = vf_set(vf_largest(top))
        sums = vf_set(0)
        for j from 0 <= j < last by VL:
            e = v_exp(vf_load(x + j) - shift)
            sums = sums + e
            if not logarithm:
                vf_store(y + j, e)
        e = vf_first(v_exp(vf_load_first(x + last, rest) - shift), rest, vf_set(0))
        total = vf_sum(sums + e, VL)
        if logarithm:
            sums = vf_set(<real>log(total))
            e = vf_load_first(x + last, rest)
            for j from 0 <= j < last by VL:
                vf_store(y + j, vf_load(x + j) - shift - sums)
            vf_store(y + last, vf_first(e - shift - sums, rest, vf_set(0)))
        else:
            sums = vf_set(<real>(1 / total))
            for j from 0 <= j < last by VL:
                vf_store(y + j, vf_load(y + j) * sums)
            vf_store(y + last, vf_first(e * sums, rest, vf_set(0)))
        x += x_row
        y += y_row


cdef void softmax_backward_rows(bint logarithm, Py_ssize_t rows, Py_ssize_t n, const real* y, Py_ssize_t y_row,
                                const real* dy, Py_ssize_t dy_row, real* dx, Py_ssize_t dx_row) noexcept nogil:
    """dx = y (dy - sum(y dy)) for softmax, dx = dy - exp(y) sum(dy) for log-softmax; the sums are the row's.

    y, dy, dx (rows, n); dx may be dy. 4 FLOPs an element, or an exponential and 3; y and dy are read twice.
    """
    cdef Py_ssize_t i, j, last = (n - 1) // VL * VL, rest = n - last
    cdef vf sums, end
    for i in range(rows):
        if logarithm:
            sums = vf_load_first(dy + last, rest)
            for j from 0 <= j < last by VL:
                sums = sums + vf_load(dy + j)
            sums = vf_set(vf_sum(sums, VL))
            for j from 0 <= j < last by VL:
                vf_store(dx + j, vf_fma(-sums, v_exp(vf_load(y + j)), vf_load(dy + j)))
            end = vf_fma(-sums, v_exp(vf_load(y + last)), vf_load(dy + last))
        else:
            sums = vf_load_first(y + last, rest) * vf_load_first(dy + last, rest)
            for j from 0 <= j < last by VL:
                sums = vf_fma(vf_load(y + j), vf_load(dy + j), sums)
            sums = vf_set(vf_sum(sums, VL))
            for j from 0 <= j < last by VL:
                vf_store(dx + j, vf_load(y + j) * (vf_load(dy + j) - sums))
            end = vf_load(y + last) * (vf_load(dy + last) - sums)
        vf_store(dx + last, vf_first(end, rest, vf_set(0)))
        y += y_row
        dy += dy_row
        dx += dx_row
