# PReLU (He, Zhang, Ren and Sun, 2015): y = x for x > 0, else w x; f'(0) = w, as PyTorch's. x, y (batch, n); w (n,), or
# one number for all columns. The derivatives are those of leaky_relu, with w as its parameter.

cdef int prelu_place(Network* net, Op* op, dict spec) except -1:
    op.work = op.n_out
    op.columns = spec["weight"]
    op.row = round_up(op.columns, VL)
    op.has_weight = True
    op.weight = op.bias = net.n_block
    net.n_block += op.row
    return 0


cdef inline vf slopes(const Op* op, const real* w, Py_ssize_t j) noexcept nogil:
    """Those of the columns from j on."""
    return vf_set(w[0]) if op.columns == 1 else vf_load(w + j)


cdef inline vf columns_of(const Op* op, const real* x, Py_ssize_t j) noexcept nogil:
    """x from column j on, zeros behind its last."""
    return vf_load_first(x + j, smaller(VL, op.n_out - j))


cdef void prelu_forward(const Chunk* c, const Op* op) noexcept nogil:
    cdef const real* w = weight_of(c.net, op)
    cdef const real* x = source(c, op.src)
    cdef real* y = output(c, op)
    cdef vf value
    cdef Py_ssize_t i, j
    for i in range(c.batch):
        for j from 0 <= j < op.n_out by VL:
            value = leaky_relu_value(columns_of(op, x, j), slopes(op, w, j))
            vf_store(y + j, inside(value, j, op.n_out))
        x += source_row(c, op.src)
        y += row_size(c, op)


cdef void prelu_backward(const Chunk* c, const Op* op) noexcept nogil:
    """dx = dy f'(x)."""
    cdef const real* w = weight_of(c.net, op)
    cdef const real* x = source(c, op.src)
    cdef const real* dy = output_gradient(c, op)
    cdef real* dx
    cdef vf value
    cdef Py_ssize_t i, j
    if not wants_gradient(c, op.src):
        return
    dx = gradient_room(c, op)
    for i in range(c.batch):
        for j from 0 <= j < op.n_out by VL:
            value = leaky_relu_backward(vf_load(dy + j), True, columns_of(op, x, j), slopes(op, w, j))
            vf_store(dx + j, inside(value, j, op.n_out))
        x += source_row(c, op.src)
        dy += row_size(c, op)
        dx += c.net.buffers[op.src].row
    gradient_done(c, op)


cdef inline vf slopes_tangent(const Chunk* c, const Op* op, Py_ssize_t j) noexcept nogil:
    """w' of the columns from j on."""
    return slopes(op, c.t.params + op.weight, j) if c.t.parameters else vf_set(0)


cdef void prelu_tangent(const Chunk* c, const Op* op) noexcept nogil:
    """y' = f'(x) x' + w' min(x, 0)."""
    cdef const real* w = weight_of(c.net, op)
    cdef const real* x = source(c, op.src)
    cdef const real* x_t = row_of(c.t.value, c.net, op.src, c.first)
    cdef real* y_t = row_of(c.t.value, c.net, op.dst, c.first)
    cdef vf z, value
    cdef Py_ssize_t i, j
    for i in range(c.batch):
        for j from 0 <= j < op.n_out by VL:
            z = columns_of(op, x, j)
            value = leaky_relu_backward(vf_load(x_t + j), True, z, slopes(op, w, j))
            value = vf_fma(slopes_tangent(c, op, j), vf_min(number(0), z), value)
            vf_store(y_t + j, inside(value, j, op.n_out))
        x += source_row(c, op.src)
        x_t += c.net.buffers[op.src].row
        y_t += row_size(c, op)


cdef void prelu_second(const Chunk* c, const Op* op) noexcept nogil:
    """dx = dy f'(x), dx' = dy' f'(x) + (dy w' where x <= 0), and the rows' part of
    dw' = sum of dy' min(x, 0) + (dy x' where x <= 0)."""
    cdef const real* w = weight_of(c.net, op)
    cdef const real* x = source(c, op.src)
    cdef const real* x_t = row_of(c.t.value, c.net, op.src, c.first)
    cdef const real* dy = output_gradient(c, op)
    cdef const real* dy_t = row_of(c.t.grad, c.net, op.dst, c.first)
    cdef real* dx = row_of(c.ws.grad, c.net, op.src, c.first)
    cdef real* dx_t = row_of(c.t.grad, c.net, op.src, c.first)
    cdef real* dw = c.t.grads + op.weight
    cdef Py_ssize_t i, j, row = c.net.buffers[op.src].row
    cdef vf z, g, g_t, left, part
    for i in range(c.batch):
        for j from 0 <= j < op.n_out by VL:
            z = columns_of(op, x, j)
            g = vf_load(dy + j)
            g_t = vf_load(dy_t + j)
            left = vf_select_gt(z, number(0), number(0), g)
            part = inside(vf_fma(g_t, vf_min(number(0), z), left * vf_load(x_t + j)), j, op.n_out)
            if op.columns == 1:
                dw[0] += vf_sum(part, VL)
            else:
                vf_store(dw + j, vf_load(dw + j) + part)
            g_t = vf_fma(left, slopes_tangent(c, op, j), leaky_relu_backward(g_t, True, z, slopes(op, w, j)))
            g = leaky_relu_backward(g, True, z, slopes(op, w, j))
            vf_store(dx + j, joined(op.adds[0], dx + j, inside(g, j, op.n_out)))
            vf_store(dx_t + j, joined(op.adds[0], dx_t + j, inside(g_t, j, op.n_out)))
        x += source_row(c, op.src)
        x_t += row
        dy += row_size(c, op)
        dy_t += row_size(c, op)
        dx += row
        dx_t += row


cdef void prelu_weight_gradient(const Pass* p, const Op* op, Py_ssize_t first, Py_ssize_t columns, const real* x,
                                Py_ssize_t x_row, real* sums) noexcept nogil:
    """dw = sum of dy min(x, 0) over the batch, in the order of the rows; of one w, over the columns then."""
    cdef double[SUM_COLUMNS] total
    cdef real[SUM_COLUMNS] lane
    cdef double all_columns = 0
    cdef const real* dy = p.ws.grad[op.dst]
    cdef Py_ssize_t dy_row = p.net.buffers[op.dst].row, i, j, l
    cdef Py_ssize_t end = op.n_out if op.columns == 1 else smaller(first + columns, op.n_out)
    cdef vf part
    memset(sums, 0, 2 * columns * sizeof(real))
    for j from first <= j < end by VL:
        memset(total, 0, sizeof(total))
        for i from 0 <= i < p.batch.rows by SUM_ROWS:
            part = vf_set(0)
            for l in range(i, smaller(i + SUM_ROWS, p.batch.rows)):
                part = vf_fma(vf_load(dy + l * dy_row + j), vf_min(number(0), columns_of(op, x + l * x_row, j)), part)
            vf_store(lane, part)
            add_lanes(VL, lane, total)
        if op.columns == 1:
            for l in range(smaller(VL, op.n_out - j)):
                all_columns += total[l]
            sums[0] = <real>all_columns
        else:
            write_columns(sums - first, j, VL, op.n_out, total)
    use_norm_gradient(p, op, first, columns, sums)


cdef OpMethods PRELU = plain_op("prelu")
PRELU.place = prelu_place
PRELU.forward = prelu_forward
PRELU.backward = prelu_backward
PRELU.tangent = prelu_tangent
PRELU.second = prelu_second
PRELU.pieces = norm_pieces
PRELU.weight_gradient = prelu_weight_gradient
define(&PRELU)
