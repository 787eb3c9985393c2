# Maximum: y = max(a, b, ...); the gradient dy goes to the first source that equals y. All (batch, n).

cdef void maximum_rows(Py_ssize_t rows, Py_ssize_t n, const real* a, Py_ssize_t a_row, real* y,
                       Py_ssize_t y_row) noexcept nogil:
    """y = max(y, a); NaN in either gives NaN."""
    cdef Py_ssize_t i, j
    for i in range(rows):
        for j from 0 <= j < n by VL:
            vf_store(y + j, vf_largest_of(vf_load(y + j), vf_load(a + j)))
        a += a_row
        y += y_row


cdef void maximum_backward_rows(Py_ssize_t rows, Py_ssize_t n, const Sources* a, int which, const real* y,
                                Py_ssize_t y_row, const real* dy, Py_ssize_t dy_row, bint add, real* da,
                                Py_ssize_t da_row) noexcept nogil:
    """da = dy where the source `which` is the first that equals y, else 0."""
    cdef Py_ssize_t i, j
    cdef int e
    cdef vf y_j, d
    for i in range(rows):
        for j from 0 <= j < n by VL:
            y_j = vf_load(y + i * y_row + j)
            d = vf_load(dy + i * dy_row + j)
            d = vf_select_gt(y_j, vf_load(a.rows[which] + i * a.row[which] + j), vf_set(0), d)
            for e in range(which):      # an earlier one that is not below y has won
                d = vf_select_gt(y_j, vf_load(a.rows[e] + i * a.row[e] + j), d, vf_set(0))
            vf_store(da + i * da_row + j, joined(add, da + i * da_row + j, d))


cdef void maximum_forward(const Chunk* c, const Op* op) noexcept nogil:
    cdef Py_ssize_t n = round_up(op.n_out, VL)
    cdef int s
    add_rows(c.batch, n, source(c, op.src), source_row(c, op.src), False, output(c, op), row_size(c, op))
    for s in range(1, op.n_src):
        maximum_rows(c.batch, n, source(c, op.srcs[s]), source_row(c, op.srcs[s]), output(c, op), row_size(c, op))


cdef void maximum_backward(const Chunk* c, const Op* op) noexcept nogil:
    cdef Sources a
    cdef int s
    sources_of(c, op, &a)
    for s in range(op.n_src):
        if wants_gradient(c, op.srcs[s]):
            maximum_backward_rows(c.batch, round_up(op.n_out, VL), &a, s, output(c, op), row_size(c, op),
                                  output_gradient(c, op), row_size(c, op), op.adds[s],
                                  row_of(c.ws.grad, c.net, op.srcs[s], c.first), c.net.buffers[op.srcs[s]].row)


cdef void maximum_tangent(const Chunk* c, const Op* op) noexcept nogil:
    """The winner's."""
    cdef Py_ssize_t i, j
    cdef vf y, y_t, a
    cdef int s
    for i in range(c.first, c.first + c.batch):
        for j from 0 <= j < op.n_out by VL:
            y = vf_load(row_of(c.ws.value, c.net, op.src, i) + j)
            y_t = vf_load(row_of(c.t.value, c.net, op.src, i) + j)
            for s in range(1, op.n_src):
                a = vf_load(row_of(c.ws.value, c.net, op.srcs[s], i) + j)
                y_t = vf_select_gt(a, y, vf_load(row_of(c.t.value, c.net, op.srcs[s], i) + j), y_t)
                y = vf_select_gt(a, y, a, y)
            vf_store(row_of(c.t.value, c.net, op.dst, i) + j, y_t)


cdef void maximum_second(const Chunk* c, const Op* op) noexcept nogil:
    """The same function of dy and of dy'."""
    cdef Workspace ws = c.ws[0]
    cdef Chunk along = c[0]
    ws.grad, along.ws = c.t.grad, &ws
    maximum_backward(c, op)
    maximum_backward(&along, op)


cdef OpMethods MAXIMUM = merge_op("maximum")
MAXIMUM.forward = maximum_forward
MAXIMUM.backward = maximum_backward
MAXIMUM.tangent = maximum_tangent
MAXIMUM.second = maximum_second
define(&MAXIMUM)
