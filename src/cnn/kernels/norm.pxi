# Layer normalisation (Ba, Kiros and Hinton, 2016) along rows, and batch normalisation (Ioffe and Szegedy, 2015) along
# columns, with their gradients. Formulas are PyTorch's: variances are biased, xhat = (x - mean) / sqrt(var + eps).
#
# x (batch, n) may end at n; y, dy, dx, and what is kept for each column, are padded to VL, and zeros are written to the
# padding. weight and bias may be NULL: 1 and 0. Sums over the batch are done for a piece of columns, `first` and
# following, in the order of the rows: the pointers are those of column 0, `columns` is a multiple of VL and may reach
# into the padding.

cdef enum:
    SUM_ROWS = 64           # rows that are added up as reals before they join the others' sum, in double


cdef void layer_norm_rows(Py_ssize_t rows, Py_ssize_t n, real eps, const real* x, Py_ssize_t x_row, const real* weight,
                          const real* bias, real* y, Py_ssize_t y_row, real* stats) noexcept nogil:
    """y = xhat weight + bias, with mean and variance of each row; stats[2 i], [2 i + 1] = mean, 1 / sqrt(var + eps).

    x, y (rows, n), weight, bias (n,), stats (rows, 2). Two passes for the statistics, one for y, over a row in L1:
    7 FLOPs an element.
    """
    cdef Py_ssize_t i, j, last = (n - 1) // VL * VL, rest = n - last
    cdef vf sums, d, end, mean, rstd
    for i in range(rows):
        end = vf_load_first(x + last, rest)
        sums = end
        for j from 0 <= j < last by VL:
            sums = sums + vf_load(x + j)
        stats[0] = vf_sum(sums, VL) / <real>n
        mean = vf_set(stats[0])
        end = vf_first(end - mean, rest, vf_set(0))
        sums = end * end
        for j from 0 <= j < last by VL:
            d = vf_load(x + j) - mean
            sums = vf_fma(d, d, sums)
        stats[1] = <real>(1 / sqrt(<double>vf_sum(sums, VL) / n + eps))
        rstd = vf_set(stats[1])
        for j from 0 <= j < last by VL:
            vf_store(y + j, scaled((vf_load(x + j) - mean) * rstd, weight, bias, j))
        vf_store(y + last, vf_first(scaled(end * rstd, weight, bias, last), rest, vf_set(0)))
        x += x_row
        y += y_row
        stats += 2


cdef inline vf scaled(vf xhat, const real* weight, const real* bias, Py_ssize_t j) noexcept nogil:
    """xhat weight + bias for the columns from j on."""
    cdef vf shift = vf_load(bias + j) if bias != NULL else vf_set(0)
    return vf_fma(xhat, vf_load(weight + j), shift) if weight != NULL else xhat + shift


cdef inline vf weighted(vf dy, const real* weight, Py_ssize_t j) noexcept nogil:
    """dy weight for the columns from j on."""
    return dy * vf_load(weight + j) if weight != NULL else dy


cdef void layer_norm_backward_rows(Py_ssize_t rows, Py_ssize_t n, const real* x, Py_ssize_t x_row, const real* weight,
                                   const real* stats, const real* dy, Py_ssize_t dy_row, real* dx,
                                   Py_ssize_t dx_row) noexcept nogil:
    """dx = rstd (g - mean(g) - xhat mean(g xhat)), g = dy weight; the means are the row's.

    x, dy, dx (rows, n); dx may be dy. Two passes over x and dy, the second out of L1: 12 FLOPs an element.
    """
    cdef Py_ssize_t i, j, last = (n - 1) // VL * VL, rest = n - last
    cdef vf g, d, end, dot, sums, mean, rstd
    for i in range(rows):
        mean = vf_set(stats[0])
        rstd = vf_set(stats[1])
        end = vf_load_first(x + last, rest) - mean
        sums = weighted(vf_load_first(dy + last, rest), weight, last)
        dot = vf_first(sums * end, rest, vf_set(0))
        for j from 0 <= j < last by VL:
            g = weighted(vf_load(dy + j), weight, j)
            sums = sums + g
            dot = vf_fma(g, vf_load(x + j) - mean, dot)
        sums = vf_set(vf_sum(sums, VL) / <real>n)
        dot = rstd * rstd * vf_set(vf_sum(dot, VL) / <real>n)
        for j from 0 <= j < last by VL:
            g = weighted(vf_load(dy + j), weight, j) - sums
            d = vf_load(x + j) - mean
            vf_store(dx + j, rstd * vf_fma(-dot, d, g))
        g = weighted(vf_load(dy + last), weight, last) - sums
        vf_store(dx + last, vf_first(rstd * vf_fma(-dot, end, g), rest, vf_set(0)))
        x += x_row
        dy += dy_row
        dx += dx_row
        stats += 2


cdef inline vf columns_of(const real* x, Py_ssize_t j, Py_ssize_t n) noexcept nogil:
    """x[j] and following of a row that may end at n; zeros beyond."""
    return vf_load(x + j) if j + VL <= n else vf_load_first(x + j, n - j) if j < n else vf_set(0)


cdef inline void add_block(vf block, double* total) noexcept nogil:
    """total += block, lane by lane."""
    cdef real lane[16]
    cdef Py_ssize_t l
    vf_store(lane, block)
    for l in range(VL):
        total[l] += lane[l]


cdef inline void write_columns(real* out, Py_ssize_t j, Py_ssize_t n, const double* total) noexcept nogil:
    """out[j] and following = total, zeros from column n on. out may be NULL."""
    cdef Py_ssize_t l
    if out != NULL:
        for l in range(VL):
            out[j + l] = <real>total[l] if j + l < n else 0


cdef void layer_norm_weight_sums(Py_ssize_t batch, Py_ssize_t first, Py_ssize_t columns, Py_ssize_t n, const real* x,
                                 Py_ssize_t x_row, const real* stats, const real* dy, Py_ssize_t dy_row, real* dweight,
                                 real* dbias) noexcept nogil:
    """dweight = sum of dy xhat, dbias = sum of dy over the batch. Either may be NULL.

    x, dy (batch, n), stats (batch, 2), dweight, dbias (n,). 4 FLOPs an element; x and dy are read once.
    """
    cdef Py_ssize_t i, j, l, stop
    cdef vf g, sums, dot
    cdef double[16] dot_total
    cdef double[16] total
    for j from first <= j < first + columns by VL:
        for l in range(VL):
            total[l] = dot_total[l] = 0
        for i from 0 <= i < batch by SUM_ROWS:
            stop = smaller(i + SUM_ROWS, batch)
            sums = dot = vf_set(0)
            for l in range(i, stop):
                g = vf_load(dy + l * dy_row + j)
                sums = sums + g
                dot = vf_fma(g, (columns_of(x + l * x_row, j, n) - vf_set(stats[2 * l])) * vf_set(stats[2 * l + 1]),
                             dot)
            add_block(sums, total)
            add_block(dot, dot_total)
        write_columns(dweight, j, n, dot_total)
        write_columns(dbias, j, n, total)


cdef void batch_norm_statistics(Py_ssize_t batch, Py_ssize_t first, Py_ssize_t columns, Py_ssize_t n, real eps,
                                const real* x, Py_ssize_t x_row, real* mean, real* rstd, real* var) noexcept nogil:
    """mean, var = sum((x - mean)**2) / batch and rstd = 1 / sqrt(var + eps) of each column.

    x (batch, n), mean, rstd, var (n,). Two passes over x, 4 FLOPs an element.
    """
    cdef Py_ssize_t i, j, l, stop
    cdef vf d, sums, m
    cdef double[16] total
    for j from first <= j < first + columns by VL:
        for l in range(VL):
            total[l] = 0
        for i from 0 <= i < batch by SUM_ROWS:
            stop = smaller(i + SUM_ROWS, batch)
            sums = vf_set(0)
            for l in range(i, stop):
                sums = sums + columns_of(x + l * x_row, j, n)
            add_block(sums, total)
        for l in range(VL):
            total[l] = total[l] / batch
        write_columns(mean, j, n, total)
        m = vf_load(mean + j)
        for l in range(VL):
            total[l] = 0
        for i from 0 <= i < batch by SUM_ROWS:
            stop = smaller(i + SUM_ROWS, batch)
            sums = vf_set(0)
            for l in range(i, stop):
                d = columns_of(x + l * x_row, j, n) - m
                sums = vf_fma(d, d, sums)
            add_block(sums, total)
        for l in range(VL):
            total[l] = total[l] / batch
        write_columns(var, j, n, total)
        for l in range(VL):
            total[l] = 1 / sqrt(total[l] + eps)
        write_columns(rstd, j, n, total)


cdef void batch_norm_rows(Py_ssize_t rows, Py_ssize_t n, const real* x, Py_ssize_t x_row, const real* mean,
                          const real* rstd, const real* weight, const real* bias, real* y,
                          Py_ssize_t y_row) noexcept nogil:
    """y = (x - mean) rstd weight + bias, all but x and y of one number a column.

    x, y (rows, n); y may be x. 4 FLOPs an element.
    """
    cdef Py_ssize_t i, j, last = (n - 1) // VL * VL, rest = n - last
    cdef vf end
    for i in range(rows):
        for j from 0 <= j < last by VL:
            vf_store(y + j, scaled((vf_load(x + j) - vf_load(mean + j)) * vf_load(rstd + j), weight, bias, j))
        end = (vf_load_first(x + last, rest) - vf_load(mean + last)) * vf_load(rstd + last)
        vf_store(y + last, vf_first(scaled(end, weight, bias, last), rest, vf_set(0)))
        x += x_row
        y += y_row


cdef void batch_norm_backward_sums(Py_ssize_t batch, Py_ssize_t first, Py_ssize_t columns, Py_ssize_t n, const real* x,
                                   Py_ssize_t x_row, const real* mean, const real* rstd, const real* dy,
                                   Py_ssize_t dy_row, real* dweight, real* dbias) noexcept nogil:
    """dweight = sum of dy xhat, dbias = sum of dy over the batch.

    x, dy (batch, n), the others (n,). 4 FLOPs an element; x and dy are read once.
    """
    cdef Py_ssize_t i, j, l, stop
    cdef vf g, m, sums, dot
    cdef double[16] dot_total
    cdef double[16] total
    for j from first <= j < first + columns by VL:
        m = vf_load(mean + j)
        for l in range(VL):
            total[l] = dot_total[l] = 0
        for i from 0 <= i < batch by SUM_ROWS:
            stop = smaller(i + SUM_ROWS, batch)
            sums = dot = vf_set(0)
            for l in range(i, stop):
                g = vf_load(dy + l * dy_row + j)
                sums = sums + g
                dot = vf_fma(g, columns_of(x + l * x_row, j, n) - m, dot)
            add_block(sums, total)
            add_block(dot, dot_total)
        for l in range(VL):
            dot_total[l] *= rstd[j + l]
        write_columns(dweight, j, n, dot_total)
        write_columns(dbias, j, n, total)


cdef void batch_norm_backward_rows(Py_ssize_t rows, Py_ssize_t n, Py_ssize_t batch, bint batch_statistics,
                                   const real* x, Py_ssize_t x_row, const real* mean, const real* rstd,
                                   const real* weight, const real* dweight, const real* dbias, const real* dy,
                                   Py_ssize_t dy_row, real* dx, Py_ssize_t dx_row) noexcept nogil:
    """dx = weight rstd (dy - (dbias + xhat dweight) / batch), or weight rstd dy with running statistics.

    x, dy, dx (rows, n); dx may be dy; dweight and dbias are the sums over the whole batch, of which these are `rows`.
    7 FLOPs an element.
    """
    cdef Py_ssize_t i, j, last = (n - 1) // VL * VL, rest = n - last
    cdef vf g, d, share = vf_set(<real>(1.0 / batch))
    for i in range(rows):
        for j from 0 <= j < n by VL:
            g = vf_load(dy + j)
            if batch_statistics:
                d = vf_load(x + j) if j < last else vf_load_first(x + j, rest)
                d = (d - vf_load(mean + j)) * vf_load(rstd + j)
                g = vf_fma(-share, vf_fma(d, vf_load(dweight + j), vf_load(dbias + j)), g)
            g = weighted(g * vf_load(rstd + j), weight, j)
            vf_store(dx + j, g if j < last else vf_first(g, rest, vf_set(0)))
        x += x_row
        dy += dy_row
        dx += dx_row
