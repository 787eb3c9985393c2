# Multiply: y = a b ..., going back da = dy b ..., db = dy a ..., without a division. All (batch, n).

cdef void multiply_rows(Py_ssize_t rows, Py_ssize_t n, const real* a, Py_ssize_t a_row, real* y,
                        Py_ssize_t y_row) noexcept nogil:
    """y = y a."""
    cdef Py_ssize_t i, j
    for i in range(rows):
        for j from 0 <= j < n by VL:
            vf_store(y + j, vf_load(y + j) * vf_load(a + j))
        a += a_row
        y += y_row


cdef void multiply_backward_rows(Py_ssize_t rows, Py_ssize_t n, const Sources* a, int which, const real* dy,
                                 Py_ssize_t dy_row, bint add, real* da, Py_ssize_t da_row) noexcept nogil:
    """da = dy times all sources but `which`."""
    cdef Py_ssize_t i, j
    cdef int s
    cdef vf d
    for i in range(rows):
        for j from 0 <= j < n by VL:
            d = vf_load(dy + i * dy_row + j)
            for s in range(a.n):
                if s != which:
                    d = d * vf_load(a.rows[s] + i * a.row[s] + j)
            vf_store(da + i * da_row + j, joined(add, da + i * da_row + j, d))


cdef void multiply_forward(const Chunk* c, const Op* op) noexcept nogil:
    cdef Py_ssize_t n = round_up(op.n_out, VL)
    cdef int s
    add_rows(c.batch, n, source(c, op.src), source_row(c, op.src), False, output(c, op), row_size(c, op))
    for s in range(1, op.n_src):
        multiply_rows(c.batch, n, source(c, op.srcs[s]), source_row(c, op.srcs[s]), output(c, op), row_size(c, op))


cdef void multiply_backward(const Chunk* c, const Op* op) noexcept nogil:
    cdef Sources a
    cdef int s
    sources_of(c, op, &a)
    for s in range(op.n_src):
        if wants_gradient(c, op.srcs[s]):
            multiply_backward_rows(c.batch, round_up(op.n_out, VL), &a, s, output_gradient(c, op), row_size(c, op),
                                   op.adds[s], row_of(c.ws.grad, c.net, op.srcs[s], c.first),
                                   c.net.buffers[op.srcs[s]].row)


cdef void multiply_tangent(const Chunk* c, const Op* op) noexcept nogil:
    """(a b)' = a' b + a b', source after source."""
    cdef Py_ssize_t i, j
    cdef vf y, y_t, a
    cdef int s
    for i in range(c.first, c.first + c.batch):
        for j from 0 <= j < op.n_out by VL:
            y = vf_load(row_of(c.ws.value, c.net, op.src, i) + j)
            y_t = vf_load(row_of(c.t.value, c.net, op.src, i) + j)
            for s in range(1, op.n_src):
                a = vf_load(row_of(c.ws.value, c.net, op.srcs[s], i) + j)
                y_t = vf_fma(y_t, a, y * vf_load(row_of(c.t.value, c.net, op.srcs[s], i) + j))
                y = y * a
            vf_store(row_of(c.t.value, c.net, op.dst, i) + j, y_t)


cdef void multiply_second(const Chunk* c, const Op* op) noexcept nogil:
    """With P_s the product of the sources but s: dx_s = dy P_s, dx_s' = dy' P_s + dy P_s'."""
    cdef Workspace ws = c.ws[0]
    cdef Chunk along = c[0]
    cdef Py_ssize_t i, j
    cdef real* da_t
    cdef vf p, p_t, a
    cdef int s, r
    ws.grad, along.ws = c.t.grad, &ws
    multiply_backward(c, op)
    multiply_backward(&along, op)
    for i in range(c.first, c.first + c.batch):
        for s in range(op.n_src):
            if not wants_gradient(c, op.srcs[s]):
                continue
            da_t = row_of(c.t.grad, c.net, op.srcs[s], i)
            for j from 0 <= j < op.n_out by VL:
                p = vf_set(1)
                p_t = vf_set(0)
                for r in range(op.n_src):
                    if r != s:
                        a = vf_load(row_of(c.ws.value, c.net, op.srcs[r], i) + j)
                        p_t = vf_fma(p_t, a, p * vf_load(row_of(c.t.value, c.net, op.srcs[r], i) + j))
                        p = p * a
                vf_store(da_t + j, vf_fma(vf_load(row_of(c.ws.grad, c.net, op.dst, i) + j), p_t, vf_load(da_t + j)))


cdef void jet_of_all_but(const Chunk* c, const Op* op, int which, Py_ssize_t i, real* y,
                         Py_ssize_t part) noexcept nogil:
    """y (parts, n) = the product of the sources but `which` (-1: of all), of row i."""
    cdef Py_ssize_t n = round_up(op.n_out, VL), k
    cdef const real* a
    cdef bint begun = False
    cdef int s
    for s in range(op.n_src):
        if s == which:
            continue
        a = row_of(c.ws.value, c.net, op.srcs[s], i)
        if begun:
            times_jet(c.jets, n, a, c.batch * row_size(c, op), y, part)
        else:
            add_rows(c.jets.parts, n, a, c.batch * row_size(c, op), False, y, part)
        begun = True


cdef void multiply_jet(const Chunk* c, const Op* op) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(c.batch):
        jet_of_all_but(c, op, -1, i, row_of(c.ws.value, c.net, op.dst, i), c.batch * row_size(c, op))


cdef void multiply_jet_backward(const Chunk* c, const Op* op) noexcept nogil:
    cdef Py_ssize_t i, n = round_up(op.n_out, VL), part = c.batch * row_size(c, op)
    cdef int s
    for s in range(op.n_src):
        if wants_gradient(c, op.srcs[s]):
            for i in range(c.batch):
                jet_of_all_but(c, op, s, i, c.jets.scratch, n)
                times_jet_backward(c.jets, n, c.jets.scratch, n, row_of(c.ws.grad, c.net, op.dst, i), part, op.adds[s],
                                   row_of(c.ws.grad, c.net, op.srcs[s], i), part)


cdef OpMethods MULTIPLY = merge_op("multiply")
MULTIPLY.forward = multiply_forward
MULTIPLY.backward = multiply_backward
MULTIPLY.tangent = multiply_tangent
MULTIPLY.second = multiply_second
MULTIPLY.jet = multiply_jet
MULTIPLY.jet_backward = multiply_jet_backward
MULTIPLY.jet_scratch = True
define(&MULTIPLY)
