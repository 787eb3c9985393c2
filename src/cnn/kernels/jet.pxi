# Jets: values together with their derivatives by the inputs of the model, forward through the ops and back.
#
# The parts of a jet are the value u, the first derivatives u_k by each input k, and the second ones u_kk, or in place
# of them their sum, the Laplacian. `Jets.each` says of how many k a second derivative is the sum. With g' the
# derivative of a loss by a part g:
#
#     y = f(z)            y_k = f' z_k                        y_kk = f'' z_k**2 + f' z_kk
#     z' = f' y' + sum over k of f'' z_k y_k' + (f''' z_k**2 + f'' z_kk) y_kk'
#                         z_k' = f' y_k' + 2 f'' z_k y_kk'    z_kk' = f' y_kk'
#
# The parts of a block of rows stand below each other in the buffers of a workspace, part p in rows p batch and
# following: a linear layer is one product with all of them (parts batch rows; only the values get a bias), and so are
# its gradients. FLOPs: `parts` times those of a forward and a backward pass.
#
# Ops that are linear in what they read, piece by piece, need no functions of their own: their parts are values and
# tangents, and `second` takes their gradients back.

cdef inline real* part_of(real** buffers, const Chunk* c, int b, Py_ssize_t part) noexcept nogil:
    """The first row of a part of a buffer."""
    return buffers[b] + part * c.batch * c.net.buffers[b].row


cdef inline Py_ssize_t second_part(const Jets* q, Py_ssize_t s) noexcept nogil:
    return 1 + q.inputs + s


# Ops that are linear piece by piece -----------------------------------------------------------------------------------

cdef void show_part(const Chunk* c, const Op* op, Py_ssize_t part) noexcept nogil:
    """Let the tangents, and `part_grad`, of the op's buffers be those of a part."""
    cdef int s, b
    for s in range(-1, op.n_src):
        b = op.dst if s < 0 else op.srcs[s]
        c.t.value[b] = part_of(c.ws.value, c, b, part)
        c.jets.part_grad[b] = part_of(c.ws.grad, c, b, part)


cdef void plain_jet(const Chunk* c, const Op* op) noexcept nogil:
    cdef Py_ssize_t part
    op.does.forward(c, op)
    for part in range(1, c.jets.parts):
        show_part(c, op, part)
        op.does.tangent(c, op)


cdef void plain_jet_backward(const Chunk* c, const Op* op) noexcept nogil:
    """`second` computes dx and dx' of dy and dy', and of them dtheta': dy' = y' (of the values) has the part of the
    values in it, and dy = y_k' along x' = x_k those of the derivatives. The other of the two is zero."""
    cdef Workspace ws = c.ws[0]
    cdef Tangents t = c.t[0]
    cdef Chunk along = c[0]
    cdef Py_ssize_t part
    along.ws, along.t = &ws, &t
    for part in range(c.jets.parts):
        show_part(c, op, part)
        memset(c.jets.zero[op.dst], 0, c.batch * row_size(c, op) * sizeof(real))
        ws.grad = c.jets.part_grad if part else c.jets.zero
        t.grad = c.jets.zero if part else c.jets.part_grad
        op.does.second(&along, op)


# Activations ----------------------------------------------------------------------------------------------------------

cdef void sloped_jet(const Jets* q, Py_ssize_t n, Py_ssize_t part, const real* z, real* y) noexcept nogil:
    """The derivatives of y = f(z) in a row, with f' and f'' in q.slopes; parts are `part` elements apart."""
    cdef Py_ssize_t j, k, s
    cdef vf f_1, f_2, z_k, square
    for j from 0 <= j < n by VL:
        f_1 = vf_load(q.slopes + j)
        f_2 = vf_load(q.slopes + n + j)
        for k in range(1, 1 + q.inputs):
            vf_store(y + k * part + j, f_1 * vf_load(z + k * part + j))
        for s in range(q.seconds):
            square = vf_set(0)
            for k in range(1 + s * q.each, 1 + (s + 1) * q.each):
                z_k = vf_load(z + k * part + j)
                square = vf_fma(z_k, z_k, square)
            k = second_part(q, s) * part + j
            vf_store(y + k, vf_fma(f_2, square, f_1 * vf_load(z + k)))


cdef void sloped_jet_backward(const Jets* q, Py_ssize_t n, Py_ssize_t part, const real* z, real* g) noexcept nogil:
    """g, the gradient of y = f(z) in a row, becomes that of z, with f', f'' and f''' in q.slopes."""
    cdef Py_ssize_t j, k, s
    cdef vf f_1, f_2, f_3, z_k, g_k, square, total, twice
    for j from 0 <= j < n by VL:
        f_1 = vf_load(q.slopes + j)
        f_2 = vf_load(q.slopes + n + j)
        f_3 = vf_load(q.slopes + 2 * n + j)
        total = f_1 * vf_load(g + j)
        for k in range(1, 1 + q.inputs):
            g_k = vf_load(g + k * part + j)
            total = vf_fma(f_2 * vf_load(z + k * part + j), g_k, total)
            vf_store(g + k * part + j, f_1 * g_k)
        for s in range(q.seconds):
            square = vf_set(0)
            g_k = vf_load(g + second_part(q, s) * part + j)
            twice = number(2) * f_2 * g_k
            for k in range(1 + s * q.each, 1 + (s + 1) * q.each):
                z_k = vf_load(z + k * part + j)
                square = vf_fma(z_k, z_k, square)
                vf_store(g + k * part + j, vf_fma(twice, z_k, vf_load(g + k * part + j)))
            k = second_part(q, s) * part + j
            total = vf_fma(vf_fma(f_3, square, f_2 * vf_load(z + k)), g_k, total)
            vf_store(g + k, f_1 * g_k)
        vf_store(g + j, total)


cdef void activate_jet(const Chunk* c, const Op* op, const real* z, real* y) noexcept nogil:
    """y = f(z), all parts; both in rows of the buffer that the op writes."""
    cdef Py_ssize_t row = row_size(c, op), n = round_up(op.n_out, VL), i
    activate_rows(op.act, op.param, c.batch, op.n_out, z, row, y, row)
    for i in range(c.batch):
        activation_slopes(op.act, op.param, op.keeps_input, n, (z if op.keeps_input else y) + i * row, c.jets.slopes)
        sloped_jet(c.jets, n, c.batch * row, z + i * row, y + i * row)


cdef void activate_jet_backward(const Chunk* c, const Op* op, const real* z, const real* y, real* g) noexcept nogil:
    """g, the gradient of y, becomes that of z."""
    cdef Py_ssize_t row = row_size(c, op), n = round_up(op.n_out, VL), i
    for i in range(c.batch):
        activation_slopes(op.act, op.param, op.keeps_input, n, (z if op.keeps_input else y) + i * row, c.jets.slopes)
        sloped_jet_backward(c.jets, n, c.batch * row, z + i * row, g + i * row)


# Products of jets, for a row: parts `..._part` elements apart, n a multiple of VL -------------------------------------

cdef void times_jet(const Jets* q, Py_ssize_t n, const real* a, Py_ssize_t a_part, real* y,
                    Py_ssize_t y_part) noexcept nogil:
    """y = y a: (y a)_k = y_k a + y a_k, (y a)_kk = y_kk a + 2 y_k a_k + y a_kk."""
    cdef Py_ssize_t j, k, s
    cdef vf a_j, y_j, sum
    for j from 0 <= j < n by VL:
        a_j = vf_load(a + j)
        y_j = vf_load(y + j)
        for s in range(q.seconds):
            sum = vf_set(0)
            for k in range(1 + s * q.each, 1 + (s + 1) * q.each):
                sum = vf_fma(vf_load(y + k * y_part + j), vf_load(a + k * a_part + j), sum)
            k = second_part(q, s)
            sum = vf_fma(number(2), sum, y_j * vf_load(a + k * a_part + j))
            vf_store(y + k * y_part + j, vf_fma(vf_load(y + k * y_part + j), a_j, sum))
        for k in range(1, 1 + q.inputs):
            vf_store(y + k * y_part + j,
                     vf_fma(vf_load(y + k * y_part + j), a_j, y_j * vf_load(a + k * a_part + j)))
        vf_store(y + j, y_j * a_j)


cdef void times_jet_backward(const Jets* q, Py_ssize_t n, const real* a, Py_ssize_t a_part, const real* dy,
                             Py_ssize_t dy_part, bint add, real* dx, Py_ssize_t dx_part) noexcept nogil:
    """The gradient of x from that of y = x a; dx may be dy, if it is not to be added to."""
    cdef Py_ssize_t j, k, s
    cdef vf a_j, g, total
    for j from 0 <= j < n by VL:
        a_j = vf_load(a + j)
        total = a_j * vf_load(dy + j)
        for k in range(1, 1 + q.inputs):
            g = vf_load(dy + k * dy_part + j)
            total = vf_fma(vf_load(a + k * a_part + j), g, total)
            vf_store(dx + k * dx_part + j, joined(add, dx + k * dx_part + j, a_j * g))
        for s in range(q.seconds):
            g = vf_load(dy + second_part(q, s) * dy_part + j)
            for k in range(1 + s * q.each, 1 + (s + 1) * q.each):
                vf_store(dx + k * dx_part + j, vf_fma(number(2) * vf_load(a + k * a_part + j), g,
                                                      vf_load(dx + k * dx_part + j)))
            k = second_part(q, s)
            total = vf_fma(vf_load(a + k * a_part + j), g, total)
            vf_store(dx + k * dx_part + j, joined(add, dx + k * dx_part + j, a_j * g))
        vf_store(dx + j, joined(add, dx + j, total))


cdef inline real sum_of(Py_ssize_t n, const real* a, const real* b) noexcept nogil:
    """sum of a b, n numbers of padded rows."""
    cdef vf sum = vf_set(0)
    cdef Py_ssize_t j
    for j from 0 <= j < n by VL:
        sum = vf_fma(vf_load(a + j), vf_load(b + j), sum)
    return vf_sum(sum, VL)


cdef inline void fill_row(Py_ssize_t n, real value, real* y) noexcept nogil:
    """n times the same number, zeros in the padding."""
    cdef Py_ssize_t j
    for j from 0 <= j < n by VL:
        vf_store(y + j, inside(vf_set(value), j, n))
