# The program: a Sequential compiled to an array of ops over numbered buffers, and the walks along it. Plain C: no
# Python object is touched here. The class that Python sees is in model.pxi.
#
# Buffer 0 is the input of the model; every op reads one or more buffers and writes buffer `dst`. A buffer has a value,
# a gradient and, where its op's activation needs it, the value before the activation, all (batch, width) with rows
# padded to VL; the padding is zero. They live in a Workspace, which grows with the batch and is otherwise allocated
# once. A buffer that several ops read gets the sum of their gradients: going back, the first to be visited stores its
# part and the others add theirs (`adds`).
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
# Batch normalisation needs all rows of its input before it gives one of its output. It cuts the ops into segments, and
# the part `rows` into one phase for each segment and direction, with the column sums between them.
#
# No sum runs across chunks or pieces, except that of the loss, which is kept for each block of LOSS_BLOCK rows and
# added up in order: so results do not depend on threads or chunks.

cdef enum OpKind:
    OP_LINEAR           # z = x W + b, y = act(z)
    OP_ACTIVATION       # y = act(x)
    OP_SOFTMAX
    OP_LOG_SOFTMAX
    OP_DROPOUT
    OP_BATCH_NORM
    OP_LAYER_NORM
    OP_ADD              # of two or more buffers, as the following
    OP_MULTIPLY
    OP_MAXIMUM
    OP_CONCAT

OP_KINDS = {
    "linear": OP_LINEAR,
    "activation": OP_ACTIVATION,
    "softmax": OP_SOFTMAX,
    "log_softmax": OP_LOG_SOFTMAX,
    "dropout": OP_DROPOUT,
    "batch_norm": OP_BATCH_NORM,
    "layer_norm": OP_LAYER_NORM,
    "add": OP_ADD,
    "multiply": OP_MULTIPLY,
    "maximum": OP_MAXIMUM,
    "concat": OP_CONCAT,
}

cdef struct Op:
    OpKind kind
    int n_src
    int* srcs
    char* adds              # of each source: its gradient joins what ops behind this one have left
    int src                 # the first source
    int dst
    Activation act
    real param              # of the activation; dropout: p; norms: eps
    bint keeps_input        # the derivative needs z, or x: it is kept beside y
    bint own_slope          # this op multiplies its gradient by act'; if not, the op that made the gradient did
    int slope_of            # linear: the op whose act' is multiplied into dX, or -1
    Py_ssize_t n_in         # of the first source
    Py_ssize_t n_out
    bint transposed         # W is kept as (out, in)
    bint has_weight         # linear: always; norms: one number a column
    bint has_bias
    Py_ssize_t weight       # element offsets in the parameter block
    Py_ssize_t row          # from a row of W to the next
    Py_ssize_t bias         # linear: there is always room for one; without `has_bias` it stays zero
    int weight_group        # rows of the optimiser's table
    int bias_group
    double l1               # penalties on the weights
    double l2
    double momentum         # of the running statistics; below zero: the mean of all batches
    Py_ssize_t running      # offset in the block of running statistics: mean, `row` further the variance
    int64_t tracked         # batches in them
    uint64_t key            # dropout: of its random numbers

cdef struct Buffer:
    Py_ssize_t width
    Py_ssize_t row          # width padded
    bint kept               # the value before the activation is kept too

cdef struct Network:
    int n_ops
    int n_buffers
    Op* ops
    int* sources            # of all ops: Op.srcs points into it
    char* adds
    Buffer* buffers
    int n_segments          # 1 + batch norms
    int* segments           # first op of each; but for the first segment, a batch norm
    bint chain              # linear ops and activations only, each reading what the one before wrote
    bint random             # dropout
    LossSpec loss
    real* params            # blocks of n_block reals: parameters, gradients, optimiser state
    real* grads
    real* state             # STATES blocks
    Py_ssize_t n_block
    real* running           # statistics of batch norms
    Py_ssize_t n_running
    Py_ssize_t n_parameters     # without the padding
    Py_ssize_t work         # multiply-adds of a forward pass of one row
    Py_ssize_t outputs      # width of the last buffer
    Py_ssize_t widest       # row of a buffer
    bint pad_input          # an op reads the input in whole vectors
    bint scratch            # some op needs the workspace's

cdef struct Workspace:
    void* memory
    Py_ssize_t capacity     # rows
    int threads             # panels
    real** value            # of each buffer
    real** before           # before the activation
    real** grad
    real** extra            # of each op, norms only: see extra_size
    real* scratch           # a gradient that is to be added to another, (capacity, widest)
    bint training           # dropout drops, batch norm takes the statistics of the batch
    int64_t row0            # number of the first row, of all that were trained on: dropout's masks depend on it
    real* panel             # of thread 0; the others' follow
    Py_ssize_t panel_size
    char* targets           # gathered in the order of the batch
    real* weights           # likewise
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
    const real* weight      # of the rows, NULL: one each
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
    const Update* update    # ... or are used for the step: one Update for each row of the optimiser's table
    real* out               # NULL, or where the outputs are copied
    Py_ssize_t out_row
    int threads
    Py_ssize_t chunk        # rows; not used for training, where it follows from the threads
    int64_t claimed         # chunks, or pieces, begun by a thread
    int start               # this phase runs ops start .. stop - 1 forward
    int stop
    int back_start          # ... and back_start - 1 .. back_stop backward
    int back_stop
    int norm                # between two phases: the batch norm whose columns are summed
    bint norm_backward

cdef enum:
    LINE = 64                   # bytes of a cache line
    FEW_ROWS = 4                # up to this batch, dX is dot products with the rows of W as they lie
    LOSS_BLOCK = 16             # rows whose losses are added up before they join the others'
    CHUNK_BYTES = 1 << 19       # activations of one chunk of `predict`: half of L2
    MOST_ROWS = 512             # of a chunk, in training; its activations stay in L2 on the way back
    PIECE_ROWS = 128            # of W, at least; a piece packs dZ anew
    MOST_SOURCES = 64           # of a gate
    STATES = 3                  # blocks of optimiser state
    STATISTICS = 5              # rows that a batch norm keeps: mean, 1 / deviation, variance, sums of dy xhat and of dy
    COLUMNS = 1024              # of a norm, in a piece of work
    THREAD_WORK = 1 << 20       # multiply-adds below which a second thread is not called: about 20 microseconds


cdef Py_ssize_t padded_row(Py_ssize_t width, Py_ssize_t rows) noexcept nogil:
    """Elements between the rows of a (rows, width) matrix: whole vectors, and an odd number of lines where the matrix
    is larger than an L1 cache can hold without conflicts."""
    cdef Py_ssize_t row = round_up(width, VL), per_line = LINE // <Py_ssize_t>sizeof(real)
    if row * rows * <Py_ssize_t>sizeof(real) <= 32768 or row < 4 * per_line:
        return row
    row = round_up(row, per_line)
    return row if row // per_line % 2 else row + per_line


cdef extern from *:
    """
    #if defined(__linux__)
    #include <sys/mman.h>
    #endif
    #define HUGE_PAGE ((size_t)1 << 21)
    /* Ask for huge pages: a large matrix is read in more pages than the processor remembers addresses of. */
    static inline void use_huge_pages(void *at, size_t bytes)
    {
    #if defined(MADV_HUGEPAGE)
        madvise(at, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
    #else
        (void)at, (void)bytes;
    #endif
    }

    /* Guards, in debug builds (CNN_GUARDS): a line before and one behind each arena must stay as they were. */
    #define GUARD_LINE 64
    #define GUARD_BYTE 0xA5
    #if CNN_GUARDS
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    /* The line before holds the size, then the pattern. */
    static void put_guards(void *arena, size_t size)
    {
        char *at = (char *)arena;
        memset(at - GUARD_LINE, GUARD_BYTE, GUARD_LINE);
        memcpy(at - GUARD_LINE, &size, sizeof(size));
        memset(at + size, GUARD_BYTE, GUARD_LINE);
    }
    static void check_guards(const void *arena)
    {
        const unsigned char *at = (const unsigned char *)arena;
        size_t size, i;
        if (at == NULL)
            return;
        memcpy(&size, at - GUARD_LINE, sizeof(size));
        for (i = sizeof(size); i < GUARD_LINE; i++)
            if (at[i - GUARD_LINE] != GUARD_BYTE) {
                fprintf(stderr, "cnn: something wrote before an arena of %zu bytes\\n", size);
                abort();
            }
        for (i = 0; i < GUARD_LINE; i++)
            if (at[size + i] != GUARD_BYTE) {
                fprintf(stderr, "cnn: something wrote behind an arena of %zu bytes\\n", size);
                abort();
            }
    }
    #else
    #define put_guards(arena, size)
    #define check_guards(arena)
    #endif
    """
    const int CNN_GUARDS
    size_t HUGE_PAGE
    size_t GUARD_LINE
    void use_huge_pages(void* at, size_t bytes) nogil
    void put_guards(void* arena, size_t size) nogil
    void check_guards(const void* arena) nogil


cdef real* allocate(Py_ssize_t n, void** memory) except NULL:
    """n zeroed reals, aligned to a cache line, in new memory that is to be freed by `release_arena`.

    Untouched pages take no memory.
    """
    cdef size_t size, unit, guard = GUARD_LINE if CNN_GUARDS else 0
    cdef real* at
    if n < 0 or n >= CNN_MOST:
        raise MemoryError("a block of memory would be too large for this machine's addresses")
    size = n * sizeof(real)
    unit = HUGE_PAGE if size >= 2 * HUGE_PAGE else LINE
    memory[0] = calloc(size + unit + 2 * guard, 1)
    if memory[0] == NULL:
        raise MemoryError(f"cannot allocate {size} bytes")
    at = <real*>((<uintptr_t>memory[0] + guard) // unit * unit + unit)
    if unit == HUGE_PAGE:
        use_huge_pages(at, size)
    put_guards(at, size)
    return at


cdef void release_arena(void* memory, const real* at) noexcept nogil:
    """Free what `allocate` gave, its guards checked."""
    if memory != NULL:
        check_guards(at)
    free(memory)


cdef void forward_linear(const Op* op, Py_ssize_t batch, const real* x, Py_ssize_t x_row, const real* params,
                         real* y, Py_ssize_t y_row, real* z, real* panel, bint in_order) noexcept nogil:
    """y = act(x W + b); z, where not NULL, keeps x W + b. 2 batch in out FLOPs.

    in_order: the sums of a row are the same alone as in a batch; training on one row at a time does without.
    """
    cdef Product p
    cdef bint relu = op.act == RELU
    cdef real* sums = y if z == NULL else z
    cdef const real* bias = params + op.bias
    cdef real floor = <real>(0 if relu else -INFINITY)
    if op.transposed or batch == 1:
        if op.transposed:
            dot_rows(batch, op.n_in, op.n_out, x, x_row, params + op.weight, op.row, bias, floor, sums, y_row)
        else:
            row_forward(in_order, op.n_in, round_up(op.n_out, VL) // VL, x, params + op.weight, op.row, bias, floor,
                        sums)
        if not relu and op.act != IDENTITY:
            activate_rows(op.act, op.param, batch, op.n_out, sums, y_row, y, y_row)
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
    p.act_param = op.param
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
            activate_backward_rows(before.act, before.param, before.keeps_input, batch, op.n_in, dx, dx_row,
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
    p.act_param = before.param if slope else 0
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
    cdef bint together = not op.transposed and op.bias_group == op.weight_group
    memset(&p, 0, sizeof(p))
    p.m = rows
    p.k = batch
    p.finish = FINISH_UPDATE if update != NULL else FINISH_STORE if overwrite else FINISH_ADD
    p.floor = <real>-INFINITY
    p.update = update + op.weight_group if update != NULL else NULL
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
        p.ones_row = op.has_bias and last and together
    p.c = net.grads + op.weight + first * op.row
    p.c_row = op.row
    p.param = net.params + op.weight + first * op.row
    product(&p)
    if op.has_bias and last and not together:
        p.m = 0
        p.update = update + op.bias_group if update != NULL else NULL
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


cdef inline const real* source(const Network* net, Workspace* ws, int b, Py_ssize_t first,
                               const real* x) noexcept nogil:
    """Row `first` of what an op reads: buffer 0 may lie where the caller has it."""
    return x if b == 0 else row_of(ws.value, net, b, first)


cdef inline Py_ssize_t source_row(const Network* net, int b, Py_ssize_t x_row) noexcept nogil:
    return x_row if b == 0 else net.buffers[b].row


cdef inline Py_ssize_t extra_size(const Op* op, Py_ssize_t batch) noexcept nogil:
    """Reals that an op keeps beside its buffers: the statistics of the columns, or of the rows."""
    if op.kind == OP_BATCH_NORM:
        return STATISTICS * op.row
    return 2 * batch if op.kind == OP_LAYER_NORM else 0


cdef inline const real* norm_weight(const Network* net, const Op* op) noexcept nogil:
    return net.params + op.weight if op.has_weight else NULL


cdef inline const real* norm_bias(const Network* net, const Op* op) noexcept nogil:
    return net.params + op.bias if op.has_bias else NULL


cdef void forward_gate(const Network* net, Workspace* ws, const Op* op, Py_ssize_t first, Py_ssize_t batch,
                       const real* x, Py_ssize_t x_row) noexcept nogil:
    """Sum, product, maximum or concatenation of the sources."""
    cdef real* y = row_of(ws.value, net, op.dst, first)
    cdef Py_ssize_t row = net.buffers[op.dst].row, n = round_up(op.n_out, VL), a_row
    cdef const real* a
    cdef int s
    for s in range(op.n_src):
        a = source(net, ws, op.srcs[s], first, x)
        a_row = source_row(net, op.srcs[s], x_row)
        if op.kind == OP_CONCAT:
            add_columns(batch, net.buffers[op.srcs[s]].width, a, a_row, False, y, row)
            y += net.buffers[op.srcs[s]].width
        elif s == 0 or op.kind == OP_ADD:
            add_rows(batch, n, a, a_row, s > 0, y, row)
        elif op.kind == OP_MULTIPLY:
            multiply_rows(batch, n, a, a_row, y, row)
        else:
            maximum_rows(batch, n, a, a_row, y, row)


cdef void walk_forward(const Network* net, Workspace* ws, Py_ssize_t first, Py_ssize_t batch, const real* x,
                       Py_ssize_t x_row, bint keep, real* panel, int start, int stop) noexcept nogil:
    """Run ops start .. stop - 1 on x (batch, in), which is row `first` and following of the workspace. keep: for
    walk_backward."""
    cdef int i
    cdef const Op* op
    cdef const real* src
    cdef const real* mean
    cdef Py_ssize_t src_row, row
    cdef real* dst
    for i in range(start, stop):
        op = &net.ops[i]
        src = source(net, ws, op.src, first, x)
        src_row = source_row(net, op.src, x_row)
        dst = row_of(ws.value, net, op.dst, first)
        row = net.buffers[op.dst].row
        if op.kind == OP_LINEAR:
            forward_linear(op, batch, src, src_row, net.params, dst, row,
                           row_of(ws.before, net, op.dst, first) if keep and op.keeps_input else NULL, panel, True)
        elif op.kind == OP_ACTIVATION:
            activate_rows(op.act, op.param, batch, op.n_out, src, src_row, dst, row)
        elif op.kind == OP_SOFTMAX or op.kind == OP_LOG_SOFTMAX:
            softmax_rows(op.kind == OP_LOG_SOFTMAX, batch, op.n_out, src, src_row, dst, row)
        elif op.kind == OP_DROPOUT and ws.training:
            dropout_rows(batch, op.n_out, op.param, op.key, ws.row0 + first, src, src_row, dst, row)
        elif op.kind == OP_DROPOUT:
            copy_rows(batch, op.n_out, src, src_row, dst, row)
        elif op.kind == OP_LAYER_NORM:
            layer_norm_rows(batch, op.n_out, op.param, src, src_row, norm_weight(net, op), norm_bias(net, op), dst, row,
                            ws.extra[i] + 2 * first)
        elif op.kind == OP_BATCH_NORM:
            mean = ws.extra[i]
            batch_norm_rows(batch, op.n_out, src, src_row, mean, mean + op.row, norm_weight(net, op),
                            norm_bias(net, op), dst, row)
        else:
            forward_gate(net, ws, op, first, batch, x, x_row)


cdef const real* kept(const Network* net, Workspace* ws, const Op* op, Py_ssize_t first, const real* x) noexcept nogil:
    """What the forward pass kept for op's derivative: its output, or what went into the activation."""
    if not op.keeps_input:
        return row_of(ws.value, net, op.dst, first)
    if op.kind == OP_LINEAR:
        return row_of(ws.before, net, op.dst, first)
    return source(net, ws, op.src, first, x)


cdef void slope_in_place(const Network* net, Workspace* ws, const Op* op, Py_ssize_t first,
                         Py_ssize_t batch) noexcept nogil:
    """Turn the gradient of a linear op's result into that of x W + b.

    ReLU's whole vectors at a time: in the padding the gradient is zero and stays so. Others could make 0 * inf of it.
    """
    cdef Py_ssize_t row = net.buffers[op.dst].row
    cdef real* dz = row_of(ws.grad, net, op.dst, first)
    if op.act != IDENTITY:
        activate_backward_rows(op.act, op.param, op.keeps_input, batch,
                               round_up(op.n_out, VL) if op.act == RELU else op.n_out, dz, row,
                               kept(net, ws, op, first, NULL), row, dz, row)


cdef void backward_gate(const Network* net, Workspace* ws, const Op* op, Py_ssize_t first, Py_ssize_t batch,
                        const real* x, Py_ssize_t x_row, bint input_grad) noexcept nogil:
    """The gradients of the sources of a sum, product, maximum or concatenation; see gates.pxi."""
    cdef const real* dy = row_of(ws.grad, net, op.dst, first)
    cdef const real* y = row_of(ws.value, net, op.dst, first)
    cdef Py_ssize_t row = net.buffers[op.dst].row, n = round_up(op.n_out, VL), b_row
    cdef const real* sources[MOST_SOURCES]
    cdef Py_ssize_t rows[MOST_SOURCES]
    cdef real* da
    cdef int s, b
    for s in range(op.n_src):
        sources[s] = source(net, ws, op.srcs[s], first, x)
        rows[s] = source_row(net, op.srcs[s], x_row)
    for s in range(op.n_src):
        b = op.srcs[s]
        b_row = net.buffers[b].row
        da = row_of(ws.grad, net, b, first)
        if b == 0 and not input_grad:
            pass
        elif op.kind == OP_CONCAT:
            add_columns(batch, net.buffers[b].width, dy, row, op.adds[s], da, b_row)
        elif op.kind == OP_ADD:
            add_rows(batch, n, dy, row, op.adds[s], da, b_row)
        elif op.kind == OP_MULTIPLY:
            multiply_backward_rows(batch, n, sources, rows, op.n_src, s, dy, row, op.adds[s], da, b_row)
        else:
            maximum_backward_rows(batch, n, sources, rows, s, sources[s], rows[s], y, row, dy, row, op.adds[s], da,
                                  b_row)
        if op.kind == OP_CONCAT:
            dy += net.buffers[b].width


cdef void walk_backward(const Network* net, Workspace* ws, Py_ssize_t first, Py_ssize_t batch, const real* x,
                        Py_ssize_t x_row, Py_ssize_t whole, bint input_grad, bint few, real* panel, int start,
                        int stop) noexcept nogil:
    """Ops start - 1 .. stop: from the gradients of their outputs to those of their inputs, for the rows that
    walk_forward has run; these are part of a batch of `whole` rows."""
    cdef int i
    cdef const Op* op
    cdef const Op* before
    cdef const real* src
    cdef const real* mean
    cdef Py_ssize_t row, src_row, dx_row
    cdef real* dz
    cdef real* dx
    for i in range(start - 1, stop - 1, -1):
        op = &net.ops[i]
        dz = row_of(ws.grad, net, op.dst, first)
        row = net.buffers[op.dst].row
        if op.kind == OP_LINEAR and op.own_slope:
            slope_in_place(net, ws, op, first, batch)
        if op.kind >= OP_ADD:
            backward_gate(net, ws, op, first, batch, x, x_row, input_grad)
            continue
        if op.src == 0 and not input_grad:
            continue
        src = source(net, ws, op.src, first, x)
        src_row = source_row(net, op.src, x_row)
        dx_row = net.buffers[op.src].row
        dx = ws.scratch + first * dx_row if op.adds[0] else row_of(ws.grad, net, op.src, first)
        if op.kind == OP_LINEAR:
            before = &net.ops[op.slope_of] if op.slope_of >= 0 else NULL
            input_gradient(op, before, kept(net, ws, before, first, NULL) if before != NULL else NULL, batch, dz, row,
                           net.params, dx, dx_row, few, panel)
        elif op.kind == OP_ACTIVATION:
            activate_backward_rows(op.act, op.param, op.keeps_input, batch, op.n_out, dz, row,
                                   kept(net, ws, op, first, x), src_row if op.keeps_input else row, dx, dx_row)
        elif op.kind == OP_SOFTMAX or op.kind == OP_LOG_SOFTMAX:
            softmax_backward_rows(op.kind == OP_LOG_SOFTMAX, batch, op.n_out, row_of(ws.value, net, op.dst, first), row,
                                  dz, row, dx, dx_row)
        elif op.kind == OP_DROPOUT and ws.training:
            dropout_rows(batch, op.n_out, op.param, op.key, ws.row0 + first, dz, row, dx, dx_row)
        elif op.kind == OP_DROPOUT:
            copy_rows(batch, op.n_out, dz, row, dx, dx_row)
        elif op.kind == OP_LAYER_NORM:
            layer_norm_backward_rows(batch, op.n_out, src, src_row, norm_weight(net, op), ws.extra[i] + 2 * first, dz,
                                     row, dx, dx_row)
        else:
            mean = ws.extra[i]
            batch_norm_backward_rows(batch, op.n_out, whole, ws.training, src, src_row, mean, mean + op.row,
                                     norm_weight(net, op), mean + 3 * op.row, mean + 4 * op.row, dz, row, dx, dx_row)
        if op.adds[0]:
            add_rows(batch, round_up(op.n_in, VL), dx, dx_row, True, row_of(ws.grad, net, op.src, first), dx_row)


cdef double batch_loss(const Network* net, const LossSpec* loss, Workspace* ws, Py_ssize_t first, Py_ssize_t batch,
                       const char* target, Py_ssize_t target_bytes, const real* weight, double scale, bint gradient,
                       Py_ssize_t* correct) noexcept nogil:
    """Sum of the loss over some rows; with gradient, that of the outputs goes to their buffer, times scale."""
    cdef int last = net.n_buffers - 1
    cdef Py_ssize_t row = net.buffers[last].row
    return loss_rows(loss, batch, net.outputs, row_of(ws.value, net, last, first), row, target, target_bytes,
                     weight, scale, row_of(ws.grad, net, last, first) if gradient else NULL, row, correct)


cdef void pass_rows(Pass* p, Py_ssize_t first, Py_ssize_t batch, int thread) noexcept nogil:
    """One phase of the part `rows` of a pass, for one chunk."""
    cdef const Network* net = p.net
    cdef Workspace* ws = p.ws
    cdef int last = net.n_buffers - 1
    cdef Py_ssize_t i, block, x_row = p.x_row, width = net.buffers[0].width * sizeof(real)
    cdef Py_ssize_t at = first if p.keep else thread * p.chunk      # in the workspace; see reserve
    cdef const real* x = p.x + first * x_row
    cdef const char* target = p.target + first * p.target_bytes
    cdef real* panel = ws.panel + thread * ws.panel_size
    if p.gather:
        if p.forward and p.start == 0:
            for i in range(batch):
                memcpy(row_of(ws.value, net, 0, at + i),
                       p.x + (p.order[first + i] if p.order != NULL else first + i) * x_row, width)
        x, x_row = row_of(ws.value, net, 0, at), net.buffers[0].row
    if p.forward:
        walk_forward(net, ws, at, batch, x, x_row, p.keep, panel, p.start, p.stop)
    if p.forward and p.stop == net.n_ops:
        if p.out != NULL:
            copy_rows(batch, net.outputs, row_of(ws.value, net, last, at), net.buffers[last].row,
                      p.out + first * p.out_row, p.out_row)
        if p.target != NULL:
            for i from 0 <= i < batch by LOSS_BLOCK:
                block = (first + i) // LOSS_BLOCK
                p.correct[block] = 0
                p.losses[block] = batch_loss(net, &p.loss, ws, at + i, smaller(LOSS_BLOCK, batch - i),
                                             target + i * p.target_bytes, p.target_bytes,
                                             p.weight + first + i if p.weight != NULL else NULL, p.scale, p.keep,
                                             &p.correct[block])
    if p.back_start > p.back_stop:
        walk_backward(net, ws, first, batch, x, x_row, p.batch, p.input_grad, p.batch <= FEW_ROWS, panel, p.back_start,
                      p.back_stop)


cdef void rows_task(void* argument, int thread) noexcept nogil:
    cdef Pass* p = <Pass*>argument
    cdef Py_ssize_t first
    while True:
        first = atomic_add(&p.claimed, 1) * p.chunk
        if first >= p.batch:
            break
        pass_rows(p, first, smaller(p.chunk, p.batch - first), thread)


# The columns of a batch norm, between two phases ----------------------------------------------------------------------

cdef void columns_task(void* argument, int thread) noexcept nogil:
    """Statistics of the columns that a batch norm reads, or, going back, the sums of its gradients."""
    cdef Pass* p = <Pass*>argument
    cdef const Network* net = p.net
    cdef const Op* op = &net.ops[p.norm]
    cdef Py_ssize_t column, columns, row = net.buffers[op.dst].row, x_row = net.buffers[op.src].row
    cdef const real* x = p.ws.value[op.src]
    cdef real* kept = p.ws.extra[p.norm]
    if op.src == 0 and not p.gather:
        x, x_row = p.x, p.x_row
    while True:
        column = atomic_add(&p.claimed, 1) * COLUMNS
        if column >= op.n_out:
            break
        columns = smaller(COLUMNS, op.row - column)
        if not p.norm_backward:
            batch_norm_statistics(p.batch, column, columns, op.n_out, op.param, x, x_row, kept, kept + op.row,
                                  kept + 2 * op.row)
        else:
            batch_norm_backward_sums(p.batch, column, columns, op.n_out, x, x_row, kept, kept + op.row,
                                     p.ws.grad[op.dst], row, kept + 3 * op.row, kept + 4 * op.row)


cdef void track(Network* net, Op* op, const real* statistics, Py_ssize_t batch) noexcept nogil:
    """running = running + momentum (statistics of the batch - running), the variance with batch - 1."""
    cdef Py_ssize_t j
    cdef real* mean = net.running + op.running
    cdef real* var = mean + op.row
    cdef double momentum, unbiased = <double>batch / (batch - 1)
    op.tracked += 1
    momentum = op.momentum if op.momentum >= 0 else 1.0 / op.tracked
    for j in range(op.n_out):
        mean[j] += <real>(momentum * (statistics[j] - mean[j]))
        var[j] += <real>(momentum * (unbiased * statistics[2 * op.row + j] - var[j]))


cdef void use_running(const Network* net, Workspace* ws) noexcept nogil:
    """Batch norms in evaluation mode: the running statistics are the statistics."""
    cdef int i
    cdef Py_ssize_t j
    cdef const Op* op
    cdef const real* mean
    for i in range(net.n_ops):
        op = &net.ops[i]
        if op.kind == OP_BATCH_NORM:
            mean = net.running + op.running
            for j in range(op.n_out):
                ws.extra[i][j] = mean[j]
                ws.extra[i][op.row + j] = <real>(1 / sqrt(<double>mean[op.row + j] + op.param))


# Weights --------------------------------------------------------------------------------------------------------------

cdef void norm_gradient(Pass* p, int index, Py_ssize_t first, Py_ssize_t columns, const real* x, Py_ssize_t x_row,
                        real* sums) noexcept nogil:
    """The gradients of a norm's weight and bias, for some columns: added up, stored or used for the step."""
    cdef const Network* net = p.net
    cdef const Op* op = &net.ops[index]
    cdef const real* dy = p.ws.grad[op.dst]
    cdef const real* extra = p.ws.extra[index]
    cdef Py_ssize_t row = net.buffers[op.dst].row, at
    cdef real* part
    cdef int half, group
    if op.kind == OP_LAYER_NORM:
        layer_norm_weight_sums(p.batch, first, columns, op.n_out, x, x_row, extra, dy, row, sums - first,
                               sums + columns - first)
    elif p.ws.training:
        memcpy(sums, extra + 3 * op.row + first, columns * sizeof(real))
        memcpy(sums + columns, extra + 4 * op.row + first, columns * sizeof(real))
    else:
        batch_norm_backward_sums(p.batch, first, columns, op.n_out, x, x_row, extra, extra + op.row, dy, row,
                                 sums - first, sums + columns - first)
    for half in range(2):
        if not (op.has_bias if half else op.has_weight):
            continue
        part = sums + half * columns
        at = (op.bias if half else op.weight) + first
        group = op.bias_group if half else op.weight_group
        if p.update != NULL:
            update_rows(1, columns, net.params + at, 0, part, 0, p.update + group)
        else:
            add_rows(1, columns, part, 0, not p.overwrite, net.grads + at, 0)


cdef void weights_task(void* argument, int thread) noexcept nogil:
    cdef Pass* p = <Pass*>argument
    cdef const Network* net = p.net
    cdef const Op* op
    cdef const real* x
    cdef real* panel = p.ws.panel + thread * p.ws.panel_size
    cdef Py_ssize_t x_row, rows, unit, units, piece, pieces, first, end, claimed = atomic_add(&p.claimed, 1), at = 0
    cdef int i
    for i in range(net.n_ops - 1, -1, -1):
        op = &net.ops[i]
        if op.kind == OP_LINEAR:
            # as many for each thread, and equal but for one tile: the last to finish is not far behind
            rows, unit = op.n_out if op.transposed else op.n_in, TILE_MR
            pieces = smaller(4, rows // (PIECE_ROWS * p.threads)) * p.threads if p.threads > 1 else 1
        elif op.has_weight or op.has_bias:
            rows, unit = op.row, COLUMNS
            pieces = rows
        else:
            continue
        units = (rows + unit - 1) // unit
        pieces = larger(1, smaller(pieces, units))
        for piece in range(pieces):
            if at == claimed:
                first = units * piece // pieces * unit
                end = smaller(rows, units * (piece + 1) // pieces * unit)
                x, x_row = p.ws.value[op.src], net.buffers[op.src].row
                if op.src == 0 and not p.gather:
                    x, x_row = p.x, p.x_row
                if op.kind == OP_LINEAR:
                    weight_gradient(op, first, end - first, p.batch, x, x_row, p.ws.grad[op.dst],
                                    net.buffers[op.dst].row, net, p.update, p.overwrite, panel)
                else:
                    norm_gradient(p, i, first, end - first, x, x_row, panel)
                claimed = atomic_add(&p.claimed, 1)
            at += 1


# A batch --------------------------------------------------------------------------------------------------------------

cdef void gather_targets(Pass* p) noexcept nogil:
    """Targets and weights of the rows of an order, one after the other."""
    cdef Py_ssize_t i, bytes = sizeof(int64_t) if p.loss.labels else p.net.outputs * sizeof(real)
    for i in range(p.batch):
        memcpy(p.ws.targets + i * bytes, p.target + p.order[i] * p.target_bytes, bytes)
    p.target, p.target_bytes = p.ws.targets, bytes
    if p.weight != NULL:
        for i in range(p.batch):
            p.ws.weights[i] = p.weight[p.order[i]]
        p.weight = p.ws.weights


cdef void run_rows(Pass* p) noexcept nogil:
    """One phase of the part `rows`."""
    p.claimed = 0
    parallel(rows_task, p, p.threads if p.chunk < p.batch else 1)


cdef void run_columns(Pass* p, int norm, bint backward) noexcept nogil:
    p.norm = norm
    p.norm_backward = backward
    p.claimed = 0
    parallel(columns_task, p, p.threads if p.net.ops[norm].row > COLUMNS else 1)


cdef double run_pass(Pass* p, int threads, double* weight, Py_ssize_t* correct) noexcept nogil:
    """Do what p asks for; the sum of the loss over the rows. Adds the sum of their weights, and the number of rows
    classified right, to weight and correct."""
    cdef Py_ssize_t block
    cdef Network* net = <Network*>p.net
    cdef int s, segments = net.n_segments if p.ws.training else 1
    cdef double rows_weight, total = 0
    if p.batch * net.work < THREAD_WORK:
        threads = 1
    p.threads = threads
    if p.keep or p.backward:
        # one for each thread: each packs W^T anew, which costs as much as some rows
        p.chunk = round_up(smaller(MOST_ROWS, (p.batch + threads - 1) // threads), LOSS_BLOCK)
        if threads == 1 and p.batch <= 2 * MOST_ROWS:
            p.chunk = p.batch
    if p.target != NULL:
        if p.order != NULL:
            gather_targets(p)
        rows_weight = loss_weight(&p.loss, p.batch, p.target, p.target_bytes, p.weight)
        weight[0] += rows_weight
        p.scale *= loss_scale(&p.loss, rows_weight)
    if net.n_segments > 1 and not p.ws.training and p.forward:
        use_running(net, p.ws)
    p.back_start = p.back_stop = 0
    if p.forward:
        for s in range(segments):
            if s > 0:
                run_columns(p, net.segments[s], False)
                track(net, &net.ops[net.segments[s]], p.ws.extra[net.segments[s]], p.batch)
            p.start = net.segments[s]
            p.stop = net.segments[s + 1] if s + 1 < segments else net.n_ops
            if p.backward and s + 1 == segments:
                p.back_start, p.back_stop = net.n_ops, net.segments[s] + (s > 0)
            run_rows(p)
    if p.backward:
        for s in range(segments - 1, -1, -1):
            if s + 1 < segments or not p.forward:
                p.start = p.stop = -1
                p.back_start = net.segments[s + 1] + 1 if s + 1 < segments else net.n_ops
                p.back_stop = net.segments[s] + (s > 0)
                run_rows(p)
            if s > 0:
                run_columns(p, net.segments[s], True)
    p.claimed = 0
    if p.weights:
        parallel(weights_task, p, threads)
    if p.target != NULL:
        for block in range((p.batch + LOSS_BLOCK - 1) // LOSS_BLOCK):
            total += p.losses[block]
            correct[0] += p.correct[block]
    check_guards(net.params)
    check_guards(net.running)
    if p.ws.memory != NULL:         # not the caller's own
        check_guards(p.ws.value[0])
    return total
