# Add: y = a + b + ..., going back da = dy, db = dy, ... All (batch, n).

cdef void add_forward(const Chunk* c, const Op* op) noexcept nogil:
    cdef int s
    for s in range(op.n_src):
        add_rows(c.batch, round_up(op.n_out, VL), source(c, op.srcs[s]), source_row(c, op.srcs[s]), s > 0,
                 output(c, op), row_size(c, op))


cdef void add_backward(const Chunk* c, const Op* op) noexcept nogil:
    """da = dy, for each source."""
    cdef int s
    for s in range(op.n_src):
        if wants_gradient(c, op.srcs[s]):
            add_rows(c.batch, round_up(op.n_out, VL), output_gradient(c, op), row_size(c, op), op.adds[s],
                     row_of(c.ws.grad, c.net, op.srcs[s], c.first), c.net.buffers[op.srcs[s]].row)


cdef void add_tangent(const Chunk* c, const Op* op) noexcept nogil:
    cdef Workspace ws
    cdef Chunk along = of_tangents(c, &ws)
    add_forward(&along, op)


cdef void add_second(const Chunk* c, const Op* op) noexcept nogil:
    cdef Workspace ws
    cdef Chunk along = of_tangents(c, &ws)
    add_backward(c, op)
    add_backward(&along, op)


cdef OpMethods ADD = merge_op("add")
ADD.forward = add_forward
ADD.backward = add_backward
ADD.tangent = add_tangent
ADD.second = add_second
define(&ADD)
