# Activation: y = act(x), where it does not follow a linear op, whose part it would be. x, y (batch, n).

cdef void activation_op_forward(const Chunk* c, const Op* op) noexcept nogil:
    activate_rows(op.act, op.param, c.batch, op.n_out, source(c, op.src), source_row(c, op.src), output(c, op),
                  row_size(c, op))


cdef void activation_op_backward(const Chunk* c, const Op* op) noexcept nogil:
    if wants_gradient(c, op.src):
        activate_backward_rows(op.act, op.param, op.keeps_input, c.batch, op.n_out, output_gradient(c, op),
                               row_size(c, op), kept(c, op), kept_row(c, op), gradient_room(c, op),
                               c.net.buffers[op.src].row)
        gradient_done(c, op)


cdef void activation_op_tangent(const Chunk* c, const Op* op) noexcept nogil:
    """y' = f'(x) x'."""
    activate_backward_rows(op.act, op.param, op.keeps_input, c.batch, op.n_out,
                           row_of(c.t.value, c.net, op.src, c.first), c.net.buffers[op.src].row, kept(c, op),
                           kept_row(c, op), row_of(c.t.value, c.net, op.dst, c.first), row_size(c, op))


cdef void activation_op_second(const Chunk* c, const Op* op) noexcept nogil:
    """In place: the gradient of the output is not needed again."""
    activate_second_rows(op.act, op.param, op.keeps_input, c.batch, op.n_out, output_gradient(c, op),
                         row_of(c.t.grad, c.net, op.dst, c.first), row_size(c, op), kept(c, op), kept_row(c, op),
                         row_of(c.t.value, c.net, op.src, c.first), c.net.buffers[op.src].row)
    pass_gradients_on(c, op)


cdef void pass_gradients_on(const Chunk* c, const Op* op) noexcept nogil:
    """The gradient of the output, and its tangent, are those of the source."""
    cdef Py_ssize_t row = row_size(c, op), x_row = c.net.buffers[op.src].row, n = round_up(op.n_out, VL)
    add_rows(c.batch, n, output_gradient(c, op), row, op.adds[0], row_of(c.ws.grad, c.net, op.src, c.first), x_row)
    add_rows(c.batch, n, row_of(c.t.grad, c.net, op.dst, c.first), row, op.adds[0],
             row_of(c.t.grad, c.net, op.src, c.first), x_row)


cdef void activation_op_jet(const Chunk* c, const Op* op) noexcept nogil:
    activate_jet(c, op, c.ws.value[op.src], c.ws.value[op.dst])


cdef void activation_op_jet_backward(const Chunk* c, const Op* op) noexcept nogil:
    """In place, as `activation_op_second`."""
    cdef Py_ssize_t row = row_size(c, op)
    activate_jet_backward(c, op, c.ws.value[op.src], c.ws.value[op.dst], c.ws.grad[op.dst])
    add_rows(c.jets.parts * c.batch, round_up(op.n_out, VL), c.ws.grad[op.dst], row, op.adds[0], c.ws.grad[op.src], row)


cdef OpMethods ACTIVATION = plain_op("activation")
ACTIVATION.forward = activation_op_forward
ACTIVATION.backward = activation_op_backward
ACTIVATION.tangent = activation_op_tangent
ACTIVATION.second = activation_op_second
ACTIVATION.jet = activation_op_jet
ACTIVATION.jet_backward = activation_op_jet_backward
ACTIVATION.single = True
define(&ACTIVATION)
