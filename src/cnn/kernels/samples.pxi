# Rows of a batch in the lanes: a narrow network, VL rows at once.
#
# Layers about as wide as a vector leave lanes of the row kernels empty, and give tiles one vector wide, which load a
# number for each multiply-add. Here a vector has the same unit of VL rows, whatever the widths: values lie as
# [unit][row], a block of BLOCK_VECTORS vectors of rows after the other, and the products are those of blocks.pxi with
# the weights broadcast. A block goes forward, through the loss and backward before the next is touched: it stays in L1.
#
# What leaves a block are sums over its rows, lane by lane and then over the lanes pairwise. They are added up for each
# of a few segments of the batch, whose number depends on its rows alone, and those in order: so results do not depend
# on threads.
#
# In prediction, each output is the same sum in the same order as in `affine`, to the last bit: whether a batch goes
# this way may depend on its rows. Lanes behind its last row have copies of that row, whose gradient is zero.

cdef enum:
    BLOCK_VECTORS = 8           # of rows
    MOST_SEGMENTS = 8           # of a batch
    SEGMENT_ROWS = 1024         # at least, but for a batch of one segment
    SAMPLE_WIDTH = 96           # of the widest layer

    SAMPLE_ROWS = 2             # vectors of them in a batch, at least
    SAMPLE_TRAINED = 4          # ... that is trained on
    LOSS_BLOCK = 16             # rows whose losses are added up before they join the others'

cdef real[SAMPLE_WIDTH] NO_ROW

# Memory of a thread for a block: values of all buffers, one after the other; what lies before an activation; two
# gradients; the biases, a vector each; the targets; rows of outputs and their gradients.
cdef struct SampleRoom:
    Py_ssize_t vectors          # of rows in this block
    Py_ssize_t rows
    real* bias
    real* value
    real* before
    real* grad
    real* grad_before
    real* target
    real* y
    real* dy
    const real* row[BLOCK_VECTORS * 16]


cdef bint samples_reach(const Network* net) noexcept nogil:
    """Whether a network is a chain of narrow linear layers."""
    cdef const Op* op
    cdef int i
    for i in range(net.n_ops):
        op = &net.ops[i]
        if op.does != &LINEAR or op.src != i or op.dst != i + 1 or op.n_out > SAMPLE_WIDTH or op.n_in > SAMPLE_WIDTH:
            return False
    return net.n_ops > 0


cdef Py_ssize_t sample_weights(const Network* net) noexcept nogil:
    """Reals of the sums of a segment: see samples_backward."""
    cdef LaneProduct shape
    cdef Py_ssize_t n = 0
    cdef int i
    for i in range(net.n_ops):
        weight_shape(&net.ops[i], &shape)
        n += bias_size(&net.ops[i]) + lane_sums(&shape, NULL, False, NULL, 0)
    return n


cdef Py_ssize_t sample_room(const Network* net, bint train, real* at, SampleRoom* room) noexcept nogil:
    """Reals that a block takes; with at, let its pointers lead there."""
    cdef Py_ssize_t values = 0, widest = 0, units = 0, block = BLOCK_VECTORS * VL, row = round_up(net.outputs, VL), n
    cdef int i
    for i in range(net.n_buffers):
        values += net.buffers[i].width
        widest = larger(widest, net.buffers[i].width)
    units = values - net.buffers[0].width
    n = units * VL + (2 * widest + net.buffers[0].width) * block
    if at != NULL:
        room.bias = at
        room.grad = room.bias + units * VL
        room.grad_before = room.grad + widest * block
        room.value = room.grad_before + widest * block
    if at != NULL and train:
        room.before = room.value + values * block
        room.target = room.before + units * block
        room.y = room.target + net.outputs * block
        room.dy = room.y + row * block
    return n + (2 * units + net.outputs + 2 * row) * block if train else n


cdef bint samples_pay(const Network* net, bint train) noexcept nogil:
    """Whether rows in the lanes are faster, by a count of cycles a row that fits what was measured (Zen 4): a vector's
    multiply-adds; sums over the lanes, in `dot_rows` and of the gradients; the way of x and y to the lanes and back;
    activations."""
    cdef const Op* op
    cdef double rows = 18 if train else 0           # the loss, row by row
    cdef double lanes = (net.buffers[0].width + net.outputs) * (4.0 if VL == 2 else 7 if VL == 16 else 5) / VL
    cdef Py_ssize_t wide, turned
    cdef int i
    for i in range(net.n_ops):
        op = &net.ops[i]
        wide, turned = op.n_in * (round_up(op.n_out, VL) // VL), op.n_out * (round_up(op.n_in, VL) // VL)
        rows += (turned + 3 * op.n_out if op.transposed else wide) * (2 if train else 1)
        rows += turned if train and i else 0
        lanes += op.n_in * op.n_out * ((3 if i else 2) + 0.35 if train else 1.1) / VL
        lanes += 2 * op.n_out if op.transposed and not train else 0
        if op.act != IDENTITY and op.act != RELU:
            rows += 14 * (round_up(op.n_out, VL) // VL)
            lanes += 14.0 * op.n_out / VL
    return lanes < rows


cdef bint samples_fit(const Network* net, bint train) noexcept nogil:
    """Whether rows are to be in the lanes: of a chain of narrow linear layers."""
    return (samples_reach(net) and sample_room(net, train, NULL, NULL) <= K_BLOCK * TILE_NV * VL
            and samples_pay(net, train))


cdef inline bint samples_train(const Network* net, Py_ssize_t rows) noexcept nogil:
    """Whether a batch of so many rows is trained on in the lanes, if nothing is frozen."""
    return net.lanes_train and rows >= SAMPLE_TRAINED * VL


cdef bint samples_serve(const Pass* p) noexcept nogil:
    """Whether rows are to be in the lanes in a pass: forward alone, or all of a training step with nothing frozen."""
    cdef const Request* wants = &p.wants
    if not wants.forward or p.batch.csr.start != NULL:
        return False
    if wants.backward:
        return (samples_train(p.net, p.batch.rows) and not p.net.frozen
                and p.batch.target != NULL and wants.weights and not wants.input_grad)
    return p.net.lanes_infer and not wants.keep and smaller(p.batch.rows, p.phase.chunk) >= SAMPLE_ROWS * VL


cdef Py_ssize_t segments_of(Py_ssize_t rows) noexcept nogil:
    return larger(1, smaller(MOST_SEGMENTS, rows // SEGMENT_ROWS))


cdef Py_ssize_t sample_sums(const Network* net, Py_ssize_t rows) noexcept nogil:
    """Reals of the workspace for a weight's gradient as it lies, with its padding, and the sums of each segment."""
    if not samples_train(net, rows):
        return 0
    return net.n_block + segments_of(rows) * sample_weights(net)


cdef inline bint counts(const Batch* batch, Py_ssize_t place) noexcept nogil:
    """Whether a row has a weight above zero and a target that is not to be ignored. place: of its target and weight."""
    if batch.weight != NULL and batch.weight[place] == 0:
        return False
    if batch.loss.ignore_nan:
        return known_targets(&batch.loss, <const real*>(batch.target + place * batch.target_bytes)) > 0
    return not (batch.loss.labels
                and (<const int64_t*>(batch.target + place * batch.target_bytes))[0] == batch.loss.ignore_index)


# From rows to lanes and back ------------------------------------------------------------------------------------------

cdef inline void transpose(vf* r) noexcept nogil:
    """VL vectors as the columns of what they were the rows of: log2(VL) rounds of VL shuffles."""
    cdef vf s[16]
    cdef int i, turn = 1
    while turn < VL:
        for i in range(VL // 2):
            s[2 * i] = vf_zip_lo(r[i], r[i + VL // 2])
            s[2 * i + 1] = vf_zip_hi(r[i], r[i + VL // 2])
        for i in range(VL):
            r[i] = s[i]
        turn *= 2


cdef void to_lanes(const real** row, Py_ssize_t vectors, Py_ssize_t width, real* lanes) noexcept nogil:
    """lanes [width][vectors x VL] of so many rows."""
    cdef vf r[16]
    cdef Py_ssize_t v, j, rest, across = vectors * VL
    cdef int i
    for v in range(vectors):
        for j from 0 <= j <= width - VL by VL:
            for i in range(VL):
                r[i] = vf_load(row[i] + j)
            transpose(r)
            for i in range(VL):
                vf_store(lanes + (j + i) * across, r[i])
        rest = width - j
        if 4 * rest > VL:
            for i in range(VL):
                r[i] = vf_load_first(row[i] + j, rest)
            transpose(r)
            for i in range(VL):
                if i < rest:
                    vf_store(lanes + (j + i) * across, r[i])
        else:
            for j in range(j, width):
                for i in range(VL):
                    lanes[j * across + i] = row[i][j]
        lanes += VL
        row += VL


cdef void from_lanes(const real* lanes, Py_ssize_t across, Py_ssize_t rows, Py_ssize_t width, real* y,
                     Py_ssize_t y_row) noexcept nogil:
    """y (rows, width), rows that lie apart y_row, from lanes [width][across]. Nothing behind the width is written."""
    cdef vf r[16]
    cdef Py_ssize_t first, j, rest, count
    cdef int i
    for first from 0 <= first < rows by VL:
        count = smaller(VL, rows - first)
        for j from 0 <= j < width by VL:
            rest = smaller(VL, width - j)
            if 4 * rest <= VL:
                while rest:
                    for i in range(count):
                        y[i * y_row + j] = lanes[j * across + i]
                    j += 1
                    rest -= 1
                break
            for i in range(VL):
                r[i] = vf_load(lanes + (j + i) * across) if i < rest else vf_set(0)
            transpose(r)
            for i in range(VL):
                if i < count:
                    if rest == VL:
                        vf_store(y + i * y_row + j, r[i])
                    else:
                        vf_store_first(y + i * y_row + j, r[i], rest)
        lanes += VL
        y += VL * y_row


cdef void take_block(const Pass* p, Py_ssize_t first, Py_ssize_t rows, SampleRoom* room) noexcept nogil:
    """Take rows of x from `first` on into the block, in the order of the batch where it has one."""
    cdef Py_ssize_t i
    room.rows = rows
    room.vectors = (rows + VL - 1) // VL
    for i in range(rows):
        room.row[i] = p.batch.x + (first + i if p.batch.order == NULL else p.batch.order[first + i]) * p.batch.x_row
    for i in range(rows if p.wants.leave_out else 0):
        if not counts(&p.batch, first + i):
            room.row[i] = NO_ROW
    for i in range(rows, room.vectors * VL):
        room.row[i] = room.row[rows - 1]
    to_lanes(room.row, room.vectors, p.net.buffers[0].width, room.value)


# Forward --------------------------------------------------------------------------------------------------------------

cdef inline void lane_dots "lane_dots"(const int nc, const LaneProduct* p, Py_ssize_t column) noexcept nogil:
    """`lane_product` of numbers by vectors in the order of `dot_rows`: VL chains of terms, added pairwise; start."""
    cdef vf part[16]
    cdef vf total[16]
    cdef vf a_k
    cdef Py_ssize_t r, k, last = smaller(VL, p.depth)
    cdef int i, j, unit, four = 4 if VL >= 4 else 2
    cdef const real* a
    for r in range(p.rows):
        a = p.a + r * p.a_row
        for unit from 0 <= unit < VL by four:
            for i in range(4):
                for j in range(nc):
                    part[i * nc + j] = vf_set(0)
            for k from unit <= k < p.depth by VL:
                for i in range(four):
                    if k + i < p.depth:
                        a_k = vf_set(a[(k + i) * p.a_k])
                        for j in range(nc):
                            part[i * nc + j] = vf_fma(a_k, vf_load(p.b + (k + i) * p.b_k + (column + j) * VL),
                                                      part[i * nc + j])
            for j in range(nc):
                total[unit // four * nc + j] = (part[j] + part[nc + j]) + (part[2 * nc + j] + part[3 * nc + j])
        for j in range(nc):
            if VL == 16:
                total[j] = (total[j] + total[nc + j]) + (total[2 * nc + j] + total[3 * nc + j])
            elif VL == 8:
                total[j] = total[j] + total[nc + j]
            vf_store(p.c + r * p.c_row + (column + j) * VL, total[j] + vf_load(p.start + r * p.start_row))


cdef void samples_biases(const Network* net, real* bias) noexcept nogil:
    cdef const Op* op
    cdef int i
    cdef Py_ssize_t k
    for i in range(net.n_ops):
        op = &net.ops[i]
        for k in range(op.n_out):
            vf_store(bias + k * VL, vf_set(net.params[op.bias + k]))
        bias += op.n_out * VL


cdef real* samples_forward(const Network* net, const SampleRoom* room, bint keep) noexcept nogil:
    """The outputs of a block, [out][row]. keep: the values of all buffers, which lie one after the other."""
    cdef LaneProduct p
    cdef const Op* op
    cdef const real* bias = room.bias
    cdef real* x = room.value
    cdef real* y
    cdef real* before = room.before
    cdef Py_ssize_t across = room.vectors * VL, column
    cdef int i
    p.columns, p.b_k, p.b_column, p.c_row, p.start_row, p.start_column = room.vectors, across, VL, across, VL, 0
    for i in range(net.n_ops):
        op = &net.ops[i]
        y = x + op.n_in * across if keep else (room.grad if i % 2 else room.grad_before)
        p.rows, p.depth, p.b, p.start = op.n_out, op.n_in, x, bias
        p.a, p.a_row, p.a_k = net.params + op.weight, op.row if op.transposed else 1, 1 if op.transposed else op.row
        p.c, p.floor = before if keep and op.keeps_input else y, 0 if op.act == RELU else -INFINITY
        if keep or not op.transposed:
            lane_product(True, &p)
        else:
            column = 0
            while column + 4 <= p.columns:
                lane_dots(4, &p, column)
                column += 4
            while column < p.columns:
                lane_dots(1, &p, column)
                column += 1
        if op.act != IDENTITY and (op.act != RELU or not keep and op.transposed):
            activate_rows(op.act, op.param, 1, op.n_out * across, p.c, 0, y, 0)
        bias += op.n_out * VL
        before += op.n_out * across
        x = y
    return x


cdef void samples_outputs(const Pass* p, const Chunk* c, Py_ssize_t first) noexcept nogil:
    """The forward pass of a chunk whose rows, from `first` on of the batch, nobody comes back to."""
    cdef const Network* net = c.net
    cdef SampleRoom room
    cdef Py_ssize_t at, rows, last = net.n_buffers - 1
    cdef real* y
    sample_room(net, False, c.panel, &room)
    samples_biases(net, room.bias)
    for at from 0 <= at < c.batch by BLOCK_VECTORS * VL:
        rows = smaller(BLOCK_VECTORS * VL, c.batch - at)
        take_block(p, first + at, rows, &room)
        y = samples_forward(net, &room, False)
        from_lanes(y, room.vectors * VL, rows, net.outputs, row_of(c.ws.value, net, last, c.first + at),
                   net.buffers[last].row)


# Loss and backward ----------------------------------------------------------------------------------------------------

cdef void samples_mse(const Pass* p, Py_ssize_t first, const SampleRoom* room, const real* y) noexcept nogil:
    """`samples_loss` of the mean squared error where all rows and columns count alike."""
    cdef const Batch* batch = &p.batch
    cdef Py_ssize_t i, k, v, n = p.net.outputs, rest
    cdef double mean = 1.0 / n if batch.loss.mean else 1
    cdef vf d, total = vf_set(0), factor = vf_set(<real>(2 * mean * p.wants.scale))
    cdef real* dy = room.grad
    cdef const real* t = room.target
    cdef const real* row[BLOCK_VECTORS * 16]
    for i in range(room.vectors * VL):
        row[i] = <const real*>(batch.target + (first + smaller(i, room.rows - 1)) * batch.target_bytes)
    to_lanes(row, room.vectors, n, room.target)
    for k in range(n):
        rest = room.rows
        for v in range(room.vectors):
            d = vf_load(y) - vf_load(t)
            if rest < VL:
                d = vf_first(d, rest, vf_set(0))
            total = vf_fma(d, d, total)
            vf_store(dy, factor * d)
            y += VL
            t += VL
            dy += VL
            rest -= VL
    for i in range(first // LOSS_BLOCK, (first + room.rows + LOSS_BLOCK - 1) // LOSS_BLOCK):
        batch.losses[i] = 0
        batch.correct[i] = 0
    batch.losses[first // LOSS_BLOCK] = mean * vf_sum(total, VL)


cdef void samples_loss(const Pass* p, Py_ssize_t first, const SampleRoom* room, const real* y) noexcept nogil:
    """The loss of a block and the gradient of its outputs."""
    cdef const Network* net = p.net
    cdef const Batch* batch = &p.batch
    cdef Py_ssize_t i, block, rows, width = round_up(net.outputs, VL), across = room.vectors * VL
    cdef const real* row[BLOCK_VECTORS * 16]
    if batch.out != NULL:
        from_lanes(y, across, room.rows, net.outputs, batch.out + first * batch.out_row, batch.out_row)
    if batch.loss.kind == LOSS_MSE and batch.loss.column == NULL and not batch.loss.ignore_nan and batch.weight == NULL:
        samples_mse(p, first, room, y)
        return
    from_lanes(y, across, room.rows, net.outputs, room.y, width)
    for i from 0 <= i < room.rows by LOSS_BLOCK:
        block = (first + i) // LOSS_BLOCK
        rows = smaller(LOSS_BLOCK, room.rows - i)
        batch.correct[block] = 0
        batch.losses[block] = loss_rows(&batch.loss, rows, net.outputs, room.y + i * width, width,
                                        batch.target + (first + i) * batch.target_bytes, batch.target_bytes,
                                        batch.weight + first + i if batch.weight != NULL else NULL, p.wants.scale,
                                        room.dy + i * width, width, &batch.correct[block])
    for i in range(across):
        row[i] = room.dy + i * width if i < room.rows else NO_ROW
    to_lanes(row, room.vectors, net.outputs, room.grad)


cdef void bias_sums(Py_ssize_t n, Py_ssize_t vectors, const real* dz, real* g, bint add) noexcept nogil:
    """g = the sum of each of n rows of so many vectors, or g plus it; in whole vectors."""
    cdef vf r[16]
    cdef vf sums
    cdef Py_ssize_t k, v
    cdef int i
    for k from 0 <= k < n by VL:
        for i in range(VL):
            sums = vf_set(0)
            if k + i < n:
                sums = vf_load(dz)
                for v in range(1, vectors):
                    sums = sums + vf_load(dz + v * VL)
                dz += vectors * VL
            r[i] = sums
        sums = folded(r)
        vf_store(g + k, vf_load(g + k) + sums if add else sums)


cdef void weight_shape(const Op* op, LaneProduct* p) noexcept nogil:
    """The rows and columns of a weight as it lies."""
    p.rows, p.columns = op.n_out if op.transposed else op.n_in, op.n_in if op.transposed else op.n_out


cdef void samples_backward(const Network* net, SampleRoom* room, real* sums, bint add) noexcept nogil:
    """Backward from the gradient of the outputs. What the block adds to the gradients goes to the sums, or is added
    there: of each op, from the last to the first, those of the bias and those of the weight, tile by tile."""
    cdef LaneProduct p
    cdef const Op* op
    cdef real* value = room.value
    cdef real* before = room.before
    cdef Py_ssize_t across = room.vectors * VL
    cdef int i
    for i in range(net.n_ops):
        value += net.ops[i].n_in * across
        before += net.ops[i].n_out * across
    for i in range(net.n_ops - 1, -1, -1):
        op = &net.ops[i]
        before -= op.n_out * across
        if op.act != IDENTITY:
            activate_backward_rows(op.act, op.param, op.keeps_input, 1, op.n_out * across, room.grad, 0,
                                   before if op.keeps_input else value, 0, room.grad, 0)
        value -= op.n_in * across
        if op.has_bias:
            bias_sums(op.n_out, room.vectors, room.grad, sums, add)
            sums += bias_size(op)
        weight_shape(op, &p)
        p.a, p.b = room.grad if op.transposed else value, value if op.transposed else room.grad
        p.depth, p.a_row, p.a_k, p.b_k, p.b_column = room.vectors, across, VL, VL, across
        sums += lane_sums(&p, sums, add, NULL, 0)
        if i == 0:
            return
        p.rows, p.columns, p.depth, p.start, p.floor = op.n_in, room.vectors, op.n_out, NULL, -INFINITY
        p.a, p.a_row, p.a_k = net.params + op.weight, 1 if op.transposed else op.row, op.row if op.transposed else 1
        p.b, p.b_k, p.b_column, p.c, p.c_row = room.grad, across, VL, room.grad_before, across
        lane_product(True, &p)
        room.grad, room.grad_before = room.grad_before, room.grad


cdef void samples_task(void* argument, int thread) noexcept nogil:
    """Segment by segment of a batch: forward, loss, backward and sums."""
    cdef Pass* p = <Pass*>argument
    cdef const Network* net = p.net
    cdef SampleRoom room
    cdef Py_ssize_t segment, segments = segments_of(p.batch.rows), at, first, end, rows, n = sample_weights(net)
    cdef Py_ssize_t block = BLOCK_VECTORS * VL, blocks = (p.batch.rows + block - 1) // block
    sample_room(net, True, p.ws.panel + thread * p.ws.panel_size, &room)
    samples_biases(net, room.bias)
    while True:
        segment = atomic_add(&p.phase.claimed, 1)
        if segment >= segments:
            break
        first, end = blocks * segment // segments * block, blocks * (segment + 1) // segments * block
        for at from first <= at < smaller(end, p.batch.rows) by block:
            rows = smaller(block, p.batch.rows - at)
            take_block(p, at, rows, &room)
            samples_loss(p, at, &room, samples_forward(net, &room, True))
            samples_backward(net, &room, p.ws.lanes + net.n_block + segment * n, at > first)


cdef void samples_finish(const Pass* p) noexcept nogil:
    """Add up the sums of all segments: the gradients, or the optimiser's step."""
    cdef const Network* net = p.net
    cdef const Op* op
    cdef const Update* u = p.wants.update
    cdef Py_ssize_t segment, n = sample_weights(net)
    cdef real* g = p.ws.lanes
    cdef real* sums = g + net.n_block
    cdef LaneProduct shape
    cdef int i
    for segment in range(1, segments_of(p.batch.rows)):
        add_rows(1, n, sums + segment * n, 0, True, sums, 0)
    for i in range(net.n_ops - 1, -1, -1):
        op = &net.ops[i]
        if op.has_bias:
            finish_sums(p, sums, op.bias, 1, bias_size(op), op.bias_group)
            sums += bias_size(op)
        weight_shape(op, &shape)
        sums += lane_sums(&shape, sums, False, g, op.row)
        finish_sums(p, g, op.weight, shape.rows, op.row, op.weight_group)
        memset(g, 0, shape.rows * op.row * sizeof(real))


cdef void finish_sums(const Pass* p, const real* g, Py_ssize_t place, Py_ssize_t rows, Py_ssize_t row,
                      int group) noexcept nogil:
    """Store or add a gradient of some rows in its place in the block, or do the step."""
    if p.wants.update != NULL:
        update_rows(1, rows * row, p.net.params + place, 0, g, 0, p.wants.update + group)
    else:
        add_rows(1, rows * row, g, 0, not p.wants.overwrite, p.net.grads + place, 0)
