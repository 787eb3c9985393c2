# Tangents: derivatives of the walks along a direction (x', theta') in the inputs and the parameters. In the comments '
# is the derivative along that direction, written _t in names.
#
#     forward    y' = J (x', theta')                                 Jacobian-vector product (jvp)
#     backward   derivative of backward: (dL/dx)' and (dL/dtheta)'   Hessian-vector product (hvp), exact (Pearlmutter,
#                                                                    Neural Computation 6, 1994)
#
# All in evaluation mode, where the model is a function of its input row by row. FLOPs, with P those of one product over
# all layers: a gradient 3 P (forward, dX, dW); jvp 3 P (x W, x' W, x W'); hvp 8 P (these; dX, and dX' and dW' of two
# each): 2.7 times a gradient. Memory is that of two more passes. Nothing is fused here but what the products fuse.
#
# The products are those of program.pxi. W' lies in a block of the layout of the parameters, so that an op's offsets
# fit, and the results go to another one.

cdef struct Tangents:
    void* memory
    Py_ssize_t capacity         # rows
    real** value                # of each buffer: y', (batch, width) in rows as the buffer's
    real** before               # z' of linear ops with an activation
    real** grad                 # (dL/dy)'
    real* scratch               # of linear ops, (capacity, widest)
    real* params                # theta'
    real* grads                 # (dL/dtheta)'
    bint inputs                 # x' is not zero
    bint parameters             # theta' is not zero


cdef inline vf curvature_of(Activation kind, bint saved_is_input, vf saved, vf param) noexcept nogil:
    """f''(z); `saved` is z if saved_is_input, else y = f(z), as in `slope`.

        relu, leaky_relu, identity    0
        elu          z < 0: param exp(z) = y + param
        sigmoid      y (1 - y) (1 - 2 y)
        tanh         -2 y (1 - y**2)
        softplus     s (1 - s), s = sigmoid(z) = 1 - exp(-y)
        gelu         phi(z) (2 - z**2), phi the normal density
        silu         s (1 - s) (2 + z (1 - 2 s)), s = sigmoid(z)
        gelu_tanh    s' (2 t' + z ((1 - 2 s) t'**2 + t'')) with t(z) as in `activate`, s = sigmoid(t), s' = s (1 - s)
    """
    cdef vf s, u, a, n
    if kind == ELU:
        return vf_select_gt(saved, number(0), number(0), param * v_exp(saved) if saved_is_input else saved + param)
    elif kind == SIGMOID:
        s = v_sigmoid(saved) if saved_is_input else saved
        return s * (number(1) - s) * vf_fma(number(-2), s, number(1))
    elif kind == TANH:
        s = v_tanh(saved) if saved_is_input else saved
        return number(-2) * s * vf_fma(-s, s, number(1))
    elif kind == SOFTPLUS:
        s = v_sigmoid(saved) if saved_is_input else number(0) - v_expm1(-saved)
        return s * (number(1) - s)
    elif kind == GELU:
        u = clamp(saved, pick(15, 40))
        return number(0.3989422804014327) * v_exp(number(-0.5) * u * u) * vf_fma(-u, u, number(2))
    elif kind == SILU:
        u = silu_cut(saved)
        s = v_sigmoid(u)
        return s * (number(1) - s) * vf_fma(u, vf_fma(number(-2), s, number(1)), number(2))
    elif kind == GELU_TANH:
        u = gelu_tanh_cut(saved)
        s = v_sigmoid(u * vf_fma(u * u, number(0.07135481627260025), number(1.5957691216057308)))
        a = vf_fma(u * u, number(3 * 0.07135481627260025), number(1.5957691216057308))
        n = vf_fma(vf_fma(number(-2), s, number(1)) * a, a, number(6 * 0.07135481627260025) * u)
        a = vf_fma(u, n, number(2) * a)
        return s * (number(1) - s) * a
    return number(0)


cdef inline void second_slope_loop(Activation kind, real param, bint saved_is_input, Py_ssize_t rows, Py_ssize_t n,
                                   real* dy, real* dy_t, Py_ssize_t row, const real* saved, Py_ssize_t saved_row,
                                   const real* z_t, Py_ssize_t z_row) noexcept nogil:
    cdef vf p = vf_set(param)
    cdef vf s, g, d
    cdef Py_ssize_t i, j, rest
    for i in range(rows):
        for j from 0 <= j < n by VL:
            rest = smaller(VL, n - j)
            s = vf_load_first(saved + j, rest)
            g = vf_load(dy + j)
            d = vf_load_first(z_t + j, rest)
            vf_store_first(dy_t + j, vf_fma(g * d, curvature_of(kind, saved_is_input, s, p),
                                            backpropagate(kind, saved_is_input, vf_load(dy_t + j), s, p)), rest)
            vf_store_first(dy + j, backpropagate(kind, saved_is_input, g, s, p), rest)
        dy += row
        dy_t += row
        saved += saved_row
        z_t += z_row


cdef void second_slope(Activation kind, real param, bint saved_is_input, Py_ssize_t rows, Py_ssize_t n, real* dy,
                       real* dy_t, Py_ssize_t row, const real* saved, Py_ssize_t saved_row, const real* z_t,
                       Py_ssize_t z_row) noexcept nogil:
    """In place: dy_t = dy_t f'(z) + dy f''(z) z', then dy = dy f'(z). Elements beyond n stay zero."""
    if kind == RELU:
        second_slope_loop(RELU, param, saved_is_input, rows, n, dy, dy_t, row, saved, saved_row, z_t, z_row)
    elif kind == LEAKY_RELU:
        second_slope_loop(LEAKY_RELU, param, saved_is_input, rows, n, dy, dy_t, row, saved, saved_row, z_t, z_row)
    elif kind == ELU:
        second_slope_loop(ELU, param, saved_is_input, rows, n, dy, dy_t, row, saved, saved_row, z_t, z_row)
    elif kind == SIGMOID:
        second_slope_loop(SIGMOID, param, saved_is_input, rows, n, dy, dy_t, row, saved, saved_row, z_t, z_row)
    elif kind == TANH:
        second_slope_loop(TANH, param, saved_is_input, rows, n, dy, dy_t, row, saved, saved_row, z_t, z_row)
    elif kind == GELU:
        second_slope_loop(GELU, param, saved_is_input, rows, n, dy, dy_t, row, saved, saved_row, z_t, z_row)
    elif kind == GELU_TANH:
        second_slope_loop(GELU_TANH, param, saved_is_input, rows, n, dy, dy_t, row, saved, saved_row, z_t, z_row)
    elif kind == SILU:
        second_slope_loop(SILU, param, saved_is_input, rows, n, dy, dy_t, row, saved, saved_row, z_t, z_row)
    elif kind == SOFTPLUS:
        second_slope_loop(SOFTPLUS, param, saved_is_input, rows, n, dy, dy_t, row, saved, saved_row, z_t, z_row)


# Linear ---------------------------------------------------------------------------------------------------------------

cdef void times_weights(const Op* op, Py_ssize_t batch, const real* a, Py_ssize_t a_row, const real* params, bint bias,
                        real* y, Py_ssize_t y_row, real* panel) noexcept nogil:
    """y = a W, plus b if `bias`, with the op's W and b in a block like that of the parameters."""
    cdef Product p
    cdef const real* start = params + op.bias if bias else NULL
    if op.transposed:
        dot_rows(batch, op.n_in, op.n_out, a, a_row, params + op.weight, op.row, start, <real>-INFINITY, y, y_row)
        return
    memset(&p, 0, sizeof(p))
    p.m = batch
    p.n = round_up(op.n_out, VL)
    p.k = op.n_in
    p.a = a
    p.a_row = a_row
    p.a_col = 1
    p.b = params + op.weight
    p.b_row = op.row
    p.c = y
    p.c_row = y_row
    p.start = start
    p.finish = FINISH_STORE
    p.floor = <real>-INFINITY
    p.act = IDENTITY
    p.panel = panel
    product(&p)


cdef void linear_tangent(const Network* net, Workspace* ws, const Tangents* t, const Op* op, Py_ssize_t first,
                         Py_ssize_t batch, real* panel) noexcept nogil:
    """z' = x' W + x W' + b', y' = f'(z) z'."""
    cdef Py_ssize_t x_row = net.buffers[op.src].row, row = net.buffers[op.dst].row
    cdef real* y_t = row_of(t.value, net, op.dst, first)
    cdef real* z_t = y_t if op.act == IDENTITY else row_of(t.before, net, op.dst, first)
    cdef real* part = t.scratch + first * row
    cdef bint moves = op.src != 0 or t.inputs           # else x' is zero
    if moves:
        times_weights(op, batch, row_of(t.value, net, op.src, first), x_row, net.params, False, z_t, row, panel)
    if t.parameters:
        times_weights(op, batch, row_of(ws.value, net, op.src, first), x_row, t.params, op.has_bias,
                      part if moves else z_t, row, panel)
        if moves:
            add_rows(batch, round_up(op.n_out, VL), part, row, True, z_t, row)
    if op.act != IDENTITY:
        activate_backward_rows(op.act, op.param, op.keeps_input, batch, op.n_out, z_t, row,
                               kept(net, ws, op, first, NULL), row, y_t, row)


cdef void linear_second(const Network* net, Workspace* ws, const Tangents* t, const Op* op, Py_ssize_t first,
                        Py_ssize_t batch, bint input_grad, real* panel) noexcept nogil:
    """dz = dy f', dz' = dy' f' + dy f'' z'; dx = dz W^T, dx' = dz' W^T + dz W'^T."""
    cdef Py_ssize_t x_row = net.buffers[op.src].row, row = net.buffers[op.dst].row, n = round_up(op.n_in, VL)
    cdef real* dz = row_of(ws.grad, net, op.dst, first)
    cdef real* dz_t = row_of(t.grad, net, op.dst, first)
    cdef real* dx = row_of(ws.grad, net, op.src, first)
    cdef real* dx_t = row_of(t.grad, net, op.src, first)
    cdef real* part = t.scratch + first * x_row
    cdef bint add = op.adds[0]
    if op.act != IDENTITY:
        second_slope(op.act, op.param, op.keeps_input, batch, op.n_out, dz, dz_t, row, kept(net, ws, op, first, NULL),
                     row, row_of(t.before, net, op.dst, first), row)
    if op.src == 0 and not input_grad:
        return
    input_gradient(op, NULL, NULL, batch, dz, row, net.params, part if add else dx, x_row, False, panel)
    if add:
        add_rows(batch, n, part, x_row, True, dx, x_row)
    input_gradient(op, NULL, NULL, batch, dz_t, row, net.params, part if add else dx_t, x_row, False, panel)
    if add:
        add_rows(batch, n, part, x_row, True, dx_t, x_row)
    if t.parameters:
        input_gradient(op, NULL, NULL, batch, dz, row, t.params, part, x_row, False, panel)
        add_rows(batch, n, part, x_row, True, dx_t, x_row)


cdef void linear_weight_tangent(const Network* net, Workspace* ws, const Tangents* t, const Op* op, Py_ssize_t batch,
                                real* panel) noexcept nogil:
    """dW' = x^T dz' + x'^T dz and db' = sum of dz'."""
    cdef Network into = net[0]
    cdef Op bare = op[0]
    cdef Py_ssize_t x_row = net.buffers[op.src].row, row = net.buffers[op.dst].row
    cdef Py_ssize_t rows = op.n_out if op.transposed else op.n_in
    into.grads = t.grads
    weight_gradient(op, 0, rows, batch, ws.value[op.src], x_row, t.grad[op.dst], row, &into, NULL, True, panel)
    if op.src != 0 or t.inputs:
        bare.has_bias = False
        weight_gradient(&bare, 0, rows, batch, t.value[op.src], x_row, ws.grad[op.dst], row, &into, NULL, False, panel)


# Softmax, norms and gates ---------------------------------------------------------------------------------------------
#
# A row at a time. All rows lie in the workspaces, padded with zeros, and what is written keeps the padding zero.

cdef inline vf inside(vf a, Py_ssize_t j, Py_ssize_t n) noexcept nogil:
    """Elements j and following of a row of n; zero after its end."""
    return a if j + VL <= n else vf_first(a, n - j, vf_set(0))


cdef void log_softmax_tangent(Py_ssize_t n, const real* y, const real* x_t, real* y_t) noexcept nogil:
    """y' = x' - sum(p x'), p = exp(y)."""
    cdef vf sums = vf_set(0)
    cdef Py_ssize_t j
    for j from 0 <= j < n by VL:
        sums = vf_fma(v_exp(vf_load(y + j)), vf_load(x_t + j), sums)
    sums = vf_set(vf_sum(sums, VL))
    for j from 0 <= j < n by VL:
        vf_store(y_t + j, inside(vf_load(x_t + j) - sums, j, n))


cdef void softmax_second(bint logarithm, Py_ssize_t n, const real* y, const real* y_t, const real* dy, const real* dy_t,
                         bint add, real* dx, real* dx_t) noexcept nogil:
    """Softmax: dx = y (dy - q), q = sum(y dy); dx' = y' (dy - q) + y (dy' - q').
    Logarithm: dx = dy - p q, p = exp(y), q = sum(dy); dx' = dy' - p (y' q + q')."""
    cdef vf q = vf_set(0), q_t = vf_set(0), p, g, d, d_t
    cdef Py_ssize_t j
    for j from 0 <= j < n by VL:
        p = vf_load(y + j)
        g = vf_load(dy + j)
        if logarithm:
            q = q + g
            q_t = q_t + vf_load(dy_t + j)
        else:
            q = vf_fma(p, g, q)
            q_t = vf_fma(vf_load(y_t + j), g, vf_fma(p, vf_load(dy_t + j), q_t))
    q = vf_set(vf_sum(q, VL))
    q_t = vf_set(vf_sum(q_t, VL))
    for j from 0 <= j < n by VL:
        p = vf_load(y + j)
        if logarithm:
            p = inside(v_exp(p), j, n)
            d = vf_load(dy + j) - p * q
            d_t = vf_load(dy_t + j) - p * vf_fma(vf_load(y_t + j), q, q_t)
        else:
            g = vf_load(dy + j) - q
            d = p * g
            d_t = vf_fma(vf_load(y_t + j), g, p * (vf_load(dy_t + j) - q_t))
        vf_store(dx + j, joined(add, dx + j, d))
        vf_store(dx_t + j, joined(add, dx_t + j, d_t))


cdef inline void norm_means(const Op* op, const real* extra, const real* x, const real* x_t, vf* shift,
                            vf* c) noexcept nogil:
    """Layer norm: shift = mean(x'), c = mean(xhat x'). Batch norm, whose statistics are constants here: 0."""
    cdef vf sums = vf_set(0), dot = vf_set(0)
    cdef Py_ssize_t j
    if op.kind == OP_LAYER_NORM:
        for j from 0 <= j < op.n_out by VL:
            sums = sums + vf_load(x_t + j)
            dot = vf_fma(vf_load(x + j) - vf_set(extra[0]), vf_load(x_t + j), dot)
    shift[0] = vf_set(vf_sum(sums, VL) / <real>op.n_out)
    c[0] = vf_set(extra[1] * vf_sum(dot, VL) / <real>op.n_out)


cdef inline vf normalised(const Op* op, const real* extra, const real* x, const real* x_t, vf shift, vf c, Py_ssize_t j,
                          vf* rstd, vf* xhat_t) noexcept nogil:
    """Elements j and following of xhat = rstd (x - mean); xhat' = rstd (x' - shift - xhat c)."""
    cdef bint rows = op.kind == OP_LAYER_NORM
    cdef vf mean = vf_set(extra[0]) if rows else vf_load(extra + j)
    cdef vf xhat
    rstd[0] = vf_set(extra[1]) if rows else vf_load(extra + op.row + j)
    xhat = inside(rstd[0] * (vf_load(x + j) - mean), j, op.n_out)
    xhat_t[0] = inside(rstd[0] * (vf_load(x_t + j) - shift - xhat * c), j, op.n_out)
    return xhat


cdef inline vf direction(const Tangents* t, Py_ssize_t at, bint there) noexcept nogil:
    """Elements `at` and following of theta', where the op has that parameter."""
    return vf_load(t.params + at) if there and t.parameters else vf_set(0)


cdef void norm_tangent(const Network* net, const Tangents* t, const Op* op, const real* extra, const real* x,
                       const real* x_t, real* y_t) noexcept nogil:
    """y' = w xhat' + w' xhat + b'."""
    cdef const real* w = norm_weight(net, op)
    cdef vf shift, c, rstd, xhat, xhat_t
    cdef Py_ssize_t j
    norm_means(op, extra, x, x_t, &shift, &c)
    for j from 0 <= j < op.n_out by VL:
        xhat = normalised(op, extra, x, x_t, shift, c, j, &rstd, &xhat_t)
        vf_store(y_t + j, weighted(xhat_t, w, j) + vf_fma(direction(t, op.weight + j, op.has_weight), xhat,
                                                          direction(t, op.bias + j, op.has_bias)))


cdef void norm_second(const Network* net, const Tangents* t, const Op* op, const real* extra, const real* x,
                      const real* x_t, const real* dy, const real* dy_t, bint add, real* dx,
                      real* dx_t) noexcept nogil:
    """dx and dx', and the row's part of dw' = sum of dy' xhat + dy xhat' and db' = sum of dy', which are added up.

    g = dy w, g' = dy' w + dy w'. Batch norm: dx = rstd g, dx' = rstd g'. Layer norm: dx = rstd (g - mean(g) - xhat h),
    h = mean(g xhat); dx' = rstd (g' - mean(g') - xhat' h - xhat h' - c dx), the last term being that of
    rstd' = -c rstd**2.
    """
    cdef const real* w = norm_weight(net, op)
    cdef real* dw = t.grads + op.weight
    cdef real* db = t.grads + op.bias
    cdef real share = <real>1 / <real>op.n_out
    cdef vf shift, c, rstd, xhat, xhat_t, g, g_t
    cdef vf mean = vf_set(0), mean_t = mean, h = mean, h_t = mean
    cdef Py_ssize_t j
    norm_means(op, extra, x, x_t, &shift, &c)
    for j from 0 <= j < op.n_out by VL:
        xhat = normalised(op, extra, x, x_t, shift, c, j, &rstd, &xhat_t)
        g = vf_load(dy + j)
        g_t = vf_load(dy_t + j)
        if op.has_weight:
            vf_store(dw + j, vf_load(dw + j) + vf_fma(g_t, xhat, g * xhat_t))
        if op.has_bias:
            vf_store(db + j, vf_load(db + j) + g_t)
        if op.kind == OP_LAYER_NORM:
            g_t = vf_fma(g, direction(t, op.weight + j, op.has_weight), weighted(g_t, w, j))
            g = weighted(g, w, j)
            mean = mean + g
            mean_t = mean_t + g_t
            h = vf_fma(g, xhat, h)
            h_t = vf_fma(g_t, xhat, vf_fma(g, xhat_t, h_t))
    mean = vf_set(share * vf_sum(mean, VL))
    mean_t = vf_set(share * vf_sum(mean_t, VL))
    h = vf_set(share * vf_sum(h, VL))
    h_t = vf_set(share * vf_sum(h_t, VL))
    for j from 0 <= j < op.n_out by VL:         # batch norm: all sums are zero
        xhat = normalised(op, extra, x, x_t, shift, c, j, &rstd, &xhat_t)
        g = rstd * (weighted(vf_load(dy + j), w, j) - mean - xhat * h)
        g_t = weighted(vf_load(dy_t + j), w, j) - mean_t - xhat_t * h - xhat * h_t - c * g
        g_t = vf_fma(vf_load(dy + j), direction(t, op.weight + j, op.has_weight), g_t)
        vf_store(dx + j, joined(add, dx + j, inside(g, j, op.n_out)))
        vf_store(dx_t + j, joined(add, dx_t + j, inside(rstd * g_t, j, op.n_out)))


cdef void gate_tangent(const Network* net, Workspace* ws, const Tangents* t, const Op* op, Py_ssize_t first,
                       Py_ssize_t batch) noexcept nogil:
    """y' of a gate. Sum, concatenation: that of the x_s'. Product of a and b: a' b + a b'. Maximum: the winner's."""
    cdef Workspace along = ws[0]
    cdef Py_ssize_t i, j, x_row = net.buffers[0].row
    cdef vf y, y_t, a, a_t
    cdef int s
    if op.kind == OP_ADD or op.kind == OP_CONCAT:
        along.value = t.value
        forward_gate(net, &along, op, first, batch, row_of(t.value, net, 0, first), x_row)
        return
    for i in range(first, first + batch):
        for j from 0 <= j < op.n_out by VL:
            y = vf_load(row_of(ws.value, net, op.src, i) + j)
            y_t = vf_load(row_of(t.value, net, op.src, i) + j)
            for s in range(1, op.n_src):
                a = vf_load(row_of(ws.value, net, op.srcs[s], i) + j)
                a_t = vf_load(row_of(t.value, net, op.srcs[s], i) + j)
                if op.kind == OP_MULTIPLY:
                    y_t = vf_fma(y_t, a, y * a_t)
                    y = y * a
                else:
                    y_t = vf_select_gt(a, y, a_t, y_t)
                    y = vf_select_gt(a, y, a, y)
            vf_store(row_of(t.value, net, op.dst, i) + j, y_t)


cdef void gate_second(const Network* net, Workspace* ws, const Tangents* t, const Op* op, Py_ssize_t first,
                      Py_ssize_t batch, bint input_grad) noexcept nogil:
    """dx_s and dx_s' of a gate's sources: the same function of dy and of dy'. For a product that is dy times P_s, the
    product of the other sources, and dx_s' = dy' P_s + dy P_s'."""
    cdef Workspace along = ws[0]
    cdef Py_ssize_t i, j, x_row = net.buffers[0].row
    cdef const real* x = row_of(ws.value, net, 0, first)
    cdef real* da_t
    cdef vf p, p_t, a
    cdef int s, r
    along.grad = t.grad
    backward_gate(net, ws, op, first, batch, x, x_row, input_grad)
    backward_gate(net, &along, op, first, batch, x, x_row, input_grad)
    if op.kind != OP_MULTIPLY:
        return
    for i in range(first, first + batch):
        for s in range(op.n_src):
            if op.srcs[s] == 0 and not input_grad:
                continue
            da_t = row_of(t.grad, net, op.srcs[s], i)
            for j from 0 <= j < op.n_out by VL:
                p = vf_set(1)
                p_t = vf_set(0)
                for r in range(op.n_src):
                    if r != s:
                        a = vf_load(row_of(ws.value, net, op.srcs[r], i) + j)
                        p_t = vf_fma(p_t, a, p * vf_load(row_of(t.value, net, op.srcs[r], i) + j))
                        p = p * a
                vf_store(da_t + j, vf_fma(vf_load(row_of(ws.grad, net, op.dst, i) + j), p_t, vf_load(da_t + j)))


# The walks ------------------------------------------------------------------------------------------------------------

cdef inline const real* statistics(Workspace* ws, const Op* op, int i, Py_ssize_t row) noexcept nogil:
    """What norm op number i has kept for a row, or for all of them."""
    return ws.extra[i] + (2 * row if op.kind == OP_LAYER_NORM else 0)


cdef void walk_tangent(const Network* net, Workspace* ws, const Tangents* t, Py_ssize_t first, Py_ssize_t batch,
                       real* panel) noexcept nogil:
    """y' of every buffer, for rows that walk_forward has run in evaluation mode, its input in ws.value[0]."""
    cdef int i
    cdef const Op* op
    cdef Py_ssize_t r, row, x_row
    cdef real* x_t
    cdef real* y_t
    for i in range(net.n_ops):
        op = &net.ops[i]
        row, x_row = net.buffers[op.dst].row, net.buffers[op.src].row
        x_t, y_t = row_of(t.value, net, op.src, first), row_of(t.value, net, op.dst, first)
        if op.kind == OP_LINEAR:
            linear_tangent(net, ws, t, op, first, batch, panel)
        elif op.kind == OP_ACTIVATION:
            activate_backward_rows(op.act, op.param, op.keeps_input, batch, op.n_out, x_t, x_row,
                                   kept(net, ws, op, first, row_of(ws.value, net, 0, first)),
                                   x_row if op.keeps_input else row, y_t, row)
        elif op.kind == OP_DROPOUT:
            add_rows(batch, round_up(op.n_out, VL), x_t, x_row, False, y_t, row)
        elif op.kind == OP_SOFTMAX:         # its Jacobian is symmetric
            softmax_backward_rows(False, batch, op.n_out, row_of(ws.value, net, op.dst, first), row, x_t, x_row, y_t,
                                  row)
        elif op.kind >= OP_ADD:
            gate_tangent(net, ws, t, op, first, batch)
        else:
            for r in range(first, first + batch):
                if op.kind == OP_LOG_SOFTMAX:
                    log_softmax_tangent(op.n_out, row_of(ws.value, net, op.dst, r), x_t, y_t)
                else:
                    norm_tangent(net, t, op, statistics(ws, op, i, r), row_of(ws.value, net, op.src, r), x_t, y_t)
                x_t += x_row
                y_t += row


cdef void walk_second(const Network* net, Workspace* ws, const Tangents* t, Py_ssize_t first, Py_ssize_t batch,
                      bint input_grad, real* panel) noexcept nogil:
    """Gradients and their tangents of all buffers, from those of the outputs; those of linear ops end as dz and dz'.

    The parts of norms in dtheta' are added up here, row by row; those of linear ops are linear_weight_tangent's.
    """
    cdef int i
    cdef const Op* op
    cdef Py_ssize_t r, row, x_row
    cdef real* dy
    cdef real* dy_t
    cdef real* dx
    cdef real* dx_t
    for i in range(net.n_ops - 1, -1, -1):
        op = &net.ops[i]
        row, x_row = net.buffers[op.dst].row, net.buffers[op.src].row
        dy, dy_t = row_of(ws.grad, net, op.dst, first), row_of(t.grad, net, op.dst, first)
        dx, dx_t = row_of(ws.grad, net, op.src, first), row_of(t.grad, net, op.src, first)
        if op.kind == OP_LINEAR:
            linear_second(net, ws, t, op, first, batch, input_grad, panel)
        elif op.kind >= OP_ADD:
            gate_second(net, ws, t, op, first, batch, input_grad)
        elif op.kind == OP_ACTIVATION or op.kind == OP_DROPOUT:
            if op.kind == OP_ACTIVATION:        # in place: the gradient of the output is not needed again
                second_slope(op.act, op.param, op.keeps_input, batch, op.n_out, dy, dy_t, row,
                             kept(net, ws, op, first, row_of(ws.value, net, 0, first)),
                             x_row if op.keeps_input else row, row_of(t.value, net, op.src, first), x_row)
            add_rows(batch, round_up(op.n_out, VL), dy, row, op.adds[0], dx, x_row)
            add_rows(batch, round_up(op.n_out, VL), dy_t, row, op.adds[0], dx_t, x_row)
        else:
            for r in range(first, first + batch):
                if op.kind == OP_SOFTMAX or op.kind == OP_LOG_SOFTMAX:
                    softmax_second(op.kind == OP_LOG_SOFTMAX, op.n_out, row_of(ws.value, net, op.dst, r),
                                   row_of(t.value, net, op.dst, r), dy, dy_t, op.adds[0], dx, dx_t)
                else:
                    norm_second(net, t, op, statistics(ws, op, i, r), row_of(ws.value, net, op.src, r),
                                row_of(t.value, net, op.src, r), dy, dy_t, op.adds[0], dx, dx_t)
                dy += row
                dy_t += row
                dx += x_row
                dx_t += x_row
