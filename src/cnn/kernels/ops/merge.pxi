# What the ops that join branches have in common. They read two or more buffers, of one width but for the concatenation.
#
# All take the addresses of rows with their padding, which is zero in every source and stays so. Going back, the sources
# are visited in order; `adds` says whether a source's gradient joins what is there already, or replaces it.

cdef struct Sources:
    int n
    const real* rows[MOST_SOURCES]
    Py_ssize_t row[MOST_SOURCES]    # from a row to the next


cdef inline void sources_of(const Chunk* c, const Op* op, Sources* s) noexcept nogil:
    cdef int i
    s.n = op.n_src
    for i in range(op.n_src):
        s.rows[i], s.row[i] = source(c, op.srcs[i]), source_row(c, op.srcs[i])


cdef int merge_place(Network* net, Op* op, dict spec) except -1:
    cdef int s
    op.work = 8 * op.n_out
    for s in range(op.n_src):
        net.pad_input = net.pad_input or op.srcs[s] == 0
    return 0


cdef Chunk of_tangents(const Chunk* c, Workspace* ws) noexcept nogil:
    """The chunk with the tangents of values and gradients in their place, for walks that are linear in them. ws is room
    for a workspace."""
    cdef Chunk along = c[0]
    ws[0] = c.ws[0]
    ws.value, ws.grad = c.t.value, c.t.grad
    along.ws = ws
    along.x, along.x_row = row_of(c.t.value, c.net, 0, c.first), c.net.buffers[0].row
    return along


cdef OpMethods merge_op(const char* name) noexcept:
    """The methods of a merge op, all but its walks."""
    cdef OpMethods op = plain_op(name)
    op.place = merge_place
    op.merges = True
    return op
