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
    real* scratch               # (capacity + 1, widest)
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


# Softmax, norms and gates: element by element, since they are a small part of any network -----------------------------

cdef double dot(Py_ssize_t n, const real* a, const real* b) noexcept nogil:
    """Sum of a b, in double; b may be NULL: ones."""
    cdef double total = 0
    cdef Py_ssize_t j
    for j in range(n):
        total += <double>a[j] * <double>b[j] if b != NULL else <double>a[j]
    return total


cdef void softmax_second(bint logarithm, Py_ssize_t n, const real* y, const real* y_t, const real* dy, const real* dy_t,
                         real* dx, real* dx_t) noexcept nogil:
    """One row. Softmax: dx = y (dy - q), q = sum(y dy); dx' = y' (dy - q) + y (dy' - q').
    Logarithm: dx = dy - p s, p = exp(y), s = sum(dy); dx' = dy' - p y' s - p s'."""
    cdef double q, q_t, p
    cdef Py_ssize_t j
    if logarithm:
        q, q_t = dot(n, dy, NULL), dot(n, dy_t, NULL)
        for j in range(n):
            p = exp(y[j])
            dx[j] = <real>(dy[j] - p * q)
            dx_t[j] = <real>(dy_t[j] - p * (y_t[j] * q + q_t))
    else:
        q, q_t = dot(n, y, dy), dot(n, y_t, dy) + dot(n, y, dy_t)
        for j in range(n):
            dx[j] = <real>(y[j] * (dy[j] - q))
            dx_t[j] = <real>(y_t[j] * (dy[j] - q) + y[j] * (dy_t[j] - q_t))


cdef inline double weight_at(const real* weight, Py_ssize_t j) noexcept nogil:
    if weight == NULL:
        return 1
    return weight[j]


cdef inline double tangent_at(const real* block, Py_ssize_t at, bint there, Py_ssize_t j) noexcept nogil:
    """A number of theta' where the op has that parameter."""
    if block == NULL or not there:
        return 0
    return block[at + j]


cdef void norm_tangent(const Network* net, const Tangents* t, const Op* op, const real* extra, const real* x,
                       const real* x_t, real* y_t) noexcept nogil:
    """One row: y' = w xhat' + w' xhat + b'. Batch norm: xhat' = rstd x'. Layer norm: xhat' = rstd (x' - mean(x') -
    xhat c), c = mean(xhat x')."""
    cdef Py_ssize_t j, n = op.n_out
    cdef const real* w = norm_weight(net, op)
    cdef const real* v = t.params if t.parameters else NULL
    cdef bint rows = op.kind == OP_LAYER_NORM
    cdef double mean = extra[0], rstd = extra[1], shift = 0, c = 0, xhat, xhat_t
    if rows:
        shift = dot(n, x_t, NULL) / n
        c = rstd * (dot(n, x, x_t) / n - mean * shift)
    for j in range(n):
        if not rows:
            mean, rstd = extra[j], extra[op.row + j]
        xhat = (x[j] - mean) * rstd
        xhat_t = rstd * (x_t[j] - shift - xhat * c)
        y_t[j] = <real>(weight_at(w, j) * xhat_t + tangent_at(v, op.weight, op.has_weight, j) * xhat
                        + tangent_at(v, op.bias, op.has_bias, j))


cdef void norm_second(const Network* net, const Tangents* t, const Op* op, const real* extra, const real* x,
                      const real* x_t, const real* dy, const real* dy_t, real* dx, real* dx_t) noexcept nogil:
    """One row, and its part of dw' = sum of dy' xhat + dy xhat' and db' = sum of dy', which are added up.

    g = dy w, g' = dy' w + dy w'. Batch norm: dx = rstd g, dx' = rstd g'. Layer norm: dx = rstd (g - mean(g) - xhat h),
    h = mean(g xhat); dx' = rstd (g' - mean(g') - xhat' h - xhat h') + rstd'/rstd dx, rstd' = -rstd**2 c.
    """
    cdef Py_ssize_t j, n = op.n_out
    cdef const real* w = norm_weight(net, op)
    cdef const real* v = t.params if t.parameters else NULL
    cdef bint rows = op.kind == OP_LAYER_NORM
    cdef double mean = extra[0], rstd = extra[1], shift = 0, c = 0, xhat, xhat_t, g, g_t
    cdef double g_mean = 0, g_t_mean = 0, h = 0, h_t = 0
    if rows:
        shift = dot(n, x_t, NULL) / n
        c = rstd * (dot(n, x, x_t) / n - mean * shift)
    for j in range(n):
        if not rows:
            mean, rstd = extra[j], extra[op.row + j]
        xhat = (x[j] - mean) * rstd
        xhat_t = rstd * (x_t[j] - shift - xhat * c)
        if op.has_weight:
            t.grads[op.weight + j] += <real>(dy_t[j] * xhat + dy[j] * xhat_t)
        if op.has_bias:
            t.grads[op.bias + j] += dy_t[j]
        g = dy[j] * weight_at(w, j)
        g_t = dy_t[j] * weight_at(w, j) + dy[j] * tangent_at(v, op.weight, op.has_weight, j)
        g_mean += g / n
        g_t_mean += g_t / n
        h += g * xhat / n
        h_t += (g_t * xhat + g * xhat_t) / n
    for j in range(n):
        if not rows:
            rstd = extra[op.row + j]
        g = dy[j] * weight_at(w, j)
        g_t = dy_t[j] * weight_at(w, j) + dy[j] * tangent_at(v, op.weight, op.has_weight, j)
        if not rows:
            dx[j], dx_t[j] = <real>(rstd * g), <real>(rstd * g_t)
            continue
        xhat = (x[j] - mean) * rstd
        xhat_t = rstd * (x_t[j] - shift - xhat * c)
        g = rstd * (g - g_mean - xhat * h)
        dx[j] = <real>g
        dx_t[j] = <real>(rstd * (g_t - g_t_mean - xhat_t * h - xhat * h_t) - rstd * c * g)


cdef inline Py_ssize_t winner(const real** a, int n, Py_ssize_t j) noexcept nogil:
    """Which of n is the largest at j, the first of equal ones."""
    cdef int s, best = 0
    for s in range(1, n):
        if a[s][j] > a[best][j]:
            best = s
    return best


cdef void gate_row(const Network* net, Workspace* ws, const Tangents* t, const Op* op, Py_ssize_t i, bint backward,
                   bint input_grad) noexcept nogil:
    """One row of a gate's tangent: y', or going back dx and dx' of its sources.

    Product: y' = sum over s of x_s' times the others; dx_s = dy P_s, dx_s' = dy' P_s + dy P_s', P_s being the product
    of the others.
    """
    cdef const real* a[MOST_SOURCES]
    cdef const real* a_t[MOST_SOURCES]
    cdef Py_ssize_t j, at = 0, n = op.n_out
    cdef int s, r, b
    cdef double others, others_t, total
    cdef real* y_t = row_of(t.value, net, op.dst, i)
    cdef const real* dy = row_of(ws.grad, net, op.dst, i)
    cdef const real* dy_t = row_of(t.grad, net, op.dst, i)
    cdef real* dx
    cdef real* dx_t
    cdef real d, d_t
    for s in range(op.n_src):
        a[s] = row_of(ws.value, net, op.srcs[s], i)
        a_t[s] = row_of(t.value, net, op.srcs[s], i)
    if not backward:
        for j in range(n):
            y_t[j] = 0
    for s in range(op.n_src):
        b = op.srcs[s]
        if op.kind == OP_CONCAT:
            n = net.buffers[b].width
        dx = row_of(ws.grad, net, b, i)
        dx_t = row_of(t.grad, net, b, i)
        for j in range(n):
            others, others_t = 1, 0
            if op.kind == OP_MULTIPLY:
                for r in range(op.n_src):
                    if r != s:
                        others_t = others_t * a[r][j] + others * a_t[r][j]
                        others = others * a[r][j]
            elif op.kind == OP_MAXIMUM:
                others = winner(a, op.n_src, j) == s
            if not backward:
                y_t[at + j] += <real>(others * a_t[s][j])
                continue
            if b == 0 and not input_grad:
                continue
            d = <real>(dy[at + j] * others)
            d_t = <real>(dy_t[at + j] * others + dy[at + j] * others_t)
            dx[j] = dx[j] + d if op.adds[s] else d
            dx_t[j] = dx_t[j] + d_t if op.adds[s] else d_t
        if op.kind == OP_CONCAT:
            at += n


# The walks ------------------------------------------------------------------------------------------------------------

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
                                   kept(net, ws, op, first, ws.value[0] + first * x_row),
                                   x_row if op.keeps_input else row, y_t, row)
        elif op.kind == OP_DROPOUT:
            add_rows(batch, round_up(op.n_out, VL), x_t, x_row, False, y_t, row)
        elif op.kind == OP_SOFTMAX:         # its Jacobian is symmetric
            softmax_backward_rows(False, batch, op.n_out, row_of(ws.value, net, op.dst, first), row, x_t, x_row, y_t,
                                  row)
        else:
            for r in range(first, first + batch):
                if op.kind == OP_LOG_SOFTMAX:
                    log_softmax_tangent(op.n_out, row_of(ws.value, net, op.dst, r), row_of(t.value, net, op.src, r),
                                        row_of(t.value, net, op.dst, r))
                elif op.kind == OP_LAYER_NORM or op.kind == OP_BATCH_NORM:
                    norm_tangent(net, t, op, ws.extra[i] + (2 * r if op.kind == OP_LAYER_NORM else 0),
                                 row_of(ws.value, net, op.src, r), row_of(t.value, net, op.src, r),
                                 row_of(t.value, net, op.dst, r))
                else:
                    gate_row(net, ws, t, op, r, False, False)


cdef void log_softmax_tangent(Py_ssize_t n, const real* y, const real* x_t, real* y_t) noexcept nogil:
    """One row: y' = x' - sum(p x'), p = exp(y)."""
    cdef double shift = 0
    cdef Py_ssize_t j
    for j in range(n):
        shift += exp(y[j]) * x_t[j]
    for j in range(n):
        y_t[j] = <real>(x_t[j] - shift)


cdef void walk_second(const Network* net, Workspace* ws, const Tangents* t, Py_ssize_t first, Py_ssize_t batch,
                      bint input_grad, real* panel) noexcept nogil:
    """Gradients and their tangents of all buffers, from those of the outputs; those of linear ops end as dz and dz'.

    The parts of norms in dtheta' are added up here, row by row; those of linear ops are linear_weight_tangent's.
    """
    cdef int i
    cdef const Op* op
    cdef Py_ssize_t r, row, x_row
    cdef real* dx
    cdef real* dx_t
    for i in range(net.n_ops - 1, -1, -1):
        op = &net.ops[i]
        row, x_row = net.buffers[op.dst].row, net.buffers[op.src].row
        if op.kind == OP_LINEAR:
            linear_second(net, ws, t, op, first, batch, input_grad, panel)
            continue
        for r in range(first, first + batch):
            if op.kind >= OP_ADD:
                gate_row(net, ws, t, op, r, True, input_grad)
                continue
            dx = t.scratch + first * x_row if op.adds[0] else row_of(ws.grad, net, op.src, r)
            dx_t = t.scratch + first * x_row + x_row if op.adds[0] else row_of(t.grad, net, op.src, r)
            if op.kind == OP_SOFTMAX or op.kind == OP_LOG_SOFTMAX:
                softmax_second(op.kind == OP_LOG_SOFTMAX, op.n_out, row_of(ws.value, net, op.dst, r),
                               row_of(t.value, net, op.dst, r), row_of(ws.grad, net, op.dst, r),
                               row_of(t.grad, net, op.dst, r), dx, dx_t)
            elif op.kind == OP_LAYER_NORM or op.kind == OP_BATCH_NORM:
                norm_second(net, t, op, ws.extra[i] + (2 * r if op.kind == OP_LAYER_NORM else 0),
                            row_of(ws.value, net, op.src, r), row_of(t.value, net, op.src, r),
                            row_of(ws.grad, net, op.dst, r), row_of(t.grad, net, op.dst, r), dx, dx_t)
            else:           # activation or dropout: in place in the gradients of the output, which are not needed again
                if op.kind == OP_ACTIVATION and op.act != IDENTITY:
                    second_slope(op.act, op.param, op.keeps_input, 1, op.n_out, row_of(ws.grad, net, op.dst, r),
                                 row_of(t.grad, net, op.dst, r), 0,
                                 kept(net, ws, op, r, row_of(ws.value, net, 0, r)), 0,
                                 row_of(t.value, net, op.src, r), 0)
                memcpy(dx, row_of(ws.grad, net, op.dst, r), op.n_out * sizeof(real))
                memcpy(dx_t, row_of(t.grad, net, op.dst, r), op.n_out * sizeof(real))
            if op.adds[0]:
                add_columns(1, op.n_in, dx, 0, True, row_of(ws.grad, net, op.src, r), 0)
                add_columns(1, op.n_in, dx_t, 0, True, row_of(t.grad, net, op.src, r), 0)
