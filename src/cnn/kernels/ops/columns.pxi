# Columns: y = x[:, start:stop]; going back dx = dy in these columns, else 0. x (batch, n_in), y (batch, n_out).

cdef int columns_place(Network* net, Op* op, dict spec) except -1:
    op.start = spec["start"]
    op.work = op.n_out
    if not 0 <= op.start <= op.n_in - op.n_out:
        raise ValueError(f"op {op.index}: expected columns of {op.n_in}, got {op.n_out} from {op.start} on")
    return 0


cdef void columns_forward(const Chunk* c, const Op* op) noexcept nogil:
    add_columns(c.batch, op.n_out, source(c, op.src) + op.start, source_row(c, op.src), False, output(c, op),
                row_size(c, op))


cdef void columns_backward(const Chunk* c, const Op* op) noexcept nogil:
    cdef real* dx = row_of(c.ws.grad, c.net, op.src, c.first)
    cdef Py_ssize_t dx_row = c.net.buffers[op.src].row
    if wants_gradient(c, op.src):
        if not op.adds[0]:
            fill_rows(c.batch, round_up(op.n_in, VL), NULL, dx, dx_row)
        add_columns(c.batch, op.n_out, output_gradient(c, op), row_size(c, op), op.adds[0], dx + op.start, dx_row)


cdef void columns_tangent(const Chunk* c, const Op* op) noexcept nogil:
    cdef Workspace ws
    cdef Chunk along = of_tangents(c, &ws)
    columns_forward(&along, op)


cdef void columns_second(const Chunk* c, const Op* op) noexcept nogil:
    cdef Workspace ws
    cdef Chunk along = of_tangents(c, &ws)
    columns_backward(c, op)
    columns_backward(&along, op)


cdef OpMethods COLUMNS_OP = plain_op("columns")
COLUMNS_OP.place = columns_place
COLUMNS_OP.forward = columns_forward
COLUMNS_OP.backward = columns_backward
COLUMNS_OP.tangent = columns_tangent
COLUMNS_OP.second = columns_second
define(&COLUMNS_OP)
