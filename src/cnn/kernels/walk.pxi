# The walks: the ops in order, or in reverse, each doing its part for some rows.
#
#     forward     values of all buffers
#     backward    gradients of all buffers, from those of the outputs
#     tangent     derivatives of the values along a direction in the inputs and the parameters; see derivative.pxi
#     second      derivatives of the gradients along it
#     jet         values and their derivatives by the inputs, and back; see jet.pxi

cdef void walk_forward(const Chunk* c, int start, int stop) noexcept nogil:
    """Run ops start .. stop - 1."""
    cdef int i
    for i in range(start, stop):
        c.net.ops[i].does.forward(c, &c.net.ops[i])


cdef void walk_backward(const Chunk* c, int start, int stop) noexcept nogil:
    """Ops start - 1 .. stop, for rows that walk_forward has run."""
    cdef int i
    for i in range(start - 1, stop - 1, -1):
        c.net.ops[i].does.backward(c, &c.net.ops[i])


cdef void walk_tangent(const Chunk* c) noexcept nogil:
    """y' of every buffer, for rows that walk_forward has run in evaluation mode, their input in ws.value[0]."""
    cdef int i
    for i in range(c.net.n_ops):
        c.net.ops[i].does.tangent(c, &c.net.ops[i])


cdef void walk_second(const Chunk* c) noexcept nogil:
    """Gradients and their tangents of all buffers, from those of the outputs; those of linear ops end as dz and dz'.

    The parts of norms in dtheta' are added up here, row by row; those of linear ops are their `weight_tangent`.
    """
    cdef int i
    for i in range(c.net.n_ops - 1, -1, -1):
        c.net.ops[i].does.second(c, &c.net.ops[i])


cdef void walk_jet(const Chunk* c) noexcept nogil:
    """All parts of every buffer, from those of the input in ws.value[0]."""
    cdef int i
    for i in range(c.net.n_ops):
        c.net.ops[i].does.jet(c, &c.net.ops[i])


cdef void walk_jet_backward(const Chunk* c) noexcept nogil:
    """Their gradients, from those of the outputs, and the rows' part in those of the parameters."""
    cdef int i
    for i in range(c.net.n_ops - 1, -1, -1):
        c.net.ops[i].does.jet_backward(c, &c.net.ops[i])
