# Losses with their gradients in one pass over the outputs. dy may be NULL: the loss alone. Every function returns the
# sum over the batch and not the mean, so that parts add up; the gradient is that of the mean (times `scale`).
# Rows of y and dy are padded to VL; the padding of y is zero, that of dy is set to zero: the products rely on it.

cdef enum Loss:
    LOSS_NONE
    LOSS_MSE
    LOSS_CROSS_ENTROPY

LOSSES = {"mse": LOSS_MSE, "cross_entropy": LOSS_CROSS_ENTROPY}


cdef double mse(Py_ssize_t batch, Py_ssize_t n, const real* y, Py_ssize_t y_row, const real* target,
                Py_ssize_t target_row, double scale, real* dy, Py_ssize_t dy_row) noexcept nogil:
    """Squared error: sum of (y - t)**2 over the batch, divided by n; dy = 2 scale (y - t) / n.

    y, t (batch, n): 3 FLOPs and, with the gradient, 3 numbers moved for each element.
    """
    cdef vf factor = vf_set(<real>(2 * scale / n))
    cdef vf d, sums
    cdef double total = 0
    cdef Py_ssize_t i, j, whole = n // VL * VL
    for i in range(batch):
        sums = vf_set(0)
        for j from 0 <= j < whole by VL:
            d = vf_load(y + j) - vf_load(target + j)
            sums = vf_fma(d, d, sums)
            if dy != NULL:
                vf_store(dy + j, factor * d)
        if whole < n:
            d = vf_load(y + whole) - vf_load_first(target + whole, n - whole)
            sums = vf_fma(d, d, sums)
            if dy != NULL:
                vf_store(dy + whole, factor * d)
        total += vf_sum(sums, VL)
        y += y_row
        target += target_row
        if dy != NULL:
            dy += dy_row
    return total / n


cdef double cross_entropy(Py_ssize_t batch, Py_ssize_t n, real* z, Py_ssize_t z_row, const int64_t* label,
                          double scale, real* dz, Py_ssize_t dz_row, Py_ssize_t* correct) noexcept nogil:
    """Cross-entropy of softmax(z) with class indices: sum of log(sum of exp(z - max)) + max - z[label];
    dz = scale (softmax(z) - onehot(label)). Counts the rows whose first largest logit is the label's.

    z (batch, n), its rows padded to VL; the padding is overwritten with -inf, whose exponential is zero.
    One exponential, two passes over z.
    """
    cdef Py_ssize_t i, j, padded = round_up(n, VL)
    cdef vf top, e, sums
    cdef real largest, z_label
    cdef double total = 0, exp_sum
    cdef bint first
    for i in range(batch):
        for j in range(n, padded):
            z[j] = <real>-INFINITY
        top = vf_load(z)
        for j from VL <= j < padded by VL:
            top = vf_max(top, vf_load(z + j))
        largest = vf_largest(top)
        sums = vf_set(0)
        for j from 0 <= j < padded by VL:
            e = v_exp(vf_load(z + j) - vf_set(largest))
            sums = sums + e
            if dz != NULL:
                vf_store(dz + j, e)
        exp_sum = vf_sum(sums, VL)
        z_label = z[label[i]]
        total += log(exp_sum) + (<double>largest - <double>z_label)
        if z_label == largest:
            first = True
            for j in range(label[i]):
                first = first and z[j] != largest
            correct[0] += first
        if dz != NULL:
            e = vf_set(<real>(scale / exp_sum))
            for j from 0 <= j < padded by VL:
                vf_store(dz + j, e * vf_load(dz + j))
            dz[label[i]] -= <real>scale
            dz += dz_row
        z += z_row
    return total
