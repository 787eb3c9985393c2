# Layer normalisation (Ba, Kiros and Hinton, 2016): mean and variance are those of the row. What it keeps for each row
# are the mean and 1 / sqrt(var + eps).

cdef void layer_norm_rows(Py_ssize_t rows, Py_ssize_t n, real eps, const real* x, Py_ssize_t x_row, const real* weight,
                          const real* bias, real* y, Py_ssize_t y_row, real* stats) noexcept nogil:
    """y = xhat weight + bias, with mean and variance of each row; stats[2 i], [2 i + 1] = mean, 1 / sqrt(var + eps).

    x, y (rows, n), weight, bias (n,), stats (rows, 2). Two passes for the statistics, one for y, over a row in L1:
    8 FLOPs an element. The first sums the distances to the row's first number, so that nothing is lost where the mean
    is far from zero.
    """
    cdef Py_ssize_t i, j, last = (n - 1) // VL * VL, rest = n - last
    cdef vf sums, d, end, mean, rstd
    for i in range(rows):
        mean = vf_set(x[0])
        end = vf_load_first(x + last, rest)
        sums = vf_first(end - mean, rest, vf_set(0))
        for j from 0 <= j < last by VL:
            sums = sums + (vf_load(x + j) - mean)
        stats[0] = x[0] + vf_sum(sums, VL) / <real>n
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


# The op's row of the table --------------------------------------------------------------------------------------------

cdef int layer_norm_place(Network* net, Op* op, dict spec) except -1:
    norm_place(net, op, spec)
    return 0


cdef Py_ssize_t layer_norm_extra(const Op* op, Py_ssize_t batch) noexcept nogil:
    return 2 * batch


cdef inline real* row_statistics(const Chunk* c, const Op* op) noexcept nogil:
    return c.ws.extra[op.index] + 2 * c.first


cdef void layer_norm_forward(const Chunk* c, const Op* op) noexcept nogil:
    layer_norm_rows(c.batch, op.n_out, op.param, source(c, op.src), source_row(c, op.src), weight_of(c.net, op),
                    bias_of(c.net, op), output(c, op), row_size(c, op), row_statistics(c, op))


cdef void layer_norm_backward(const Chunk* c, const Op* op) noexcept nogil:
    if wants_gradient(c, op.src):
        layer_norm_backward_rows(c.batch, op.n_out, source(c, op.src), source_row(c, op.src), weight_of(c.net, op),
                                 row_statistics(c, op), output_gradient(c, op), row_size(c, op), gradient_room(c, op),
                                 c.net.buffers[op.src].row)
        gradient_done(c, op)


cdef void layer_norm_tangent(const Chunk* c, const Op* op) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(c.batch):
        norm_tangent_row(True, c.net, c.t, op, row_statistics(c, op) + 2 * i,
                         source(c, op.src) + i * source_row(c, op.src),
                         row_of(c.t.value, c.net, op.src, c.first + i), row_of(c.t.value, c.net, op.dst, c.first + i))


cdef void layer_norm_second(const Chunk* c, const Op* op) noexcept nogil:
    cdef Py_ssize_t i, at
    for i in range(c.batch):
        at = c.first + i
        norm_second_row(True, c.net, c.t, op, row_statistics(c, op) + 2 * i,
                        source(c, op.src) + i * source_row(c, op.src), row_of(c.t.value, c.net, op.src, at),
                        row_of(c.ws.grad, c.net, op.dst, at), row_of(c.t.grad, c.net, op.dst, at), op.adds[0],
                        row_of(c.ws.grad, c.net, op.src, at), row_of(c.t.grad, c.net, op.src, at))


cdef void layer_norm_weight_gradient(const Pass* p, const Op* op, Py_ssize_t first, Py_ssize_t columns, const real* x,
                                     Py_ssize_t x_row, real* sums) noexcept nogil:
    layer_norm_weight_sums(p.batch.rows, first, columns, op.n_out, x, x_row, p.ws.extra[op.index], p.ws.grad[op.dst],
                           p.net.buffers[op.dst].row, sums - first, sums + columns - first)
    use_norm_gradient(p, op, first, columns, sums)


# Jets of a row: a = x - mean(x); v = mean(a**2) + eps; r = v**(-1/2), a function of one number as an activation is;
# xhat = r a, a product of jets. Numbers are rows of equal numbers, and scratch is a, r (of which v is made), xhat and
# room for gradients, (parts, n) each.

cdef void layer_norm_jet_row(const Chunk* c, const Op* op, const real* x, Py_ssize_t part) noexcept nogil:
    """xhat, in the third part of the scratch."""
    cdef const Jets* q = c.jets
    cdef Py_ssize_t n = op.n_out, row = round_up(n, VL), all_parts = q.parts * row, j, k, s
    cdef real* a = q.scratch
    cdef real* r = a + all_parts
    cdef real* xhat = r + all_parts
    cdef double v_0, v_s, squares, dots
    cdef real share = <real>1 / <real>n
    fill_row(n, 1, xhat)
    for k in range(q.parts):
        v_0 = share * sum_of(n, xhat, x + k * part)
        for j from 0 <= j < n by VL:
            vf_store(a + k * row + j, inside(vf_load(x + k * part + j) - vf_set(<real>v_0), j, n))
    v_0 = 1 / sqrt(share * <double>sum_of(n, a, a) + op.param)
    fill_row(n, <real>v_0, r)
    for s in range(q.seconds):
        squares, dots = 0, share * <double>sum_of(n, a, a + second_part(q, s) * row)
        for k in range(1 + s * q.each, 1 + (s + 1) * q.each):
            v_s = 2 * share * <double>sum_of(n, a, a + k * row)
            squares += v_s * v_s
            dots += share * <double>sum_of(n, a + k * row, a + k * row)
        fill_row(n, <real>(v_0 * v_0 * v_0 * (0.75 * v_0 * v_0 * squares - dots)), r + second_part(q, s) * row)
    for k in range(1, 1 + q.inputs):
        fill_row(n, <real>(-v_0 * v_0 * v_0 * share * sum_of(n, a, a + k * row)), r + k * row)
    add_rows(q.parts, row, a, row, False, xhat, row)
    times_jet(q, row, r, row, xhat, row)


cdef void layer_norm_jet(const Chunk* c, const Op* op) noexcept nogil:
    cdef Py_ssize_t row = round_up(op.n_out, VL), part = c.batch * row_size(c, op), i, j, k
    cdef const real* xhat = c.jets.scratch + 2 * c.jets.parts * row
    cdef const real* bias
    cdef real* y
    for i in range(c.batch):
        layer_norm_jet_row(c, op, row_of(c.ws.value, c.net, op.src, i), part)
        y = row_of(c.ws.value, c.net, op.dst, i)
        bias = bias_of(c.net, op)
        for k in range(c.jets.parts):
            for j from 0 <= j < row by VL:
                vf_store(y + k * part + j, inside(scaled(vf_load(xhat + k * row + j), weight_of(c.net, op), bias, j), j,
                                                  op.n_out))
            bias = NULL


cdef void layer_norm_jet_backward(const Chunk* c, const Op* op) noexcept nogil:
    """With r the function v**(-1/2): r' = -r**3 / 2, r'' = 3 r**5 / 4, r''' = -15 r**7 / 8."""
    cdef const Jets* q = c.jets
    cdef Py_ssize_t n = op.n_out, row = round_up(n, VL), all_parts = q.parts * row, part = c.batch * row_size(c, op)
    cdef Py_ssize_t i, j, k, s
    cdef real* a = q.scratch
    cdef real* r = a + all_parts
    cdef real* xhat = r + all_parts
    cdef real* g = xhat + all_parts
    cdef real* dx
    cdef const real* dy
    cdef double r_0, r_1, r_2, r_3, v_k, v_s, squares, total, d_s
    cdef real share = <real>1 / <real>n
    for i in range(c.batch):
        layer_norm_jet_row(c, op, row_of(c.ws.value, c.net, op.src, i), part)
        dy = row_of(c.ws.grad, c.net, op.dst, i)
        dx = row_of(c.ws.grad, c.net, op.src, i)
        for k in range(q.parts):
            for j from 0 <= j < row by VL:
                vf_store(g + k * row + j, weighted(vf_load(dy + k * part + j), weight_of(c.net, op), j))
                if op.has_weight:
                    vf_store(c.t.grads + op.weight + j, vf_fma(vf_load(dy + k * part + j), vf_load(xhat + k * row + j),
                                                               vf_load(c.t.grads + op.weight + j)))
                if op.has_bias and k == 0:
                    vf_store(c.t.grads + op.bias + j, vf_load(c.t.grads + op.bias + j) + vf_load(dy + j))
        # dr, the sums of a product with a, takes the place of xhat; da that of g
        times_jet_backward(q, row, a, row, g, row, False, xhat, row)
        times_jet_backward(q, row, r, row, g, row, False, g, row)
        r_0 = r[0]
        r_1, r_2, r_3 = -r_0**3 / 2, 3 * r_0**5 / 4, -15 * r_0**7 / 8
        fill_row(n, 1, r)
        for k in range(q.parts):
            xhat[k * row] = sum_of(n, r, xhat + k * row)
        total = r_1 * xhat[0]
        for k in range(1, 1 + q.inputs):
            total += r_2 * 2 * share * sum_of(n, a, a + k * row) * xhat[k * row]
        # the gradient of v, times the 2 / n of its own, in place of r
        for s in range(larger(1, q.seconds)):
            d_s = xhat[second_part(q, s) * row] if q.seconds else 0
            squares = v_s = 0
            for k in range(1 + s * q.each, 1 + (s + 1) * q.each):
                v_k = 2 * share * sum_of(n, a, a + k * row)
                squares += v_k * v_k
                v_s += 2 * share * sum_of(n, a + k * row, a + k * row)
                fill_row(n, <real>(2 * share * (r_1 * xhat[k * row] + 2 * r_2 * v_k * d_s)), r + k * row)
            if q.seconds:
                v_s += 2 * share * sum_of(n, a, a + second_part(q, s) * row)
                total += (r_3 * squares + r_2 * v_s) * d_s
                fill_row(n, <real>(2 * share * r_1 * d_s), r + second_part(q, s) * row)
        fill_row(n, <real>(2 * share * total), r)
        times_jet_backward(q, row, a, row, r, row, True, g, row)
        fill_row(n, 1, r)
        for k in range(q.parts):
            total = share * sum_of(n, r, g + k * row)
            for j from 0 <= j < row by VL:
                vf_store(dx + k * part + j, joined(op.adds[0], dx + k * part + j,
                                                   inside(vf_load(g + k * row + j) - vf_set(<real>total), j, n)))


cdef OpMethods LAYER_NORM = plain_op("layer_norm")
LAYER_NORM.place = layer_norm_place
LAYER_NORM.extra_size = layer_norm_extra
LAYER_NORM.forward = layer_norm_forward
LAYER_NORM.backward = layer_norm_backward
LAYER_NORM.tangent = layer_norm_tangent
LAYER_NORM.second = layer_norm_second
LAYER_NORM.jet = layer_norm_jet
LAYER_NORM.jet_backward = layer_norm_jet_backward
LAYER_NORM.jet_scratch = True
LAYER_NORM.pieces = norm_pieces
LAYER_NORM.weight_gradient = layer_norm_weight_gradient
define(&LAYER_NORM)
