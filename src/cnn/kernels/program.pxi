# The program: a Sequential compiled to an array of ops over numbered buffers, and the walks along it. Plain C: no
# Python object is touched here. The class that Python sees is in model.pxi.
#
# Buffer 0 is the input of the model; every op reads buffer `src` and writes buffer `dst`. A buffer has a value, a
# gradient and, where its op's activation needs it, the value before the activation, all (batch, width) with rows
# padded to VL; the padding is zero. They live in a Workspace, which grows with the batch and is otherwise allocated
# once.
#
# Weights lie as the products like them. Normally W is (in, out), its rows padded to VL and the bias one more row below.
# A layer much narrower than a vector is kept transposed, (out, in), or most of each vector would be padding; its
# forward pass is `dot_rows`. Long rows are an odd number of cache lines apart, so that a panel's lines spread over all
# sets of the cache. No one outside sees this: `view` gives NumPy arrays of shape (in, out) with the strides that fit.
#
# A pass over a batch has two parts, each shared among threads and done when all have finished:
#
#     rows      chunk by chunk of the batch: forward, the loss and its gradient, backward to all buffers' gradients
#     weights   piece by piece of the weight matrices: gradient, added up or used at once for the optimiser's step
#
# No sum runs across chunks or pieces, except that of the loss, which is kept for each block of LOSS_BLOCK rows and
# added up in order: so results do not depend on threads or chunks.

cdef enum OpKind:
    OP_LINEAR           # z = x W + b, y = act(z)
    OP_ACTIVATION       # y = act(x)

cdef struct Op:
    OpKind kind
    int src
    int dst
    Activation act
    real act_param
    bint keeps_input        # the derivative needs z, or x: it is kept beside y
    bint own_slope          # this op multiplies its gradient by act'; if not, the op that made the gradient did
    int slope_of            # linear: the op whose act' is multiplied into dX, or -1
    Py_ssize_t n_in
    Py_ssize_t n_out
    bint transposed         # W is kept as (out, in)
    Py_ssize_t weight       # element offsets in the parameter block
    Py_ssize_t row          # from a row of W to the next
    Py_ssize_t bias         # there is always room for one; without `has_bias` it stays zero
    bint has_bias

cdef struct Buffer:
    Py_ssize_t width
    Py_ssize_t row          # width padded
    bint kept               # the value before the activation is kept too

cdef struct Network:
    int n_ops
    int n_buffers
    Op* ops
    Buffer* buffers
    LossSpec loss
    real* params            # blocks of n_block reals: parameters, gradients, and three of optimiser state
    real* grads
    real* state
    Py_ssize_t n_block
    Py_ssize_t n_parameters     # without the padding
    Py_ssize_t work         # multiply-adds of a forward pass of one row
    Py_ssize_t outputs      # width of the last buffer
    bint pad_input          # the first layer reads its input in whole vectors

cdef struct Workspace:
    void* memory
    Py_ssize_t capacity     # rows
    int threads             # panels
    real** value            # of each buffer
    real** before           # before the activation
    real** grad
    real* panel             # of thread 0; the others' follow
    Py_ssize_t panel_size
    char* targets           # gathered in the order of the batch
    double* losses          # of the training passes, see Pass
    Py_ssize_t* correct

# What a pass over a batch does, for all its threads.
cdef struct Pass:
    const Network* net
    Workspace* ws
    Py_ssize_t batch
    const real* x
    Py_ssize_t x_row
    const int64_t* order    # the rows of x and target to take, NULL: as they lie
    LossSpec loss           # the network's, with `labels` as the targets are
    const char* target      # NULL: no loss
    Py_ssize_t target_bytes     # from a row of the targets to the next
    double* losses          # sum of each LOSS_BLOCK rows
    Py_ssize_t* correct     # how many of them are classified right
    double scale            # of the gradient of the loss
    bint gather             # copy the rows of x, and the targets of an order, into the workspace first
    bint forward
    bint keep               # ... and what a backward pass needs, and the gradient of the loss
    bint backward
    bint input_grad
    bint weights            # gradients of the weights
    bint overwrite          # ... replace the old ones
    const Update* update    # ... or are used for the step
    real* out               # NULL, or where the outputs are copied
    Py_ssize_t out_row
    int threads
    Py_ssize_t chunk        # rows; not used for training, where it follows from the threads
    int64_t claimed         # chunks, or pieces, begun by a thread

cdef enum:
    LINE = 64                   # bytes of a cache line
    FEW_ROWS = 4                # up to this batch, dX is dot products with the rows of W as they lie
    LOSS_BLOCK = 64             # rows whose losses are added up before they join the others'
    CHUNK_BYTES = 1 << 19       # activations of one chunk of `predict`: half of L2
    CHUNK_ROWS = 128            # at least; a chunk packs W^T anew, which costs as much as a few rows
    MOST_ROWS = 512             # at most; the activations of a chunk stay in L2 on the way back
    PIECE_ROWS = 128            # of W, at least; a piece packs dZ anew
    THREAD_WORK = 1 << 20       # multiply-adds below which a second thread is not called: about 20 microseconds


cdef Py_ssize_t padded_row(Py_ssize_t width, Py_ssize_t rows) noexcept nogil:
    """Elements between the rows of a (rows, width) matrix: whole vectors, and an odd number of lines where the matrix
    is larger than an L1 cache can hold without conflicts."""
    cdef Py_ssize_t row = round_up(width, VL), per_line = LINE // <Py_ssize_t>sizeof(real)
    if row * rows * <Py_ssize_t>sizeof(real) <= 32768 or row < 4 * per_line:
        return row
    row = round_up(row, per_line)
    return row if row // per_line % 2 else row + per_line


cdef real* allocate(Py_ssize_t n, void** memory) except NULL:
    """n zeroed reals, aligned to a cache line, in new memory that is to be freed. Untouched pages take no memory."""
    memory[0] = calloc(n * sizeof(real) + LINE, 1)
    if memory[0] == NULL:
        raise MemoryError(f"cannot allocate {n * sizeof(real)} bytes")
    return <real*>(<uintptr_t>memory[0] // LINE * LINE + LINE)


cdef void forward_linear(const Op* op, Py_ssize_t batch, const real* x, Py_ssize_t x_row, const real* params,
                         real* y, Py_ssize_t y_row, real* z, real* panel) noexcept nogil:
    """y = act(x W + b); z, where not NULL, keeps x W + b. 2 batch in out FLOPs."""
    cdef Product p
    cdef bint relu = op.act == RELU
    cdef real* sums = y if z == NULL else z
    cdef const real* bias = params + op.bias
    cdef real floor = <real>(0 if relu else -INFINITY)
    if op.transposed or batch == 1:
        if op.transposed:
            dot_rows(batch, op.n_in, op.n_out, x, x_row, params + op.weight, op.row, bias, floor, sums, y_row)
        else:
            row_forward(op.n_in, round_up(op.n_out, VL) // VL, x, params + op.weight, op.row, bias, floor, sums)
        if not relu and op.act != IDENTITY:
            activate_rows(op.act, op.act_param, batch, op.n_out, sums, y_row, y, y_row)
        return
    memset(&p, 0, sizeof(p))
    p.m = batch
    p.n = round_up(op.n_out, VL)
    p.k = op.n_in
    p.a = x
    p.a_row = x_row
    p.a_col = 1
    p.b = params + op.weight
    p.b_row = op.row
    p.c = sums
    p.c_row = y_row
    p.start = bias
    p.finish = FINISH_STORE
    p.floor = floor
    p.act = IDENTITY if relu else op.act
    p.act_param = op.act_param
    p.act_out = y
    p.act_width = op.n_out
    p.panel = panel
    product(&p)


cdef void input_gradient(const Op* op, const Op* before, const real* saved, Py_ssize_t batch, const real* dz,
                         Py_ssize_t dz_row, const real* params, real* dx, Py_ssize_t dx_row,
                         bint few, real* panel) noexcept nogil:
    """dX = dZ W^T, times act'(z) of the op `before` that made x (NULL: none). 2 batch in out FLOPs.

    few: as dot products with the rows of W where they lie, which packs nothing. The sums run in another order then, so
    this is to be the same for all rows of a batch.
    """
    cdef Product p
    cdef bint slope = before != NULL and before.act != IDENTITY
    cdef bint mask = slope and before.act == RELU
    if few and not op.transposed:
        dot_rows(batch, op.n_out, op.n_in, dz, dz_row, params + op.weight, op.row, NULL, <real>-INFINITY, dx, dx_row)
        if slope:
            activate_backward_rows(before.act, before.act_param, before.keeps_input, batch, op.n_in, dx, dx_row,
                                   saved, dx_row, dx, dx_row)
        return
    memset(&p, 0, sizeof(p))
    p.m = batch
    p.n = round_up(op.n_in, VL)
    p.k = op.n_out
    p.a = dz
    p.a_row = dz_row
    p.a_col = 1
    p.b = params + op.weight
    p.b_row = op.row
    p.b_transposed = not op.transposed
    p.b_valid = op.n_in
    p.c = dx
    p.c_row = dx_row
    p.floor = <real>-INFINITY
    p.finish = FINISH_MASK if mask else FINISH_STORE
    p.saved = saved
    p.saved_row = dx_row
    p.act = before.act if slope and not mask else IDENTITY
    p.act_param = before.act_param if slope else 0
    p.act_backward = True
    p.act_saved_is_input = slope and before.keeps_input
    p.act_width = op.n_in
    p.panel = panel
    product(&p)


cdef void weight_gradient(const Op* op, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t batch, const real* x,
                          Py_ssize_t x_row, const real* dz, Py_ssize_t dz_row, const Network* net,
                          const Update* update, bint overwrite, real* panel) noexcept nogil:
    """dW = X^T dZ and db = sum of dZ over the batch, for `rows` rows of W from `first` on: added to the gradients, or
    stored there, or, with an update, used for the optimiser's step and not kept. 2 batch in out FLOPs for all rows.

    The bias goes with the last row. A transposed layer reads x in vectors: its rows must be padded.
    """
    cdef Product p
    cdef bint last = first + rows == (op.n_out if op.transposed else op.n_in)
    memset(&p, 0, sizeof(p))
    p.m = rows
    p.k = batch
    p.finish = FINISH_UPDATE if update != NULL else FINISH_STORE if overwrite else FINISH_ADD
    p.floor = <real>-INFINITY
    p.update = update
    p.act = IDENTITY
    p.panel = panel
    p.a_row = 1
    if op.transposed:
        p.n = round_up(op.n_in, VL)
        p.a = dz + first
        p.a_col = dz_row
        p.b = x
        p.b_row = x_row
    else:
        p.n = round_up(op.n_out, VL)
        p.a = x + first
        p.a_col = x_row
        p.b = dz
        p.b_row = dz_row
        p.ones_row = op.has_bias and last
    p.c = net.grads + op.weight + first * op.row
    p.c_row = op.row
    p.param = net.params + op.weight + first * op.row
    product(&p)
    if op.transposed and op.has_bias and last:
        p.m = 0
        p.n = round_up(op.n_out, VL)
        p.b = dz
        p.b_row = dz_row
        p.ones_row = True
        p.c = net.grads + op.bias
        p.param = net.params + op.bias
        product(&p)


# Rows: forward, loss, backward ----------------------------------------------------------------------------------------

cdef inline real* row_of(real** buffers, const Network* net, int b, Py_ssize_t first) noexcept nogil:
    """Row `first` of a buffer's value, gradient, ..."""
    return buffers[b] + first * net.buffers[b].row


cdef void walk_forward(const Network* net, Workspace* ws, Py_ssize_t first, Py_ssize_t batch, const real* x,
                       Py_ssize_t x_row, bint keep, real* panel) noexcept nogil:
    """Run the ops on x (batch, in), which is row `first` and following of the workspace. keep: for walk_backward."""
    cdef int i
    cdef const Op* op
    cdef const real* src
    cdef Py_ssize_t src_row
    cdef real* dst
    for i in range(net.n_ops):
        op = &net.ops[i]
        src = x if op.src == 0 else row_of(ws.value, net, op.src, first)
        src_row = x_row if op.src == 0 else net.buffers[op.src].row
        dst = row_of(ws.value, net, op.dst, first)
        if op.kind == OP_LINEAR:
            forward_linear(op, batch, src, src_row, net.params, dst, net.buffers[op.dst].row,
                           row_of(ws.before, net, op.dst, first) if keep and op.keeps_input else NULL, panel)
        else:
            activate_rows(op.act, op.act_param, batch, op.n_out, src, src_row, dst, net.buffers[op.dst].row)


cdef const real* kept(const Network* net, Workspace* ws, const Op* op, Py_ssize_t first, const real* x) noexcept nogil:
    """What the forward pass kept for op's derivative: its output, or what went into the activation."""
    if not op.keeps_input:
        return row_of(ws.value, net, op.dst, first)
    if op.kind == OP_LINEAR:
        return row_of(ws.before, net, op.dst, first)
    return x if op.src == 0 else row_of(ws.value, net, op.src, first)


cdef void slope_in_place(const Network* net, Workspace* ws, const Op* op, Py_ssize_t first,
                         Py_ssize_t batch) noexcept nogil:
    """Turn the gradient of a linear op's result into that of x W + b.

    ReLU's whole vectors at a time: in the padding the gradient is zero and stays so. Others could make 0 * inf of it.
    """
    cdef Py_ssize_t row = net.buffers[op.dst].row
    cdef real* dz = row_of(ws.grad, net, op.dst, first)
    if op.act != IDENTITY:
        activate_backward_rows(op.act, op.act_param, op.keeps_input, batch,
                               round_up(op.n_out, VL) if op.act == RELU else op.n_out, dz, row,
                               kept(net, ws, op, first, NULL), row, dz, row)


cdef void walk_backward(const Network* net, Workspace* ws, Py_ssize_t first, Py_ssize_t batch, const real* x,
                        Py_ssize_t x_row, bint input_grad, bint few, real* panel) noexcept nogil:
    """From the gradient of the outputs to those of all buffers, for the rows that walk_forward has run."""
    cdef int i
    cdef const Op* op
    cdef const Op* before
    cdef Py_ssize_t dst_row
    cdef real* dz
    for i in range(net.n_ops - 1, -1, -1):
        op = &net.ops[i]
        dz = row_of(ws.grad, net, op.dst, first)
        dst_row = net.buffers[op.dst].row
        if op.kind == OP_LINEAR and op.own_slope:
            slope_in_place(net, ws, op, first, batch)
        if op.src == 0 and not input_grad:
            continue
        if op.kind == OP_ACTIVATION:
            activate_backward_rows(op.act, op.act_param, op.keeps_input, batch, op.n_out, dz, dst_row,
                                   kept(net, ws, op, first, x),
                                   (x_row if op.src == 0 else net.buffers[op.src].row) if op.keeps_input else dst_row,
                                   row_of(ws.grad, net, op.src, first), net.buffers[op.src].row)
            continue
        before = &net.ops[op.slope_of] if op.slope_of >= 0 else NULL
        input_gradient(op, before, kept(net, ws, before, first, NULL) if before != NULL else NULL, batch, dz, dst_row,
                       net.params, row_of(ws.grad, net, op.src, first), net.buffers[op.src].row, few, panel)


cdef double output_loss(const Network* net, const LossSpec* loss, Workspace* ws, Py_ssize_t first, Py_ssize_t batch,
                        const char* target, Py_ssize_t target_bytes, double scale, bint gradient,
                        Py_ssize_t* correct) noexcept nogil:
    """Sum of the loss over some rows; with gradient, that of the outputs goes to their buffer, times scale."""
    cdef int last = net.n_buffers - 1
    cdef Py_ssize_t row = net.buffers[last].row
    return loss_rows(loss, batch, net.outputs, row_of(ws.value, net, last, first), row, target, target_bytes, NULL,
                     scale, row_of(ws.grad, net, last, first) if gradient else NULL, row, correct)


cdef void pass_rows(Pass* p, Py_ssize_t first, Py_ssize_t batch, int thread) noexcept nogil:
    """The part `rows` of a pass, for one chunk."""
    cdef const Network* net = p.net
    cdef Workspace* ws = p.ws
    cdef int last = net.n_buffers - 1
    cdef Py_ssize_t i, block, x_row = p.x_row, width = net.buffers[0].width * sizeof(real)
    cdef Py_ssize_t at = first if p.keep else thread * p.chunk      # in the workspace; see reserve
    cdef const real* x = p.x + first * x_row
    cdef const char* target = p.target + first * p.target_bytes
    cdef Py_ssize_t target_bytes = p.target_bytes
    cdef real* panel = ws.panel + thread * ws.panel_size
    if p.forward and p.gather:
        for i in range(batch):
            memcpy(row_of(ws.value, net, 0, at + i),
                   p.x + (p.order[first + i] if p.order != NULL else first + i) * x_row, width)
    if p.gather:
        x, x_row = row_of(ws.value, net, 0, at), net.buffers[0].row
    if p.order != NULL and p.target != NULL:
        target_bytes = sizeof(int64_t) if p.loss.labels else net.outputs * sizeof(real)
        target = ws.targets + first * target_bytes
        for i in range(batch):
            memcpy(ws.targets + (first + i) * target_bytes, p.target + p.order[first + i] * p.target_bytes,
                   target_bytes)
    if p.forward:
        walk_forward(net, ws, at, batch, x, x_row, p.keep, panel)
    if p.out != NULL:
        copy_rows(batch, net.outputs, row_of(ws.value, net, last, at), net.buffers[last].row,
                  p.out + first * p.out_row, p.out_row)
    if p.target != NULL:
        for i from 0 <= i < batch by LOSS_BLOCK:
            block = (first + i) // LOSS_BLOCK
            p.correct[block] = 0
            p.losses[block] = output_loss(net, &p.loss, ws, at + i, smaller(LOSS_BLOCK, batch - i),
                                          target + i * target_bytes, target_bytes, p.scale, p.keep, &p.correct[block])
    if p.backward:
        walk_backward(net, ws, first, batch, x, x_row, p.input_grad, p.batch <= FEW_ROWS, panel)


cdef void rows_task(void* argument, int thread) noexcept nogil:
    cdef Pass* p = <Pass*>argument
    cdef Py_ssize_t first
    while True:
        first = atomic_add(&p.claimed, 1) * p.chunk
        if first >= p.batch:
            break
        pass_rows(p, first, smaller(p.chunk, p.batch - first), thread)


# Weights --------------------------------------------------------------------------------------------------------------

cdef void weights_task(void* argument, int thread) noexcept nogil:
    cdef Pass* p = <Pass*>argument
    cdef const Network* net = p.net
    cdef const Op* op
    cdef const real* x
    cdef Py_ssize_t x_row, rows, piece, first, claimed = atomic_add(&p.claimed, 1), at = 0
    cdef int i
    for i in range(net.n_ops - 1, -1, -1):
        op = &net.ops[i]
        if op.kind != OP_LINEAR:
            continue
        rows = op.n_out if op.transposed else op.n_in
        piece = rows if p.threads == 1 else larger(PIECE_ROWS, round_up(rows // (4 * p.threads) + 1, TILE_MR))
        first = 0
        while first < rows:
            if at == claimed:
                x, x_row = p.ws.value[op.src], net.buffers[op.src].row
                if op.src == 0 and not p.gather:
                    x, x_row = p.x, p.x_row
                weight_gradient(op, first, smaller(piece, rows - first), p.batch, x, x_row, p.ws.grad[op.dst],
                                net.buffers[op.dst].row, net, p.update, p.overwrite,
                                p.ws.panel + thread * p.ws.panel_size)
                claimed = atomic_add(&p.claimed, 1)
            at += 1
            first += piece


# A batch --------------------------------------------------------------------------------------------------------------

cdef double run_pass(Pass* p, int threads, Py_ssize_t* correct) noexcept nogil:
    """Do what p asks for; the sum of the loss over the rows. Adds the rows classified right to correct."""
    cdef Py_ssize_t block
    cdef double total = 0
    if p.batch * p.net.work < THREAD_WORK:
        threads = 1
    p.threads = threads
    if p.keep or p.backward:
        p.chunk = round_up(larger(CHUNK_ROWS, smaller(MOST_ROWS, p.batch // (4 * threads) + 1)), LOSS_BLOCK)
        if threads == 1 and p.batch <= 2 * MOST_ROWS:
            p.chunk = p.batch
    p.claimed = 0
    if p.forward or p.backward:
        parallel(rows_task, p, threads if p.chunk < p.batch else 1)
    p.claimed = 0
    if p.weights:
        parallel(weights_task, p, threads)
    if p.target != NULL:
        for block in range((p.batch + LOSS_BLOCK - 1) // LOSS_BLOCK):
            total += p.losses[block]
            correct[0] += p.correct[block]
    return total


cdef double train_batch(Pass* p, int threads, Py_ssize_t* correct) noexcept nogil:
    """One training step; the sum of the loss over the rows of the batch."""
    cdef double loss = 0
    if p.batch > 1:
        return run_pass(p, threads, correct)
    train_samples(p, 1, &loss, correct)
    return loss
