# One sample at a time through a whole network: forward, loss, backward and step, so that each W is read twice and
# written once. What is done to a layer stands in sample.pxi.
#
# For chains of linear layers and activations, each reading what the one before wrote. A network whose every width fits
# one vector has a way of its own: a layer's values are one register, and nothing goes through memory on the way from
# the parameters to their update but the parameters. What limits it is the latency of that way, some 60 cycles for two
# layers, and no longer the calls and stores and loads around it (a load that follows a store costs 11 cycles). With one
# hidden layer of ReLU, few inputs and one output the parameters stay in registers, too.

cdef inline double one_vector_loss(const Network* net, const LossSpec* spec, Workspace* ws, vf y, const char* target,
                                   vf factor, Py_ssize_t* correct, vf* dy) noexcept nogil:
    """The loss of outputs y that fit one vector, and their gradient; they lie in the workspace too.

    MSE, the loss that these steps are for, without the calls and loops of batch_loss; factor: of its gradient's y - t.
    """
    cdef double loss
    cdef vf d
    if spec.kind != LOSS_MSE:
        loss = batch_loss(net, spec, ws, 0, 1, target, 0, NULL, 1, True, correct)
        dy[0] = vf_load(ws.grad[net.n_buffers - 1])
        return loss
    d = y - vf_load_first(<const real*>target, net.outputs)
    dy[0] = factor * d
    loss = vf_sum(d * d, net.outputs)
    return loss / net.outputs if spec.mean else loss


cdef double wide_sample(const Network* net, const LossSpec* spec, Workspace* ws, const real* x, const char* target,
                        vf factor, const Update* u, Py_ssize_t* correct) noexcept nogil:
    """One training step for any widths; the loss. factor: see one_vector_loss."""
    cdef int i, last = net.n_buffers - 1
    cdef const Op* op
    cdef const Op* before
    cdef real* dz
    cdef real* dx
    cdef double loss
    cdef vf y
    cdef bint relu
    cdef Chunk c
    if net.pad_input:
        memcpy(ws.value[0], x, net.buffers[0].width * sizeof(real))
        x = ws.value[0]
    c.net, c.ws, c.t = net, ws, NULL
    c.first, c.batch, c.all_rows, c.x, c.x_row, c.csr = 0, 1, 1, x, 0, NULL
    c.keep, c.input_grad, c.few, c.panel = True, False, True, ws.panel
    for i in range(net.n_ops):
        op = &net.ops[i]
        if op.does == &LINEAR:
            affine(op, 1, source(&c, op.src), 0, net.params, ws.value[op.dst], 0,
                   ws.before[op.dst] if op.keeps_input else NULL, ws.panel, False)
        else:
            op.does.forward(&c, op)
    if net.outputs <= VL:
        y = vf_load(ws.value[last])
        loss = one_vector_loss(net, spec, ws, y, target, factor, correct, &y)
        vf_store(ws.grad[last], y)
    else:
        loss = batch_loss(net, spec, ws, 0, 1, target, 0, NULL, 1, True, correct)
    for i in range(net.n_ops - 1, -1, -1):
        op = &net.ops[i]
        if op.does != &LINEAR:
            op.does.backward(&c, op)
            continue
        dz = ws.grad[op.dst]
        dx = ws.grad[op.src] if op.src != 0 else NULL
        if op.own_derivative:
            derivative_in_place(&c, op)
        before = &net.ops[op.fused_into] if op.fused_into >= 0 else NULL
        relu = before != NULL and before.act == RELU
        sample_backward(op.transposed, op.n_in, op.n_out, source(&c, op.src), dz,
                        net.params + op.weight, op.row, net.params + op.bias if op.has_bias else NULL, u, dx,
                        ws.value[op.src] if relu else NULL)
        if before != NULL and not relu:
            derivative_in_place(&c, before)
    return loss


# One vector a layer ---------------------------------------------------------------------------------------------------

cdef bint one_vector_each(const Network* net) noexcept nogil:
    """Whether the network is a chain of linear layers whose widths fit one vector."""
    cdef int i
    cdef const Op* op
    for i in range(net.n_ops):
        op = &net.ops[i]
        if op.does != &LINEAR or op.src != i or op.dst != i + 1 or op.n_in > VL or op.n_out > VL:
            return False
    return True


cdef inline vf narrow_forward(const Op* op, const Network* net, Workspace* ws, vf x) noexcept nogil:
    """y = act(x W + b); y, and z where the derivative needs it, go to the workspace too."""
    cdef const real* w = net.params + op.weight
    cdef vf z = vf_load(net.params + op.bias), y, sums
    cdef Py_ssize_t l
    cdef real* kept_z = ws.before[op.dst] if op.keeps_input else ws.value[op.dst]
    if op.transposed:
        y = vf_set(0)
        for l in range(op.n_out):
            sums = vf_sums(x * vf_load(w + l * op.row), op.n_in)
            y = with_lane(y, l, sums if l == 0 else vf_lane(sums, 0))
        z = z + y
    else:
        for l in range(op.n_in):
            z = vf_fma(vf_lane(x, l), vf_load(w + l * op.row), z)
    if op.act == RELU:
        y = vf_max(vf_set(0), z)
    elif op.act == IDENTITY:
        y = z
    else:
        vf_store(kept_z, z)
        activate_rows(op.act, op.param, 1, op.n_out, kept_z, 0, ws.value[op.dst], 0)
        y = vf_load(ws.value[op.dst])
    vf_store(ws.value[op.dst], y)
    return y


cdef inline vf narrow_backward(const int kind, const Op* op, const Network* net, Workspace* ws, bint wants_dx, vf x,
                               vf dy, const Update* u) noexcept nogil:
    """The step of a layer, and the gradient of x."""
    cdef real* w = net.params + op.weight
    cdef real* bias = net.params + op.bias
    cdef real* dz_at = ws.grad[op.dst]
    cdef vf dz = dy, dx = vf_set(0), d, w_l
    cdef Py_ssize_t l
    if op.act == RELU:
        dz = vf_select_gt(vf_load(ws.value[op.dst]), vf_set(0), dy, vf_set(0))
    elif op.act != IDENTITY:
        vf_store(dz_at, dy)
        activate_backward_rows(op.act, op.param, op.keeps_input, 1, op.n_out, dz_at, 0,
                               ws.before[op.dst] if op.keeps_input else ws.value[op.dst], 0, dz_at, 0)
        dz = vf_load(dz_at)
    if wants_dx and not op.transposed:
        vf_store(dz_at, dz)
        sample_backward(False, op.n_in, op.n_out, ws.value[op.src], dz_at, w, op.row, bias if op.has_bias else NULL, u,
                        ws.grad[op.src], NULL)
        return vf_load(ws.grad[op.src])
    if op.has_bias:
        vf_store(bias, updated(kind, vf_load(bias), dz, bias + u.state, u))
    for l in range(op.n_out if op.transposed else op.n_in):
        w_l = vf_load(w)
        if op.transposed:
            d = vf_lane(dz, l)
            dx = vf_fma(d, w_l, dx)
            vf_store(w, updated(kind, w_l, d * x, w + u.state, u))
        elif kind == UPDATE_PLAIN:
            vf_store(w, vf_fma(vf_set(-u.lr) * vf_lane(x, l), dz, w_l))
        else:
            vf_store(w, updated(kind, w_l, vf_lane(x, l) * dz, w + u.state, u))
        w += op.row
    return dx


cdef inline double narrow_sample(const int kind, const Network* net, const LossSpec* spec, Workspace* ws, vf x,
                                 const char* target, vf factor, const Update* u, Py_ssize_t* correct) noexcept nogil:
    """The same for one_vector_each. kind is a literal."""
    cdef int i
    cdef vf y = x, g
    cdef double loss
    for i in range(net.n_ops):
        y = narrow_forward(&net.ops[i], net, ws, y)
    loss = one_vector_loss(net, spec, ws, y, target, factor, correct, &g)
    for i in range(net.n_ops - 1, -1, -1):
        g = narrow_backward(kind, &net.ops[i], net, ws, i > 0, x if i == 0 else vf_load(ws.value[i]), g, u)
    return loss


# One hidden layer, in registers ---------------------------------------------------------------------------------------

cdef enum:
    HELD_INPUTS = 3     # so many rows of the first layer's W are held beside its bias, the second's w^T and bias

cdef bint can_be_held(const Network* net, const LossSpec* spec, const Update* u) noexcept nogil:
    """Whether `held_samples` takes the steps of one_vector_each: few inputs, a hidden layer with ReLU, one output, MSE,
    SGD without momentum or decay."""
    return (net.n_ops == 2 and net.ops[0].n_in <= HELD_INPUTS and not net.ops[0].transposed and net.ops[0].act == RELU
            and net.ops[1].n_out == 1 and net.ops[1].transposed and net.ops[1].act == IDENTITY and net.ops[0].has_bias
            and net.ops[1].has_bias and spec.kind == LOSS_MSE and u.kind == UPDATE_PLAIN)


cdef inline Py_ssize_t held_samples "held_samples"(const int k, const Pass* p, Py_ssize_t n,
                                                   double* total) noexcept nogil:
    """`samples` for can_be_held: the parameters stay in registers from the first step to the last. k is a literal.

        y = max(0, x W + b)         x (k,), W (k, h), b (h,)
        d = y v + c - t             v (h,), c, t and d one number
        dz = 2 d v where y > 0      (h,)
        c -= 2 lr d,  v -= 2 lr d y,  b -= lr dz,  W -= lr x^T dz

    4 k h + 9 h FLOPs or so; what limits it is the latency from one step to the next, ten operations in a chain. With
    the parameters in memory each load would wait for the step before it to store.
    """
    cdef const Batch* batch = &p.batch
    cdef const Op* first = &p.net.ops[0]
    cdef const Op* second = &p.net.ops[1]
    cdef real* params = p.net.params
    cdef vf zero = vf_set(0), lr = vf_set(-p.wants.update.lr)
    cdef vf factor = vf_set(2), x, y, z, d, dz, dy
    cdef vf w[HELD_INPUTS]
    cdef vf v = vf_load(params + second.weight), b = vf_load(params + first.bias)
    cdef vf c = vf_set(params[second.bias])         # in all lanes, as the outputs are
    cdef Py_ssize_t i, l, row, done = 0
    cdef const real* at
    cdef double loss
    for l in range(k):
        w[l] = vf_load(params + first.weight + l * first.row)
    y = z = d = zero
    for i in range(n):
        row = batch.order[i] if batch.order != NULL else i
        at = batch.x + row * batch.x_row
        z = b
        for l in range(k):
            z = vf_fma(vf_set(at[l]), w[l], z)
        y = vf_max(zero, z)
        z = vf_sums(y * v, second.n_in) + c
        d = z - vf_set((<const real*>(batch.target + row * batch.target_bytes))[0])
        dy = factor * d
        dz = vf_select_gt(y, zero, dy * v, zero)
        c = vf_fma(lr, dy, c)
        v = vf_fma(lr, dy * y, v)
        b = vf_fma(lr, dz, b)
        for l in range(k):
            w[l] = vf_fma(lr * vf_set(at[l]), dz, w[l])
        loss = vf_sum(d * d, 1)
        total[0] += loss
        if not isfinite(loss):
            break
        done += 1
    for l in range(k):
        vf_store(params + first.weight + l * first.row, w[l])
    vf_store(params + first.bias, b)
    vf_store(params + second.weight, v)
    params[second.bias] = vf_sum(c, 1)
    p.ws.value[2][0] = vf_sum(z, 1)
    return done


# Many samples ---------------------------------------------------------------------------------------------------------

cdef inline Py_ssize_t samples "samples"(const int kind, const Pass* p, Py_ssize_t n, double* total,
                                         Py_ssize_t* correct) noexcept nogil:
    """train_samples for one_vector_each and a literal kind of update; kind -1: for any widths, and any kind."""
    cdef const Network* net = p.net
    cdef const Batch* batch = &p.batch
    cdef LossSpec spec = batch.loss
    cdef Update own = p.wants.update[0]       # stores to the parameters cannot change it: it stays in registers
    cdef vf factor = vf_set(<real>(2.0 / net.outputs if spec.mean else 2.0))
    cdef Py_ssize_t i, row, done = 0, width = net.buffers[0].width
    cdef const real* x
    cdef const char* target
    cdef double loss
    for i in range(n):
        row = batch.order[i] if batch.order != NULL else i
        x = batch.x + row * batch.x_row
        target = batch.target + row * batch.target_bytes
        if spec.labels and (<const int64_t*>target)[0] == spec.ignore_index and not all_finite(x, width):
            memset(p.ws.value[0], 0, width * sizeof(real))      # its gradient is zero, and NaN times zero is NaN
            x = p.ws.value[0]
        if kind < 0:
            loss = wide_sample(net, &spec, p.ws, x, target, factor, &own, correct)
        else:
            loss = narrow_sample(kind, net, &spec, p.ws, vf_load_first(x, width), target, factor, &own, correct)
        total[0] += loss        # one after another: in how many calls makes no difference
        if not isfinite(loss):
            break
        done += 1
    return done


cdef extern from *:
    """
    #define SAMPLES(KIND, name, blocks, varies, kind, ...) (kind) == KIND ? samples(KIND, __VA_ARGS__) :
    #define samples_of(...) (UPDATES(SAMPLES, __VA_ARGS__) 0)
    """
    Py_ssize_t samples_of(int kind, const Pass* p, Py_ssize_t n, double* total, Py_ssize_t* correct) nogil


cdef Py_ssize_t train_samples(const Pass* p, Py_ssize_t n, double* total, Py_ssize_t* correct) noexcept nogil:
    """n training steps of one row each, in the batch's order or as they lie, all with the same coefficients.

    Adds the loss of each to total. Stops after a loss that is not finite; how many were finite.
    """
    if not one_vector_each(p.net):
        return samples(-1, p, n, total, correct)
    if can_be_held(p.net, &p.batch.loss, p.wants.update):
        if p.net.ops[0].n_in == 1:
            return held_samples(1, p, n, total)
        if p.net.ops[0].n_in == 2:
            return held_samples(2, p, n, total)
        return held_samples(3, p, n, total)
    return samples_of(p.wants.update.kind, p, n, total, correct)
