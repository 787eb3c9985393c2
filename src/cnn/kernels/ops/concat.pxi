# Concat: y = (a, b, ...), the columns of the sources one after the other; a (batch, n_a), y (batch, n_a + n_b + ...).

cdef void concat_forward(const Chunk* c, const Op* op) noexcept nogil:
    cdef real* y = output(c, op)
    cdef int s
    for s in range(op.n_src):
        add_columns(c.batch, c.net.buffers[op.srcs[s]].width, source(c, op.srcs[s]), source_row(c, op.srcs[s]), False,
                    y, row_size(c, op))
        y += c.net.buffers[op.srcs[s]].width


cdef void concat_backward(const Chunk* c, const Op* op) noexcept nogil:
    cdef const real* dy = output_gradient(c, op)
    cdef const Buffer* a
    cdef int s
    for s in range(op.n_src):
        a = &c.net.buffers[op.srcs[s]]
        if wants_gradient(c, op.srcs[s]):
            add_columns(c.batch, a.width, dy, row_size(c, op), op.adds[s],
                        row_of(c.ws.grad, c.net, op.srcs[s], c.first), a.row)
        dy += a.width


cdef void concat_tangent(const Chunk* c, const Op* op) noexcept nogil:
    cdef Workspace ws
    cdef Chunk along = of_tangents(c, &ws)
    concat_forward(&along, op)


cdef void concat_second(const Chunk* c, const Op* op) noexcept nogil:
    cdef Workspace ws
    cdef Chunk along = of_tangents(c, &ws)
    concat_backward(c, op)
    concat_backward(&along, op)


cdef OpMethods CONCAT = merge_op("concat")
CONCAT.forward = concat_forward
CONCAT.backward = concat_backward
CONCAT.tangent = concat_tangent
CONCAT.second = concat_second
define(&CONCAT)
