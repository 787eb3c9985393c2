# Layer normalisation (Ba, Kiros and Hinton, 2016) along rows, and batch normalisation (Ioffe and Szegedy, 2015) along
# columns, with their gradients. Formulas are PyTorch's: variances are biased, xhat = (x - mean) / sqrt(var + eps).
#
# x (batch, n) may end at n; y, dy, dx, and what is kept for each column, are padded to VL, and zeros are written to the
# padding. weight and bias may be NULL: 1 and 0. Sums over the batch are done for a piece of columns, `first` and
# following, in the order of the rows: the pointers are those of column 0, `columns` is a multiple of VL and may reach
# into the padding. So results depend neither on the cut into rows or columns nor on threads.

cdef enum:
    SUM_ROWS = 64           # rows that are added up as reals before they join the others' sum, in double
    SUM_VECTORS = 4         # vectors of columns that are summed side by side: a single sum would wait for its adder
    SUM_COLUMNS = 64        # at most: a vector has up to 16 lanes

cdef enum ColumnSum:
    SUM_VALUES              # of x
    SUM_SQUARES             # of (x - mean)**2
    SUM_GRADIENTS           # of dy, and of dy (x - mean)
    SUM_ROW_GRADIENTS       # the same with (x - mean) rstd of the row


cdef inline vf scaled(vf xhat, const real* weight, const real* bias, Py_ssize_t j) noexcept nogil:
    """xhat weight + bias for the columns from j on."""
    cdef vf shift = vf_load(bias + j) if bias != NULL else vf_set(0)
    return vf_fma(xhat, vf_load(weight + j), shift) if weight != NULL else xhat + shift


cdef inline vf weighted(vf dy, const real* weight, Py_ssize_t j) noexcept nogil:
    """dy weight for the columns from j on."""
    return dy * vf_load(weight + j) if weight != NULL else dy


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


cdef inline void sum_vectors(ColumnSum kind, int vectors, Py_ssize_t lanes, Py_ssize_t batch, const real* x,
                             Py_ssize_t x_row, const real* mean, const real* stats, const real* dy, Py_ssize_t dy_row,
                             double* total, double* dot_total) noexcept nogil:
    """The sums of so many vectors of columns; of the last one, x has the first `lanes`."""
    cdef vf[SUM_VECTORS] sums
    cdef vf[SUM_VECTORS] dots
    cdef real[SUM_COLUMNS] lane
    cdef vf d, g
    cdef Py_ssize_t i, j, l, stop
    cdef int v
    for j in range(vectors * VL):
        total[j] = dot_total[j] = 0
    for i from 0 <= i < batch by SUM_ROWS:
        stop = smaller(i + SUM_ROWS, batch)
        for v in range(vectors):
            sums[v] = dots[v] = vf_set(0)
        for l in range(i, stop):
            for v in range(vectors):
                j = v * VL
                d = vf_load(x + l * x_row + j) if lanes == VL else vf_load_first(x + l * x_row + j, lanes)
                if kind == SUM_ROW_GRADIENTS:
                    d = (d - vf_set(stats[2 * l])) * vf_set(stats[2 * l + 1])
                elif kind != SUM_VALUES:
                    d = d - vf_load(mean + j)
                if kind == SUM_VALUES:
                    sums[v] = sums[v] + d
                elif kind == SUM_SQUARES:
                    sums[v] = vf_fma(d, d, sums[v])
                else:
                    g = vf_load(dy + l * dy_row + j)
                    sums[v] = sums[v] + g
                    dots[v] = vf_fma(g, d, dots[v])
        for v in range(vectors):
            vf_store(lane + v * VL, sums[v])
        for j in range(vectors * VL):
            total[j] += lane[j]
        if kind == SUM_GRADIENTS or kind == SUM_ROW_GRADIENTS:
            for v in range(vectors):
                vf_store(lane + v * VL, dots[v])
            for j in range(vectors * VL):
                dot_total[j] += lane[j]


cdef inline Py_ssize_t sum_columns(ColumnSum kind, Py_ssize_t first, Py_ssize_t stop, Py_ssize_t n, Py_ssize_t batch,
                                   const real* x, Py_ssize_t x_row, const real* mean, const real* stats,
                                   const real* dy, Py_ssize_t dy_row, double* total, double* dot_total) noexcept nogil:
    """The sums of the columns from `first` on, before `stop`, over the batch: of how many, up to SUM_VECTORS * VL.

    x (batch, n), mean, dy: those of column 0. x and dy are read once; the order of a sum is that of the rows, in double
    from block to block of SUM_ROWS.
    """
    if first + SUM_VECTORS * VL <= smaller(n, stop):
        sum_vectors(kind, SUM_VECTORS, VL, batch, x + first, x_row, mean + first, stats, dy + first, dy_row, total,
                    dot_total)
        return SUM_VECTORS * VL
    sum_vectors(kind, 1, smaller(n - first, VL), batch, x + first, x_row, mean + first, stats, dy + first, dy_row,
                total, dot_total)
    return VL


cdef inline void write_columns(real* out, Py_ssize_t first, Py_ssize_t columns, Py_ssize_t n,
                               const double* total) noexcept nogil:
    """out[first] and following = total, zeros from column n on. out may be NULL."""
    cdef Py_ssize_t j
    if out != NULL:
        for j in range(columns):
            out[first + j] = <real>total[j] if first + j < n else 0


cdef void layer_norm_weight_sums(Py_ssize_t batch, Py_ssize_t first, Py_ssize_t columns, Py_ssize_t n, const real* x,
                                 Py_ssize_t x_row, const real* stats, const real* dy, Py_ssize_t dy_row, real* dweight,
                                 real* dbias) noexcept nogil:
    """dweight = sum of dy xhat, dbias = sum of dy over the batch. Either may be NULL.

    x, dy (batch, n), stats (batch, 2), dweight, dbias (n,). 4 FLOPs an element; x and dy are read once.
    """
    cdef double[SUM_COLUMNS] total
    cdef double[SUM_COLUMNS] dot_total
    cdef Py_ssize_t done, j = first
    while j < first + columns and j < n:
        done = sum_columns(SUM_ROW_GRADIENTS, j, first + columns, n, batch, x, x_row, x, stats, dy, dy_row, total,
                           dot_total)
        write_columns(dweight, j, done, n, dot_total)
        write_columns(dbias, j, done, n, total)
        j += done


cdef void batch_norm_statistics(Py_ssize_t batch, Py_ssize_t first, Py_ssize_t columns, Py_ssize_t n, real eps,
                                const real* x, Py_ssize_t x_row, real* mean, real* rstd, real* var) noexcept nogil:
    """mean, var = sum((x - mean)**2) / batch and rstd = 1 / sqrt(var + eps) of each column.

    x (batch, n), mean, rstd, var (n,). Two passes over x, 4 FLOPs an element.
    """
    cdef double[SUM_COLUMNS] total
    cdef double[SUM_COLUMNS] unused
    cdef Py_ssize_t i, done, j = first
    while j < first + columns and j < n:
        done = sum_columns(SUM_VALUES, j, first + columns, n, batch, x, x_row, mean, NULL, x, 0, total, unused)
        for i in range(done):
            total[i] /= batch
        write_columns(mean, j, done, n, total)
        sum_columns(SUM_SQUARES, j, first + columns, n, batch, x, x_row, mean, NULL, x, 0, total, unused)
        for i in range(done):
            total[i] /= batch
        write_columns(var, j, done, n, total)
        for i in range(done):
            total[i] = 1 / sqrt(total[i] + eps)
        write_columns(rstd, j, done, n, total)
        j += done


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
    cdef double[SUM_COLUMNS] total
    cdef double[SUM_COLUMNS] dot_total
    cdef Py_ssize_t i, done, j = first
    while j < first + columns and j < n:
        done = sum_columns(SUM_GRADIENTS, j, first + columns, n, batch, x, x_row, mean, NULL, dy, dy_row, total,
                           dot_total)
        for i in range(done):
            dot_total[i] *= rstd[j + i]
        write_columns(dweight, j, done, n, dot_total)
        write_columns(dbias, j, done, n, total)
        j += done


cdef inline vf batch_norm_slope(bint batch_statistics, vf x, vf dy, vf share, const real* mean, const real* rstd,
                                const real* weight, const real* dweight, const real* dbias,
                                Py_ssize_t j) noexcept nogil:
    """The gradient of x, in the columns from j on; share is 1 / batch."""
    cdef vf scale = vf_load(rstd + j)
    if batch_statistics:
        x = (x - vf_load(mean + j)) * scale
        dy = vf_fma(-share, vf_fma(x, vf_load(dweight + j), vf_load(dbias + j)), dy)
    return weighted(dy * scale, weight, j)


cdef void batch_norm_backward_rows(Py_ssize_t rows, Py_ssize_t n, Py_ssize_t batch, bint batch_statistics,
                                   const real* x, Py_ssize_t x_row, const real* mean, const real* rstd,
                                   const real* weight, const real* dweight, const real* dbias, const real* dy,
                                   Py_ssize_t dy_row, real* dx, Py_ssize_t dx_row) noexcept nogil:
    """dx = weight rstd (dy - (dbias + xhat dweight) / batch), or weight rstd dy with running statistics.

    x, dy, dx (rows, n); dx may be dy; dweight and dbias are the sums over the whole batch, of which these are `rows`.
    7 FLOPs an element.
    """
    cdef Py_ssize_t i, j, last = (n - 1) // VL * VL, rest = n - last
    cdef vf end, share = vf_set(<real>(1.0 / batch))
    for i in range(rows):
        for j from 0 <= j < last by VL:
            vf_store(dx + j, batch_norm_slope(batch_statistics, vf_load(x + j), vf_load(dy + j), share, mean, rstd,
                                              weight, dweight, dbias, j))
        end = batch_norm_slope(batch_statistics, vf_load_first(x + last, rest), vf_load(dy + last), share, mean, rstd,
                               weight, dweight, dbias, last)
        vf_store(dx + last, vf_first(end, rest, vf_set(0)))
        x += x_row
        dy += dy_row
        dx += dx_row
