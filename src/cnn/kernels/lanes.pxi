# Lanes: one model in each lane of the vectors, VL models of one shape trained at once.
#
# Everything is a vector over the lanes: weights [in][out][lane], values [row][unit][lane]. There are no shuffles, no
# padding of widths and no sums across lanes; rows that all models share are broadcast. The products are those of
# blocks.pxi, 2 in out rows multiply-adds a product and model, as anywhere; the parameters and states of VL models lie
# in one piece, which for narrow layers stays in the L1 or L2 cache from step to step.
#
# For chains of linear layers with activations, by SGD and Adam's family. A loss other than MSE goes through the kernels
# of loss.pxi, model by model. Nothing here depends on which models share a vector: a model's numbers are those of the
# lane, whatever the other lanes hold, and NaN stays in its lane.

from libc.string cimport memcmp

cdef enum:
    LANE_WIDTH = 32             # of the widest layer; wider ones run as fast one model after the other
    LANE_ROWS = 1 << 18         # of the data: each lane has an order of its own
    LANE_STEPS = 16             # of one row, between two looks at their losses
    LANE_LEAST = 3              # models of one shape: fewer are faster one after the other

# The coefficients of a step, as those of `Update`, of each lane.
cdef struct LaneUpdate:
    UpdateKind kind
    vf lr
    vf weight_decay
    vf m_decay
    vf d_to_m
    vf m_to_step
    vf d_to_step
    vf v_decay
    vf d_to_v
    vf v_scale
    vf w_decay
    vf eps

# Memory of one thread for the models in a vector, or in ABREAST of them: their parameters, and after them the states,
# each `size` reals, as the gradients; values of all buffers; losses of steps of one row; what lies before an
# activation; two gradients; x and targets; a model's outputs.
cdef struct LaneRoom:
    Py_ssize_t lanes            # numbers from one parameter to the next: models that there is room for
    Py_ssize_t size
    real* w
    real* g
    real* value
    real* before
    real* losses                # of steps of one row
    real* grad
    real* grad_before
    real* x
    real* target
    real* y
    real* dy
    char* labels


cdef Py_ssize_t lane_widest(const Network* net) noexcept nogil:
    """The most numbers in a row of a buffer."""
    cdef Py_ssize_t widest = 0
    cdef int b
    for b in range(net.n_buffers):
        widest = larger(widest, net.buffers[b].width)
    return widest


cdef bint lanes_fit(const Member* m) noexcept nogil:
    """Whether a model can be in a lane: its layers, loss, optimiser and rows."""
    cdef const Network* net = m.net
    cdef const LossSpec* loss = &m.rows.batch.loss
    cdef const Op* op
    cdef int i
    if net.frozen or m.stepper.groups != 1 or m.stepper.unfused or m.stepper.average.at != NULL or m.accumulate != 1:
        return False
    if m.rows.batch.x == NULL or m.rows.batch.out != NULL or m.rows.batch.weight != NULL or loss.column != NULL:
        return False
    if m.rows.batch.rows > LANE_ROWS or lane_widest(net) > LANE_WIDTH:
        return False
    if loss.ignore_nan or loss.labels and not m.rows_finite:
        return False
    for i in range(net.n_ops):
        op = &net.ops[i]
        if op.does != &LINEAR or op.src != i or op.dst != i + 1:
            return False
    return lane_kind(m) >= 0


cdef int lane_kind(const Member* m) noexcept nogil:
    """The kind of update of a model's optimiser, or -1 if lanes have none."""
    cdef const double* row = m.stepper.table
    cdef Update u = coefficients(row, row[HYPER_LR], row[HYPER_MOMENTUM], 1, 1, 0, 0)
    if m.states == 1 and (u.kind == UPDATE_PLAIN or u.kind == UPDATE_SGD):
        return UPDATE_MOMENTUM      # its schedule gives the momentum
    return -1 if u.kind == UPDATE_RMSPROP else u.kind


cdef bint lanes_alike(const Member* a, const Member* b) noexcept nogil:
    """Whether two models that fit can share a vector, where they are at the same row."""
    cdef const LossSpec* loss = &a.rows.batch.loss
    cdef const LossSpec* other = &b.rows.batch.loss
    cdef int i
    for i in range(a.net.n_ops):
        if a.net.ops[i].param != b.net.ops[i].param:
            return False
    return (a.shape == b.shape and a.n == b.n and a.batch_size == b.batch_size and a.shuffled == b.shuffled
            and a.rows.batch.rows == b.rows.batch.rows and (a.rates == NULL) == (b.rates == NULL)
            and loss.kind == other.kind and loss.labels == other.labels and loss.mean == other.mean
            and loss.targets == other.targets and loss.ignore_index == other.ignore_index
            and memcmp(loss.param, other.param, sizeof(loss.param)) == 0
            and lane_kind(a) == lane_kind(b))


cdef int lane_states(int kind) noexcept nogil:
    return 0 if kind == UPDATE_PLAIN or kind == UPDATE_SGD else 1 if kind == UPDATE_MOMENTUM else \
        2 if kind == UPDATE_ADAM else 3


cdef inline Py_ssize_t lane_width(Py_ssize_t n) noexcept nogil:
    """Vectors from a row of n values to the next: an odd number, so that a column of them does not lie in two sets of
    the L1 cache."""
    return n | 1


cdef Py_ssize_t lane_room(const Member* m, Py_ssize_t lanes, Py_ssize_t batch, real* at,
                          LaneRoom* room) noexcept nogil:
    """Reals that the memory takes; with at, let its pointers lead there. What a step of one row takes comes first."""
    cdef const Network* net = m.net
    cdef Py_ssize_t rows = batch * lanes, targets = larger(net.loss.targets, 1)
    cdef Py_ssize_t size = 0, row = round_up(net.outputs, VL), values = 0, widest = 0
    cdef int i, blocks = 1 + lane_states(lane_kind(m))
    cdef LaneRoom r
    for i in range(net.n_ops):
        size += (net.ops[i].n_in + net.ops[i].has_bias) * net.ops[i].n_out * lanes
        values += lane_width(net.ops[i].n_out)
        widest = larger(widest, lane_width(larger(net.ops[i].n_in, net.ops[i].n_out)))
    r.lanes, r.size, r.w = lanes, size, at
    r.value = at + blocks * size
    r.losses = r.value + values * rows
    r.grad = r.losses + LANE_STEPS * lanes
    r.grad_before = r.grad + widest * rows
    r.x = r.grad_before + widest * rows
    r.target = r.x + widest * rows
    r.g = r.target + targets * rows
    r.before = r.g + size
    r.y = r.before + values * rows
    r.dy = r.y + row * batch
    r.labels = <char*>(r.dy + row * batch)
    room[0] = r
    return <real*>r.labels - at + targets * batch * (sizeof(double) // sizeof(real))


# The optimiser's step -------------------------------------------------------------------------------------------------

cdef inline vf lane_updated(const int kind, vf w, vf g, real* state, Py_ssize_t block,
                            const LaneUpdate* u) noexcept nogil:
    """As `updated` (optimizer.pxi), with coefficients of each lane."""
    cdef vf d = g, m, v
    if kind == UPDATE_PLAIN:
        return vf_fma(-u.lr, g, w)
    d = vf_fma(u.weight_decay, w, g)
    if kind == UPDATE_SGD:
        return vf_fma(-u.lr, d, w)
    m = vf_load(state)
    if kind == UPDATE_MOMENTUM:
        m = vf_fma(u.m_decay, m, u.d_to_m * d)
        vf_store(state, m)
        return vf_fma(-u.lr, vf_fma(u.m_to_step, m, u.d_to_step * d), w)
    m = vf_flush(vf_fma(u.d_to_m, d - m, m))
    vf_store(state, m)
    v = vf_fma(u.d_to_v * d, d, u.v_decay * vf_load(state + block))
    vf_store(state + block, v)
    if kind == UPDATE_AMSGRAD:
        v = vf_max(vf_load(state + 2 * block), v)
        vf_store(state + 2 * block, v)
    d = m / vf_fma(vf_sqrt(vf_max(vf_set(SMALLEST), v)), u.v_scale, u.eps)
    return vf_fma(-u.lr, d, u.w_decay * w)


cdef inline void lane_sweep "lane_sweep"(const int kind, Py_ssize_t size, Py_ssize_t rows, Py_ssize_t n, real* w,
                                         const real* g, Py_ssize_t row, const LaneUpdate* given) noexcept nogil:
    cdef LaneUpdate u = given[0]
    cdef Py_ssize_t i, j
    for i in range(rows):
        for j from 0 <= j < n by VL:
            vf_store(w + j, lane_updated(kind, vf_load(w + j), vf_load(g + j), w + size + j, size, &u))
        w += row
        g += row


cdef void lane_step(Py_ssize_t size, Py_ssize_t rows, Py_ssize_t n, real* w, const real* g, Py_ssize_t row,
                    const LaneUpdate* u) noexcept nogil:
    """The step of the parameters w (rows, n), which lie `row` apart, as their gradients g; size: that of the room."""
    if u.kind == UPDATE_PLAIN:
        lane_sweep(UPDATE_PLAIN, size, rows, n, w, g, row, u)
    elif u.kind == UPDATE_SGD:
        lane_sweep(UPDATE_SGD, size, rows, n, w, g, row, u)
    elif u.kind == UPDATE_MOMENTUM:
        lane_sweep(UPDATE_MOMENTUM, size, rows, n, w, g, row, u)
    elif u.kind == UPDATE_ADAM:
        lane_sweep(UPDATE_ADAM, size, rows, n, w, g, row, u)
    else:
        lane_sweep(UPDATE_AMSGRAD, size, rows, n, w, g, row, u)


cdef inline void set_lane(vf* vector, int lane, real value) noexcept nogil:
    (<real*>vector)[lane] = value


cdef void lane_coefficients(Member** team, Py_ssize_t taken, LaneUpdate* u, double[2][16] power,
                            bint alike) noexcept nogil:
    """Those of the step after `taken` others in this call; power: of each lane beta1**t and beta2**t of Adam's kinds,
    which go on from step to step. alike: they are the same in all lanes."""
    cdef Update own
    cdef Member* m
    cdef const double* row
    cdef const double* rate
    cdef int l
    cdef UpdateKind kind = lane_kind(team[0])
    cdef double momentum
    cdef bint goes_on = taken > 0 and team[0].rates == NULL and (u.kind == UPDATE_ADAM or u.kind == UPDATE_AMSGRAD)
    if goes_on and alike:
        row = team[0].stepper.table
        power[0][0] *= row[HYPER_MOMENTUM]
        power[1][0] *= row[HYPER_OWN]
        momentum = 1 / (1 - power[0][0])
        u.v_scale = vf_set(<real>(1 / sqrt(1 - power[1][0])))
        for l in range(VL):
            set_lane(&u.lr, l, <real>(team[l].stepper.table[HYPER_LR] * momentum))
        return
    for l in range(VL):
        m = team[l]
        row = m.stepper.table
        rate = m.rates
        if rate != NULL:
            rate += taken * m.rates_step
        if goes_on:
            power[0][l] *= row[HYPER_MOMENTUM]
            power[1][l] *= row[HYPER_OWN]
            set_lane(&u.lr, l, <real>(row[HYPER_LR] / (1 - power[0][l])))
            set_lane(&u.v_scale, l, <real>(1 / sqrt(1 - power[1][l])))
            continue
        momentum = row[HYPER_MOMENTUM] if rate == NULL else rate[1]
        own = coefficients(row, row[HYPER_LR] if rate == NULL else rate[0], momentum, m.stepper.steps + taken,
                           m.stepper.momentum_steps + taken, 0, 0)
        if own.kind == UPDATE_ADAM or own.kind == UPDATE_AMSGRAD:
            power[0][l] = pow(momentum, m.stepper.steps + taken + 1)
            power[1][l] = pow(row[HYPER_OWN], m.stepper.steps + taken + 1)
        elif own.kind != kind:      # a momentum of zero, which may be another one in other lanes
            own.kind, own.m_decay, own.d_to_m, own.m_to_step, own.d_to_step = kind, 1, 0, 0, 1
        u.kind = own.kind
        set_lane(&u.lr, l, own.lr)
        set_lane(&u.weight_decay, l, own.weight_decay)
        set_lane(&u.m_decay, l, own.m_decay)
        set_lane(&u.d_to_m, l, own.d_to_m)
        set_lane(&u.m_to_step, l, own.m_to_step)
        set_lane(&u.d_to_step, l, own.d_to_step)
        set_lane(&u.v_decay, l, own.v_decay)
        set_lane(&u.d_to_v, l, own.d_to_v)
        set_lane(&u.v_scale, l, own.v_scale)
        set_lane(&u.w_decay, l, own.w_decay)
        set_lane(&u.eps, l, own.eps)


# Models in and out ----------------------------------------------------------------------------------------------------

cdef void lane_copy(Member** team, int count, const LaneRoom* room, int states, bint back) noexcept nogil:
    """The parameters and states of the models to their lanes, or back."""
    cdef int block, i, l
    cdef Py_ssize_t j, k, own, at = 0
    cdef const Op* op
    cdef real* model
    for block in range(1 + states):
        for i in range(team[0].net.n_ops):
            op = &team[0].net.ops[i]
            for j in range(op.n_in + op.has_bias):
                for k in range(op.n_out):
                    if j == op.n_in:
                        own = op.bias + k
                    else:
                        own = op.weight + (k * op.row + j if op.transposed else j * op.row + k)
                    for l in range(count if back else room.lanes):
                        model = team[l].net.params
                        if block > 0:
                            model = team[l].net.state + (block - 1) * team[0].net.n_block
                        if back:
                            model[own] = room.w[at + l]
                        else:
                            room.w[at + l] = model[own]
                    at += room.lanes


# A batch --------------------------------------------------------------------------------------------------------------

cdef void lane_rows(Member** team, const int64_t** orders, bint shared, Py_ssize_t at, Py_ssize_t rows,
                    const LaneRoom* room) noexcept nogil:
    """x and, unless they are labels, the targets of a batch: numbers if all share them, vectors if not."""
    cdef const Batch* batch
    cdef Py_ssize_t r, row, i, width = team[0].net.buffers[0].width, targets = team[0].rows.batch.loss.targets
    cdef const real* x
    cdef const real* t
    cdef int l
    cdef Py_ssize_t step = 1 if shared else room.lanes
    if team[0].rows.batch.loss.labels:
        targets = 0
    for l in range(step):
        batch = &team[l].rows.batch
        for r in range(rows):
            row = at + r if orders[l] == NULL else orders[l][at + r]
            x = batch.x + row * batch.x_row
            t = <const real*>(batch.target + row * batch.target_bytes)
            for i in range(width):
                room.x[(r * width + i) * step + l] = x[i]
            for i in range(targets):
                room.target[(r * targets + i) * step + l] = t[i]


cdef inline vf lane_mse(Py_ssize_t rows, Py_ssize_t n, const real* y, const real* t, bint shared, double scale,
                        real* dy) noexcept nogil:
    """The sum of the squared errors of each lane, and the gradient of scale times it."""
    cdef vf d, total = vf_set(0), factor = vf_set(<real>(2 * scale))
    cdef Py_ssize_t r, j
    for r in range(rows):
        for j in range(n):
            d = vf_load(y + j * VL) - (vf_set(t[j]) if shared else vf_load(t + j * VL))
            total = vf_fma(d, d, total)
            vf_store(dy + j * VL, factor * d)
        y += lane_width(n) * VL
        dy += lane_width(n) * VL
        t += n if shared else n * VL
    return total


cdef void lane_loss(Member** team, int count, const int64_t** orders, bint shared, Py_ssize_t at, Py_ssize_t rows,
                    const LaneRoom* room, const real* y, double* loss, double* weight,
                    Py_ssize_t* correct) noexcept nogil:
    """The sum of the loss over the rows, of each lane, and its gradient; adds to the weights and to correct."""
    cdef const Batch* batch
    cdef LossSpec spec = team[0].rows.batch.loss
    cdef Py_ssize_t r, k, row, n = team[0].net.outputs, y_row = round_up(n, VL), width = lane_width(n)
    cdef Py_ssize_t bytes = sizeof(int64_t) if spec.labels else spec.targets * sizeof(real)
    cdef double own
    cdef vf total
    cdef int l
    if spec.kind == LOSS_MSE:
        total = lane_mse(rows, n, y, room.target, shared, loss_scale(&spec, rows) / (n if spec.mean else 1), room.grad)
        own = 1.0 / n if spec.mean else 1
        for l in range(VL):
            loss[l] = own * (<real*>&total)[l]
            weight[l] += rows
        return
    for l in range(count):
        batch = &team[l].rows.batch
        for r in range(rows):
            row = at + r if orders[0 if shared else l] == NULL else orders[0 if shared else l][at + r]
            memcpy(room.labels + r * bytes, batch.target + row * batch.target_bytes, bytes)
            for k in range(n):
                room.y[r * y_row + k] = y[(r * width + k) * VL + l]
        own = loss_weight(&spec, rows, room.labels, bytes, NULL)
        weight[l] += own
        loss[l] = loss_rows(&spec, rows, n, room.y, y_row, room.labels, bytes, NULL, loss_scale(&spec, own), room.dy,
                            y_row, &correct[l])
        for r in range(rows):
            for k in range(n):
                room.grad[(r * width + k) * VL + l] = room.dy[r * y_row + k]
    for l in range(count, VL):
        loss[l] = 0
        for k in range(rows * width):
            room.grad[k * VL + l] = 0


cdef const real* lane_forward(const Network* net, const LaneRoom* room, const real* x, Py_ssize_t x_row, bint shared,
                              Py_ssize_t rows) noexcept nogil:
    """The outputs; the values of all buffers lie one after the other."""
    cdef LaneProduct p
    cdef const Op* op
    cdef const real* w = room.w
    cdef real* value = room.value
    cdef real* before = room.before
    cdef Py_ssize_t width
    cdef int i
    p.rows, p.a, p.a_row, p.a_k = rows, x, x_row, 1 if shared else VL
    for i in range(net.n_ops):
        op = &net.ops[i]
        p.columns, p.depth = op.n_out, op.n_in
        p.b, p.b_k, p.b_column = w, op.n_out * VL, VL
        w += op.n_in * op.n_out * VL
        p.start, p.start_row, p.start_column = w if op.has_bias else NULL, 0, VL
        w += op.n_out * VL if op.has_bias else 0
        width = lane_width(op.n_out) * VL
        p.c, p.c_row, p.floor = before if op.keeps_input else value, width, 0 if op.act == RELU else -INFINITY
        lane_product(shared and i == 0, &p)
        if op.act != IDENTITY and op.act != RELU:
            activate_rows(op.act, op.param, rows, op.n_out * VL, p.c, width, value, width)
        p.a, p.a_row, p.a_k = value, width, VL
        value += rows * width
        before += rows * width
    return p.a


cdef void lane_backward(const Network* net, LaneRoom* room, const real* x, Py_ssize_t x_row, bint shared,
                        Py_ssize_t rows, const LaneUpdate* u) noexcept nogil:
    """From the gradient of the outputs to the optimiser's step: of a block of columns of the weights as soon as there
    is its gradient, so that square roots and divisions run beside the next block's multiply-adds."""
    cdef LaneProduct p
    cdef const Op* op
    cdef real* w = room.w + room.size
    cdef Py_ssize_t r, k, width, before, end = 0
    cdef vf total
    cdef int i
    p.floor = -INFINITY
    for i in range(net.n_ops):
        end += rows * lane_width(net.ops[i].n_out) * VL
    for i in range(net.n_ops - 1, -1, -1):
        op = &net.ops[i]
        width, before = lane_width(op.n_out) * VL, lane_width(op.n_in) * VL
        end -= rows * width
        if op.act != IDENTITY:
            activate_backward_rows(op.act, op.param, op.keeps_input, rows, op.n_out * VL, room.grad, width,
                                   (room.before if op.keeps_input else room.value) + end, width, room.grad, width)
        if op.has_bias:
            w -= op.n_out * VL
            for k in range(op.n_out):
                total = vf_set(0)
                for r in range(rows):
                    total = total + vf_load(room.grad + r * width + k * VL)
                vf_store(room.g + k * VL, total)
            lane_step(room.size, 1, op.n_out * VL, w, room.g, 0, u)
        w -= op.n_in * op.n_out * VL
        if i > 0:
            p.start = NULL
            p.rows, p.columns, p.depth = rows, op.n_in, op.n_out
            p.a, p.a_row, p.a_k = room.grad, width, VL
            p.b, p.b_k, p.b_column, p.c, p.c_row = w, VL, op.n_out * VL, room.grad_before, before
            lane_product(False, &p)
            p.a, p.a_row, p.a_k = room.value + end - rows * before, VL, before
        else:
            p.a, p.a_row, p.a_k = x, 1 if shared else VL, x_row
        p.start = NULL
        p.rows, p.columns, p.depth = op.n_in, op.n_out, rows
        p.b, p.b_k, p.b_column, p.c, p.c_row = room.grad, width, VL, room.g, op.n_out * VL
        k = 0
        while k < op.n_out:
            r = lane_columns(shared and i == 0, &p, k)
            lane_step(room.size, op.n_in, r * VL, w + k * VL, room.g + k * VL, op.n_out * VL, u)
            k += r
        room.grad, room.grad_before = room.grad_before, room.grad


# One row --------------------------------------------------------------------------------------------------------------

cdef inline void lane_sample "lane_sample"(const int kind, const int vectors, const Network* net, const LaneRoom* room,
                                           const real* x, const real* target, bint shared, const LaneUpdate* u,
                                           vf factor, real* loss) noexcept nogil:
    """A step of one row by the mean squared error, of so many vectors of models. For each layer and model

        y = f(x W + b), f ReLU or none      x (in,), W (in, out), b and y (out,)
        dz = dy where y > 0, dx = W dz      dy = factor (y - t) of the last
        W -= lr x^T dz, b -= lr dz          or as Adam has it

    6 in out FLOPs. The sums of the squared errors go to loss, vectors. A gradient takes the place of its output, and
    is used while it is in registers: row k of the weights above it gives it and is updated, then what made it is. Each
    weight is read twice and written once; what a small network costs is its stores."""
    cdef const Op* op
    cdef const real* a = x
    cdef const real* dy = NULL
    cdef real* w = room.w
    cdef real* y = room.value
    cdef real* above = NULL
    cdef real* at
    cdef Py_ssize_t j, k, n_in, n_out, n_above = 0, size = room.size, step = vectors * VL
    cdef vf d, w_kj, floor
    cdef vf total[ABREAST]
    cdef vf y_k[ABREAST]
    cdef vf errors[ABREAST]
    cdef int i, t, last = net.n_ops - 1
    for t in range(vectors):
        errors[t] = vf_set(0)
    for i in range(net.n_ops):
        op = &net.ops[i]
        n_in, n_out, floor = op.n_in, op.n_out, vf_set(0 if op.act == RELU else -INFINITY)
        for k in range(n_out):
            for t in range(vectors):
                total[t] = vf_load(w + n_in * n_out * step + k * step + t * VL) if op.has_bias else vf_set(0)
            for j in range(n_in):
                for t in range(vectors):
                    d = vf_set(a[j]) if shared and i == 0 else vf_load(a + j * step + t * VL)
                    total[t] = vf_fma(d, vf_load(w + (j * n_out + k) * step + t * VL), total[t])
            for t in range(vectors):
                d = vf_max(floor, total[t])
                if i == last:
                    d = d - (vf_set(target[k]) if shared else vf_load(target + k * step + t * VL))
                    errors[t] = vf_fma(d, d, errors[t])
                    d = vf_select_gt(total[t], floor, factor * d, vf_set(0))
                vf_store(y + k * step + t * VL, d)
        w += (n_in + op.has_bias) * n_out * step
        a = y
        y += n_out * step
    for t in range(vectors):
        vf_store(loss + t * VL, errors[t])
    for i in range(last, -1, -1):
        op = &net.ops[i]
        n_in, n_out, floor = op.n_in, op.n_out, vf_set(0 if op.act == RELU else -INFINITY)
        w -= (n_in + op.has_bias) * n_out * step
        y -= n_out * step
        for k in range(n_out):
            for t in range(vectors):
                total[t] = vf_load(y + k * step + t * VL)
            if i < last:
                for t in range(vectors):
                    y_k[t] = total[t]
                    total[t] = vf_set(0)
                for j in range(n_above):
                    for t in range(vectors):
                        at = above + (k * n_above + j) * step + t * VL
                        d = vf_load(dy + j * step + t * VL)
                        w_kj = vf_load(at)
                        total[t] = vf_fma(d, w_kj, total[t])
                        vf_store(at, lane_updated(kind, w_kj, d * y_k[t], at + size, size, &u[t]))
                for t in range(vectors):
                    total[t] = vf_select_gt(y_k[t], floor, total[t], vf_set(0))
                    if i > 0:
                        vf_store(y + k * step + t * VL, total[t])
            for t in range(vectors if op.has_bias else 0):
                at = w + n_in * n_out * step + k * step + t * VL
                vf_store(at, lane_updated(kind, vf_load(at), total[t], at + size, size, &u[t]))
            for j in range(n_in if i == 0 else 0):
                for t in range(vectors):
                    at = w + (j * n_out + k) * step + t * VL
                    d = total[t] * (vf_set(x[j]) if shared else vf_load(x + j * step + t * VL))
                    vf_store(at, lane_updated(kind, vf_load(at), d, at + size, size, &u[t]))
        above, n_above, dy = w, n_out, y


cdef bint lane_sample_fits(const Member* m) noexcept nogil:
    """Whether `lane_sample` is there for a model's steps."""
    cdef int i, kind = lane_kind(m)
    if m.batch_size != 1 or m.rows.batch.loss.kind != LOSS_MSE or kind != UPDATE_PLAIN and kind != UPDATE_ADAM:
        return False
    for i in range(m.net.n_ops):
        if m.net.ops[i].act != RELU and m.net.ops[i].act != IDENTITY:
            return False
    return True


cdef Py_ssize_t lanes_of(const Member* m) noexcept nogil:
    """How many models, this one among them, are trained side by side at most. Where a step is square roots and
    divisions, more would not be faster."""
    return VL * ABREAST if lane_kind(m) == UPDATE_PLAIN and lane_sample_fits(m) else VL


cdef inline void lane_samples "lane_samples"(const int kind, const int vectors, const Network* net,
                                             const LaneRoom* room, bint shared, const LaneUpdate* u, Py_ssize_t steps,
                                             real* losses) noexcept nogil:
    cdef Py_ssize_t i, width = net.buffers[0].width, targets = net.outputs
    cdef vf factor = vf_set(<real>(2.0 / (targets if net.loss.mean else 1)))
    for i in range(steps):
        lane_sample(kind, vectors, net, room, room.x + i * width, room.target + i * targets, shared, u, factor, losses)
        losses += VL * vectors


cdef void lane_steps(const Network* net, const LaneRoom* room, bint shared, const LaneUpdate* u, Py_ssize_t steps,
                     real* losses) noexcept nogil:
    """Steps of one row each, of rows that lie one after the other from room.x and room.target on."""
    if u.kind == UPDATE_ADAM:
        lane_samples(UPDATE_ADAM, 1, net, room, shared, u, steps, losses)
    elif room.lanes == VL:
        lane_samples(UPDATE_PLAIN, 1, net, room, shared, u, steps, losses)
    else:
        lane_samples(UPDATE_PLAIN, ABREAST, net, room, shared, u, steps, losses)


cdef void add_losses(Member** team, int count, Py_ssize_t at, Py_ssize_t steps, const LaneRoom* room, double scale,
                     double* total) noexcept nogil:
    """Add the losses of steps of one row, from row `at` on, to the totals; note the first that is not finite."""
    cdef vf sums
    cdef Py_ssize_t i, j
    cdef int l
    for j from 0 <= j < room.lanes by VL:
        sums = vf_set(0)
        for i in range(steps):
            sums = sums + vf_load(room.losses + i * room.lanes + j)
        for l in range(VL):
            total[j + l] += scale * (<real*>&sums)[l]
    for l in range(count):
        for i in range(0 if isfinite(total[l]) or team[l].bad[0] >= 0 else steps):
            if not isfinite(room.losses[i * room.lanes + l]) and team[l].bad[0] < 0:
                team[l].bad[0] = at + i


# Training -------------------------------------------------------------------------------------------------------------

cdef bint lanes_share(Member** team, int count) noexcept nogil:
    """Whether all have the same rows in the same order."""
    cdef const Member* a = team[0]
    cdef const Member* b
    cdef int l
    for l in range(1, count):
        b = team[l]
        if (a.rows.batch.x != b.rows.batch.x or a.rows.batch.target != b.rows.batch.target or a.bag != b.bag
                or a.shuffled and (a.seed != b.seed or a.epoch != b.epoch)):
            return False
    return True


cdef bint train_lanes(Crowd* crowd, Member** team, int count, int thread) noexcept nogil:
    """`train_member` for models that share a vector."""
    cdef Network* net = team[0].net
    cdef Member* m
    cdef LaneRoom room
    cdef LaneUpdate u[ABREAST]
    cdef double power[ABREAST][2][16]
    cdef double[16] loss, weight
    cdef double total[MOST_ABREAST]
    cdef Py_ssize_t[16] correct
    cdef const int64_t* orders[MOST_ABREAST]
    cdef Py_ssize_t at = team[0].at[0], n = team[0].n, rows, work = 0, taken = 0, x_row
    cdef const real* x
    cdef const Batch* batch
    cdef bint direct            # the rows can be read where they lie
    cdef bint shared = lanes_share(team, count)
    cdef int l, states = lane_states(lane_kind(team[0]))
    cdef bint sample = lane_sample_fits(team[0])
    cdef double odd
    cdef Py_ssize_t held = 0, steps
    cdef bint alike = True      # the powers of Adam's kinds
    lane_room(team[0], VL if count <= VL else VL * ABREAST, smaller(team[0].batch_size, n), crowd.rooms[thread].at,
              &room)
    memset(u, 0, sizeof(u))
    memset(power, 0, sizeof(power))
    memset(weight, 0, sizeof(weight))
    memset(total, 0, sizeof(total))
    memset(correct, 0, sizeof(correct))
    memset(orders, 0, sizeof(orders))
    for l in range(room.lanes):
        orders[l] = orders[0]
        if l < (1 if shared else count):
            orders[l] = order_of(team[l], &crowd.turns[thread * MOST_ABREAST + l], team[l].rows.batch.rows)
        alike = alike and (team[l].stepper.steps == team[0].stepper.steps
                           and team[l].stepper.table[HYPER_MOMENTUM] == team[0].stepper.table[HYPER_MOMENTUM]
                           and team[l].stepper.table[HYPER_OWN] == team[0].stepper.table[HYPER_OWN])
        if team[l].fresh:
            if team[l].guarded:
                copy_state(team[l], crowd.slots[BEFORE].at, True)
            team[l].fresh = False
    lane_copy(team, count, &room, states, False)
    x_row = net.buffers[0].width if shared else net.buffers[0].width * room.lanes
    batch = &team[0].rows.batch
    direct = shared and orders[0] == NULL and not batch.loss.labels and batch.x_row == x_row \
        and batch.target_bytes == batch.loss.targets * <Py_ssize_t>sizeof(real)
    while at < team[0].stop:
        if work > CLOCK_WORK:
            if nanoseconds() > crowd.deadline:
                break
            work = 0
        rows = smaller(team[0].batch_size, n - at)
        if direct:
            room.x = <real*>team[0].rows.batch.x + at * x_row
            room.target = <real*>(team[0].rows.batch.target + at * team[0].rows.batch.target_bytes)
        else:
            lane_rows(team, orders, shared, at, rows, &room)
        if taken < 2 or team[0].rates != NULL or UPDATE_VARIABLE[u[0].kind]:
            for l in range(room.lanes // VL):
                lane_coefficients(team + l * VL, taken, &u[l], power[l], alike)
        if sample:
            steps = 1
            if direct and taken > 0 and team[0].rates == NULL and not UPDATE_VARIABLE[u[0].kind]:
                steps = smaller(LANE_STEPS - held, team[0].stop - at)
            lane_steps(net, &room, shared, u, steps, room.losses + held * room.lanes)
            held += steps
            taken += steps
            at += steps
            work += steps * larger(net.work * VL, 1000)
            if held == LANE_STEPS or at >= team[0].stop:
                add_losses(team, count, at - held, held, &room, 1.0 / net.outputs if net.loss.mean else 1, total)
                held = 0
            continue
        x = lane_forward(net, &room, room.x, x_row, shared, rows)
        lane_loss(team, count, orders, shared, at, rows, &room, x, loss, weight, correct)
        lane_backward(net, &room, room.x, x_row, shared, rows, u)
        taken += 1
        odd = 0
        for l in range(VL):
            odd += 0 * loss[l]
            total[l] += loss[l]
        if odd != 0:                # NaN: one of them is not finite
            for l in range(count):
                if not isfinite(loss[l]) and team[l].bad[0] < 0:
                    team[l].bad[0] = at
        at += rows
        work += larger(rows * net.work * VL, 1000)
    if sample:
        add_losses(team, count, at - held, held, &room, 1.0 / net.outputs if net.loss.mean else 1, total)
    lane_copy(team, count, &room, states, True)
    for l in range(count):
        m = team[l]
        m.totals[0] += total[l]
        m.totals[1] += <double>(at - m.at[0]) if sample else weight[l]
        m.totals[2] += correct[l]
        m.totals[3] += at - m.at[0]
        m.rows_seen[0] += at - m.at[0]
        m.at[0] = at
        m.stepper.steps += taken
        for steps in range(taken if u[0].kind == UPDATE_MOMENTUM else 0):
            m.stepper.momentum_steps += m.rates == NULL or m.rates[steps * m.rates_step + 1] != 0
        if m.rates != NULL:
            m.rates += taken * m.rates_step
        if m.guarded and m.bad[0] < 0 and at >= n and not all_finite(m.net.params, net.n_block):
            m.bad[0] = at
        if m.bad[0] >= 0:
            if m.guarded:
                copy_state(m, crowd.slots[BEFORE].at, False)
            m.active = False
    return at >= team[0].stop
