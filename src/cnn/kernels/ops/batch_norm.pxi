# Batch normalisation (Ioffe and Szegedy, 2015): mean and variance are those of the column, in training of the batch,
# else the running ones. It needs all rows of its input before it gives one of its output, so it cuts the pass into
# phases.

cdef enum:
    STATISTICS = 5          # rows that it keeps: mean, 1 / deviation, variance, sums of dy xhat and of dy


cdef void batch_norm_statistics(Py_ssize_t batch, Py_ssize_t first, Py_ssize_t columns, Py_ssize_t n, real eps,
                                const real* x, Py_ssize_t x_row, real* mean, real* rstd, real* var) noexcept nogil:
    """mean, var = sum((x - mean)**2) / batch and rstd = 1 / sqrt(var + eps) of each column.

    x (batch, n), mean, rstd, var (n,). Two passes over x, 5 FLOPs an element. The first sums the distances to the first
    row, so that the mean of equal numbers is that number; the second corrects for the rounding of the mean.
    """
    cdef double[SUM_COLUMNS] total
    cdef double[SUM_COLUMNS] rounding
    cdef double[SUM_COLUMNS] unused
    cdef Py_ssize_t i, done, j = first
    for i in range(first, first + columns):
        mean[i] = x[i] if i < n else 0
    while j < first + columns and j < n:
        done = sum_columns(SUM_VALUES, j, first + columns, n, batch, x, x_row, mean, NULL, x, 0, total, unused)
        for i in range(done):
            rounding[i] = total[i] / batch + mean[j + i]
        write_columns(mean, j, done, n, rounding)
        for i in range(done):
            rounding[i] -= mean[j + i]
        sum_columns(SUM_SQUARES, j, first + columns, n, batch, x, x_row, mean, NULL, x, 0, total, unused)
        for i in range(done):
            total[i] = total[i] / batch - rounding[i] * rounding[i]
            if total[i] < 0:
                total[i] = 0
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


cdef inline vf batch_norm_derivative(bint batch_statistics, vf x, vf dy, vf share, const real* mean, const real* rstd,
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
            vf_store(dx + j, batch_norm_derivative(batch_statistics, vf_load(x + j), vf_load(dy + j), share, mean, rstd,
                                                   weight, dweight, dbias, j))
        end = batch_norm_derivative(batch_statistics, vf_load_first(x + last, rest), vf_load(dy + last), share, mean,
                                    rstd, weight, dweight, dbias, last)
        vf_store(dx + last, vf_first(end, rest, vf_set(0)))
        x += x_row
        dy += dy_row
        dx += dx_row


# Between two phases ---------------------------------------------------------------------------------------------------

cdef void batch_norm_sums(const Pass* p, const Op* op, Py_ssize_t first, Py_ssize_t columns) noexcept nogil:
    cdef real* extra = p.ws.extra[op.index]
    cdef Py_ssize_t x_row
    cdef const real* x = pass_input(p, op.src, &x_row)
    batch_norm_statistics(p.batch.rows, first, columns, op.n_out, op.param, x, x_row, extra, extra + op.row,
                          extra + 2 * op.row)


cdef void batch_norm_gradient_sums(const Pass* p, const Op* op, Py_ssize_t first, Py_ssize_t columns) noexcept nogil:
    cdef real* extra = p.ws.extra[op.index]
    cdef Py_ssize_t x_row
    cdef const real* x = pass_input(p, op.src, &x_row)
    batch_norm_backward_sums(p.batch.rows, first, columns, op.n_out, x, x_row, extra, extra + op.row,
                             p.ws.grad[op.dst], p.net.buffers[op.dst].row, extra + 3 * op.row, extra + 4 * op.row)


cdef void batch_norm_shard_moments(const Pass* p, const Op* op, double* moments) noexcept nogil:
    """The mean of each column, and `row` further the sum of (x - mean)**2: as `batch_norm_statistics`, in double."""
    cdef real* guess = p.ws.extra[op.index]
    cdef double[SUM_COLUMNS] total
    cdef double[SUM_COLUMNS] unused
    cdef Py_ssize_t i, j = 0, done, x_row, batch = p.batch.rows, n = op.n_out
    cdef const real* x = pass_input(p, op.src, &x_row)
    memset(moments, 0, 2 * op.row * sizeof(double))
    if batch == 0:
        return
    for i in range(op.row):
        guess[i] = x[i] if i < n else 0
    while j < n:
        done = sum_columns(SUM_VALUES, j, op.row, n, batch, x, x_row, guess, NULL, x, 0, total, unused)
        for i in range(smaller(done, n - j)):
            moments[j + i] = total[i] / batch + guess[j + i]
        write_columns(guess, j, done, n, moments + j)
        sum_columns(SUM_SQUARES, j, op.row, n, batch, x, x_row, guess, NULL, x, 0, total, unused)
        for i in range(smaller(done, n - j)):
            moments[op.row + j + i] = total[i] - batch * (moments[j + i] - guess[j + i]) ** 2
        j += done


cdef void batch_norm_shard_gradients(const Pass* p, const Op* op, double* sums) noexcept nogil:
    """The sum of dy xhat, and `row` further of dy."""
    cdef const real* mean = p.ws.extra[op.index]
    cdef double[SUM_COLUMNS] total
    cdef double[SUM_COLUMNS] dot_total
    cdef Py_ssize_t i, j = 0, done, x_row, n = op.n_out
    cdef const real* x = pass_input(p, op.src, &x_row)
    memset(sums, 0, 2 * op.row * sizeof(double))
    while j < n:
        done = sum_columns(SUM_GRADIENTS, j, op.row, n, p.batch.rows, x, x_row, mean, NULL, p.ws.grad[op.dst],
                           p.net.buffers[op.dst].row, total, dot_total)
        for i in range(smaller(done, n - j)):
            sums[j + i] = dot_total[i] * mean[op.row + j + i]
            sums[op.row + j + i] = total[i]
        j += done


cdef void batch_norm_take(const Pass* p, const Op* op, bint backward, const double* sums) noexcept nogil:
    """Mean and variance of the columns, or the sums going back, from those of all shards."""
    cdef real* extra = p.ws.extra[op.index]
    cdef Py_ssize_t j
    for j in range(op.n_out):
        if backward:
            extra[3 * op.row + j], extra[4 * op.row + j] = <real>sums[j], <real>sums[op.row + j]
        else:
            extra[j], extra[2 * op.row + j] = <real>sums[j], <real>sums[op.row + j]
            extra[op.row + j] = <real>(1 / sqrt(sums[op.row + j] + op.param))
    for j in range(op.n_out, op.row):
        extra[j] = extra[op.row + j] = extra[2 * op.row + j] = extra[3 * op.row + j] = extra[4 * op.row + j] = 0


cdef inline void towards(Network* net, Py_ssize_t i, double a, double momentum) noexcept nogil:
    """running[i] = running[i] + momentum (a - running[i]), in double from step to step: a float32 number would stop
    moving when it is a few roundings from a. What somebody has written there counts."""
    cdef double r = net.running_exact[i]
    if <real>r != net.running[i]:
        r = net.running[i]
    r += momentum * (a - r)
    net.running_exact[i] = r
    net.running[i] = <real>r


cdef void batch_norm_track(Network* net, Op* op, const real* extra, Py_ssize_t batch) noexcept nogil:
    """running = running + momentum (statistics of the batch - running), the variance with batch - 1."""
    cdef Py_ssize_t j
    cdef double momentum, unbiased = <double>batch / (batch - 1)
    op.tracked[0] += 1
    momentum = op.momentum if op.momentum >= 0 else 1.0 / op.tracked[0]
    for j in range(op.n_out):
        towards(net, op.running + j, extra[j], momentum)
        towards(net, op.running + op.row + j, unbiased * extra[2 * op.row + j], momentum)


cdef void batch_norm_use_running(const Network* net, const Op* op, real* extra) noexcept nogil:
    """In evaluation mode the running statistics are the statistics."""
    cdef const real* mean = net.running + op.running
    cdef Py_ssize_t j
    for j in range(op.n_out):
        extra[j] = mean[j]
        extra[op.row + j] = <real>(1 / sqrt(<double>mean[op.row + j] + op.param))


# The op's row of the table --------------------------------------------------------------------------------------------

cdef int batch_norm_place(Network* net, Op* op, dict spec) except -1:
    norm_place(net, op, spec)
    op.has_running = True
    op.momentum = spec["momentum"]
    op.running = net.n_running
    net.n_running += 2 * op.row
    return 0


cdef Py_ssize_t batch_norm_extra(const Op* op, Py_ssize_t batch) noexcept nogil:
    return STATISTICS * op.row


cdef void batch_norm_forward(const Chunk* c, const Op* op) noexcept nogil:
    cdef const real* mean = c.ws.extra[op.index]
    batch_norm_rows(c.batch, op.n_out, source(c, op.src), source_row(c, op.src), mean, mean + op.row,
                    weight_of(c.net, op), bias_of(c.net, op), output(c, op), row_size(c, op))


cdef void batch_norm_backward(const Chunk* c, const Op* op) noexcept nogil:
    cdef const real* mean = c.ws.extra[op.index]
    if wants_gradient(c, op.src):
        batch_norm_backward_rows(c.batch, op.n_out, c.all_rows, in_training(c.ws, op), source(c, op.src),
                                 source_row(c, op.src), mean, mean + op.row, weight_of(c.net, op),
                                 mean + 3 * op.row, mean + 4 * op.row, output_gradient(c, op), row_size(c, op),
                                 gradient_room(c, op), c.net.buffers[op.src].row)
        gradient_done(c, op)


cdef void batch_norm_tangent(const Chunk* c, const Op* op) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(c.batch):
        norm_tangent_row(False, c.net, c.t, op, c.ws.extra[op.index], source(c, op.src) + i * source_row(c, op.src),
                         row_of(c.t.value, c.net, op.src, c.first + i), row_of(c.t.value, c.net, op.dst, c.first + i))


cdef void batch_norm_second(const Chunk* c, const Op* op) noexcept nogil:
    cdef Py_ssize_t i, at
    for i in range(c.batch):
        at = c.first + i
        norm_second_row(False, c.net, c.t, op, c.ws.extra[op.index], source(c, op.src) + i * source_row(c, op.src),
                        row_of(c.t.value, c.net, op.src, at), row_of(c.ws.grad, c.net, op.dst, at),
                        row_of(c.t.grad, c.net, op.dst, at), op.adds[0], row_of(c.ws.grad, c.net, op.src, at),
                        row_of(c.t.grad, c.net, op.src, at))


cdef void batch_norm_weight_gradient(const Pass* p, const Op* op, Py_ssize_t first, Py_ssize_t columns, const real* x,
                                     Py_ssize_t x_row, real* sums) noexcept nogil:
    cdef const real* extra = p.ws.extra[op.index]
    if in_training(p.ws, op) and p.shards != NULL and not p.shards.head:    # the batch's sums count once
        memset(sums, 0, 2 * columns * sizeof(real))
    elif in_training(p.ws, op):     # they are there already, see batch_norm_gradient_sums
        memcpy(sums, extra + 3 * op.row + first, columns * sizeof(real))
        memcpy(sums + columns, extra + 4 * op.row + first, columns * sizeof(real))
    else:
        batch_norm_backward_sums(p.batch.rows, first, columns, op.n_out, x, x_row, extra, extra + op.row,
                                 p.ws.grad[op.dst], p.net.buffers[op.dst].row, sums - first, sums + columns - first)
    use_norm_gradient(p, op, first, columns, sums)


cdef BatchMethods BATCH_NORM_PHASES
BATCH_NORM_PHASES.sums = batch_norm_sums
BATCH_NORM_PHASES.backward_sums = batch_norm_gradient_sums
BATCH_NORM_PHASES.track = batch_norm_track
BATCH_NORM_PHASES.use_running = batch_norm_use_running
BATCH_NORM_PHASES.shard_moments = batch_norm_shard_moments
BATCH_NORM_PHASES.shard_gradients = batch_norm_shard_gradients
BATCH_NORM_PHASES.take = batch_norm_take

cdef OpMethods BATCH_NORM = plain_op("batch_norm")
BATCH_NORM.place = batch_norm_place
BATCH_NORM.extra_size = batch_norm_extra
BATCH_NORM.forward = batch_norm_forward
BATCH_NORM.backward = batch_norm_backward
BATCH_NORM.tangent = batch_norm_tangent
BATCH_NORM.second = batch_norm_second
BATCH_NORM.pieces = norm_pieces
BATCH_NORM.weight_gradient = batch_norm_weight_gradient
BATCH_NORM.batch = &BATCH_NORM_PHASES
define(&BATCH_NORM)
