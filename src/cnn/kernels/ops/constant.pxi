# Constant: y = b, whatever x is. b (n,), y (batch, n).

cdef int constant_place(Network* net, Op* op, dict spec) except -1:
    op.work = op.n_out
    op.row = round_up(op.n_out, VL)
    op.has_bias = True
    op.weight = op.bias = net.n_block
    net.n_block += op.row
    return 0


cdef void fill_rows(Py_ssize_t rows, Py_ssize_t n, const real* a, real* y, Py_ssize_t y_row) noexcept nogil:
    """y = a in each row, or zeros where a is NULL; n is a multiple of VL."""
    cdef Py_ssize_t i
    if a != NULL:
        add_rows(rows, n, a, 0, False, y, y_row)
    else:
        for i in range(rows):
            memset(y + i * y_row, 0, n * sizeof(real))


cdef void constant_forward(const Chunk* c, const Op* op) noexcept nogil:
    fill_rows(c.batch, op.row, bias_of(c.net, op), output(c, op), row_size(c, op))


cdef void constant_backward(const Chunk* c, const Op* op) noexcept nogil:
    """dx = 0: nothing is added to what others have left."""
    if wants_gradient(c, op.src) and not op.adds[0]:
        fill_rows(c.batch, round_up(op.n_in, VL), NULL, row_of(c.ws.grad, c.net, op.src, c.first),
                  c.net.buffers[op.src].row)


cdef void constant_tangent(const Chunk* c, const Op* op) noexcept nogil:
    """y' = b'."""
    fill_rows(c.batch, op.row, c.t.params + op.bias if c.t.parameters else NULL,
              row_of(c.t.value, c.net, op.dst, c.first), row_size(c, op))


cdef void constant_second(const Chunk* c, const Op* op) noexcept nogil:
    """dx' = 0, and the rows' part of db' = sum of dy'."""
    cdef const real* dy_t = row_of(c.t.grad, c.net, op.dst, c.first)
    cdef Py_ssize_t i
    constant_backward(c, op)
    if not op.adds[0]:
        fill_rows(c.batch, round_up(op.n_in, VL), NULL, row_of(c.t.grad, c.net, op.src, c.first),
                  c.net.buffers[op.src].row)
    for i in range(c.batch):
        add_rows(1, op.row, dy_t + i * row_size(c, op), 0, True, c.t.grads + op.bias, 0)


cdef void constant_weight_gradient(const Pass* p, const Op* op, Py_ssize_t first, Py_ssize_t columns, const real* x,
                                   Py_ssize_t x_row, real* sums) noexcept nogil:
    """db = sum of dy over the batch, in the order of the rows."""
    cdef double[SUM_COLUMNS] total
    cdef double[SUM_COLUMNS] unused
    cdef const real* dy = p.ws.grad[op.dst]
    cdef Py_ssize_t dy_row = p.net.buffers[op.dst].row, j = first, done
    memset(sums, 0, 2 * columns * sizeof(real))
    while j < first + columns and j < op.n_out:
        # the first half of sums, zeros, is what the sums are taken from
        done = sum_columns(SUM_VALUES, j, first + columns, op.n_out, p.batch.rows, dy, dy_row, sums - first, NULL, dy,
                           dy_row, total, unused)
        write_columns(sums + columns - first, j, done, op.n_out, total)
        j += done
    use_norm_gradient(p, op, first, columns, sums)


cdef OpMethods CONSTANT = plain_op("constant")
CONSTANT.place = constant_place
CONSTANT.forward = constant_forward
CONSTANT.backward = constant_backward
CONSTANT.tangent = constant_tangent
CONSTANT.second = constant_second
CONSTANT.pieces = norm_pieces
CONSTANT.weight_gradient = constant_weight_gradient
define(&CONSTANT)
