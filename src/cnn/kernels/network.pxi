# The compiled network: ops over numbered buffers, the memory that they work in, and the table of the ops. Plain C.
#
# Buffer 0 is the input of the model; every op reads one or more buffers and writes buffer `dst`. A buffer has a value,
# a gradient and, where its op's activation needs it, the value before the activation (the pre-activation), all (batch,
# width) with rows padded to VL; the padding is zero. They live in a Workspace, which grows with the batch and is
# otherwise allocated once. A buffer that several ops read gets the sum of their gradients: going back, the first to be
# visited stores its part and the others add theirs (`adds`).
#
# An op's parameters are one matrix and one vector in the parameter block, either of which may be missing; their
# gradients, and the blocks of the optimiser's state, have the same layout. No one outside sees it: `view` in
# parameters.pxi gives NumPy arrays with the strides that fit.

cdef enum:
    MOST_AXES = 4           # of a buffer, without the batch
    MOST_SOURCES = 64       # of a merge op

cdef struct OpMethods
cdef struct BatchMethods
cdef struct Pass

cdef struct Buffer:
    int axes
    Py_ssize_t[MOST_AXES] shape
    Py_ssize_t width        # numbers in a row
    Py_ssize_t row          # ... with the padding
    bint preactivation      # is kept too

cdef struct Op:
    const OpMethods* does
    int index
    int n_src
    int* srcs
    char* adds              # of each source: its gradient joins what ops behind this one have left
    int src                 # the first source
    int dst
    Activation act
    real param              # of the activation; dropout: p; norms: eps
    bint keeps_input        # the derivative needs what the activation is applied to: it is kept beside y
    bint own_derivative     # True: this op applies act' in its own backward pass. False: the consumer fuses it into dX
    int fused_into          # linear: the op whose act' is multiplied into dX, or -1
    Py_ssize_t n_in         # of the first source
    Py_ssize_t n_out
    Py_ssize_t work         # multiply-adds of a forward pass of one row
    Py_ssize_t rows         # of the weight, as Python sees it: (rows, columns), or with rows = 0 (columns,)
    Py_ssize_t columns
    bint transposed         # the weight lies as (columns, rows)
    bint has_weight
    bint has_bias           # linear: there is always room for one; without `has_bias` it stays zero
    Py_ssize_t weight       # element offsets in the parameter block
    Py_ssize_t row          # from a row of the weight to the next, as it lies
    Py_ssize_t bias
    int weight_group        # rows of the optimiser's table
    int bias_group
    double l1               # penalties on the weights
    double l2
    bint training           # dropout drops, batch norm takes the batch's statistics, if the workspace trains at all
    bint trains_weight      # the optimiser changes it
    bint trains_bias
    bint has_running        # statistics over batches
    double momentum         # of them; below zero: the mean of all batches
    Py_ssize_t running      # offset in the block of running statistics: mean, `row` further the variance
    int64_t* tracked        # batches in them
    int64_t own_tracked     # ... of an op that does not share them with another network's
    uint64_t key            # dropout: of its random numbers
    Py_ssize_t start        # columns: the first of the source that is taken

cdef struct Network:
    int n_ops
    int n_buffers
    Op* ops
    int* sources            # of all ops: Op.srcs points into it
    char* adds
    Buffer* buffers
    int n_segments          # 1 + ops that need the whole batch at once, in training mode
    int* segments           # first op of each; but for the first segment, such an op
    bint all_off            # there are ops that differ between the modes, and all are in evaluation mode
    bint frozen             # some parameters are not trained
    int first_trained       # op with parameters that are; going back, those before it need not be visited
    bint single             # one row may take the direct path of online.pxi
    bint random             # an op draws random numbers
    LossSpec loss
    real* params            # blocks of n_block reals: parameters, gradients, optimiser state
    real* grads
    real* state             # STATES blocks, or what the optimiser needs
    Py_ssize_t n_block
    real* running           # running statistics
    double* running_exact   # the same before they were rounded
    Py_ssize_t n_running
    Py_ssize_t n_parameters     # without the padding
    Py_ssize_t work         # multiply-adds of a forward pass of one row
    bint sparse             # all that read the input can read sparse rows
    Py_ssize_t outputs      # width of the last buffer
    Py_ssize_t widest       # row of a buffer
    bint pad_input          # an op reads the input in whole vectors
    bint scratch            # some op needs the workspace's
    bint lanes_infer        # rows in the lanes are faster, in prediction: see samples.pxi
    bint lanes_train        # ... and in training

# Sparse rows of x: those of row i are entries start[i] to start[i + 1] - 1, in any order, and may be for one column.
cdef struct Csr:
    const int64_t* start        # NULL: x is dense
    const int32_t* column
    const real* value

cdef struct Span:
    int64_t begin
    int64_t end

# The same entries by columns: see sort_by_columns.
cdef struct Columns:
    int32_t* place              # of each column of x: 1 + its place in `column`, or 0: no entries
    Py_ssize_t n                # columns that have entries
    int32_t* column
    int64_t* start              # entries of column[i]: start[i] to start[i + 1] - 1
    int32_t* row                # of each entry
    real* value
    Py_ssize_t entries          # room
    Py_ssize_t columns          # of x

cdef struct Workspace:
    Arena arena
    Py_ssize_t capacity     # rows
    bint dense              # buffer 0 has room for them
    int threads             # panels
    real** value            # of each buffer
    real** before           # before the activation
    real** grad
    real** extra            # what each op keeps beside its buffers
    real* scratch           # a gradient that is to be added to another, (capacity, widest)
    bint training           # False: all ops are in evaluation mode; True: each is in its own
    int64_t row0            # number of the first row, of all that were trained on: dropout's masks depend on it
    real* panel             # of thread 0; the others' follow
    Py_ssize_t panel_size
    real* lanes             # sums over rows in the lanes: see samples.pxi
    void* sums              # memory of the following, of the training passes
    size_t sums_bytes
    double* losses          # sum of each LOSS_BLOCK rows
    Py_ssize_t* correct     # how many of them are classified right
    char* targets           # gathered in the order of the batch
    real* weights           # likewise
    Span* spans             # of sparse rows of x
    Columns columns         # in training

# Derivatives of the walks along a direction (x', theta'); see derivative.pxi.
cdef struct Tangents:
    Arena arena
    Py_ssize_t capacity         # rows
    real** value                # of each buffer: y', (batch, width) in rows as the buffer's
    real** before               # z' of linear ops with an activation
    real** grad                 # (dL/dy)'
    real* scratch               # of linear ops, (capacity, widest)
    real* params                # theta'
    real* grads                 # (dL/dtheta)'
    bint inputs                 # x' is not zero
    bint parameters             # theta' is not zero

# The parts of a block of rows in the buffers of a workspace; see jet.pxi.
cdef struct Jets:
    Py_ssize_t inputs           # first derivatives
    Py_ssize_t seconds          # second derivatives: one for each input, their sum, or none
    Py_ssize_t each             # inputs that one of them is for
    Py_ssize_t parts            # 1 + inputs + seconds
    real** before               # of linear ops: z, where there is an activation
    real** part_grad            # of each buffer, for plain_jet_backward
    real** zero                 # likewise
    real* slopes                # (3, widest)
    real* scratch               # (4, parts, widest), if an op needs it

# Some rows of a batch on their way along the ops.
cdef struct Chunk:
    const Network* net
    Workspace* ws
    const Tangents* t       # of the walks with tangents
    const Jets* jets        # of the walks with jets
    Py_ssize_t first        # row of the workspace
    Py_ssize_t batch        # rows
    Py_ssize_t all_rows     # of the batch that these are part of
    const real* x           # the input of the first of them, which may lie where the caller has it
    Py_ssize_t x_row
    const Csr* csr          # or its entries, those of each row where ws.spans says
    bint keep               # what a backward pass needs
    bint input_grad         # the gradient of the model's input is wanted
    bint few                # so few rows in the batch that dX is dot products (see linear_op_backward)
    real* panel

# A pass over a batch: what is run, what is wanted of it, and where it is. See pass.pxi.
cdef struct Batch:
    Py_ssize_t rows
    const real* x
    Py_ssize_t x_row
    Csr csr                 # in place of x, if it is sparse
    Py_ssize_t work         # multiply-adds of a forward pass of one row
    const int64_t* order    # the rows of x and target to take, NULL: as they lie
    LossSpec loss           # the network's, with `labels` as the targets are
    const char* target      # NULL: no loss
    Py_ssize_t target_bytes     # from a row of the targets to the next
    const real* weight      # of the rows, NULL: one each
    real* out               # NULL, or where the outputs are copied
    Py_ssize_t out_row
    double* losses          # sum of each LOSS_BLOCK rows; of a batch in shards, of each row
    Py_ssize_t* correct     # how many of them are classified right

cdef struct Request:
    int threads
    bint gather             # copy the rows of x, and the targets of an order, into the workspace first
    bint leave_out          # ... with zeros in place of the rows that do not count
    bint forward
    bint keep               # ... and what a backward pass needs, and the gradient of the loss
    bint backward
    bint input_grad
    bint weights            # gradients of the weights
    bint frozen_too         # ... of those that are not trained as well
    bint overwrite          # ... replace the old ones
    const Update* update    # ... or are used for the step: one Update for each row of the optimiser's table
    double scale            # of the gradient of the loss

cdef struct Phase:
    Py_ssize_t chunk        # rows that a thread takes at a time
    int64_t claimed         # chunks, or pieces, begun by a thread
    int start               # ops start .. stop - 1 run forward
    int stop
    int back_start          # ... and back_start - 1 .. back_stop backward
    int back_stop
    bint lanes              # rows in the lanes, forward: see samples.pxi
    const Op* summed        # between two phases: the op whose columns are summed over the batch
    bint summed_backward

# Shards of a batch that several processes share; see shards.pxi.
cdef struct ShardList:
    int count               # that are here
    int first               # the number of the first of them
    const int64_t* cuts     # rows of the workspace at which each begins, and at which the last ends
    const int64_t* window   # NULL, or of each op the first unit (see pieces) whose gradient is wanted, and how many
    Py_ssize_t whole        # rows of the batch, those elsewhere too
    bint head               # of a pass over one shard: it is the batch's first
    bint failed             # a sum over all processes could not be had
    bint (*sum)(Pass* p, const Op* op, bint backward) noexcept nogil    # in place of the sums over the batch
    void (*gradient)(const Pass* p, const Op* op, int thread) noexcept nogil    # in place of weight_gradient
    void* owner
    real* blocks            # of gradients, the first for the sum: a level of the tree each
    real** pointers         # room: of a workspace for each thread
    Py_ssize_t n_pointers
    double* columns         # room: two vectors for each shard, twice, and two more

cdef struct Pass:
    const Network* net
    Workspace* ws
    Batch batch
    Request wants
    Phase phase
    ShardList* shards       # NULL: the batch is all here

ctypedef void (*op_walk)(const Chunk* chunk, const Op* op) noexcept nogil

# What an op does: a row of the table, filled in beside its functions in ops/. `define` refuses a row with a hole.
cdef struct OpMethods:
    const char* name
    # its parameters' place in the blocks, its work and its facts, from Python's description
    int (*place)(Network* net, Op* op, dict spec) except -1
    Py_ssize_t (*extra_size)(const Op* op, Py_ssize_t batch) noexcept nogil     # reals kept beside the buffers
    op_walk forward
    op_walk backward        # from the gradient of its output to those of its sources
    op_walk tangent         # y' from x' and theta', after forward
    op_walk second          # dx and dx' from dy and dy'
    op_walk jet             # all parts of y from those of x
    op_walk jet_backward    # ... and back; adds dtheta to the tangents' grads
    bint jet_scratch        # ... needs jets.scratch
    # how many pieces of work the gradients of its parameters are (0: it has none), of all rows of its weight, or
    # columns of its vectors, in units of so many
    Py_ssize_t (*pieces)(const Op* op, int threads, Py_ssize_t* rows, Py_ssize_t* unit) noexcept nogil
    void (*weight_gradient)(const Pass* p, const Op* op, Py_ssize_t first, Py_ssize_t rows, const real* x,
                            Py_ssize_t x_row, real* panel) noexcept nogil
    # dtheta' of so many rows of the weight, after `second` of the chunk; ops without it add to it in `second`
    void (*weight_tangent)(const Chunk* chunk, const Op* op, Py_ssize_t first, Py_ssize_t rows) noexcept nogil
    bint merges             # several sources
    bint single             # has a place in the direct path for one row
    bint sparse             # can read sparse rows
    bint random
    bint shards             # its weight_gradient adds up shards itself
    const BatchMethods* batch       # NULL, or for an op that needs all rows of the batch at once

# Such an op: sums over the batch between two phases of a pass.
cdef struct BatchMethods:
    void (*sums)(const Pass* p, const Op* op, Py_ssize_t first, Py_ssize_t columns) noexcept nogil
    void (*backward_sums)(const Pass* p, const Op* op, Py_ssize_t first, Py_ssize_t columns) noexcept nogil
    void (*track)(Network* net, Op* op, const real* extra, Py_ssize_t batch) noexcept nogil
    void (*use_running)(const Network* net, const Op* op, real* extra) noexcept nogil
    # the same sums of a batch in shards: of each shard, two vectors `row` apart; and what is made of those of all
    void (*shard_moments)(const Pass* p, const Op* op, double* moments) noexcept nogil
    void (*shard_gradients)(const Pass* p, const Op* op, double* sums) noexcept nogil
    void (*take)(const Pass* p, const Op* op, bint backward, const double* sums) noexcept nogil


cdef Py_ssize_t padded_row(Py_ssize_t width, Py_ssize_t rows) noexcept nogil:
    """Elements between the rows of a (rows, width) matrix: whole vectors, and an odd number of lines where the matrix
    is larger than an L1 cache can hold without conflicts."""
    cdef Py_ssize_t row = round_up(width, VL), per_line = LINE // <Py_ssize_t>sizeof(real)
    if row * rows * <Py_ssize_t>sizeof(real) <= 32768 or row < 4 * per_line:
        return row
    row = round_up(row, per_line)
    return row if row // per_line % 2 else row + per_line


cdef inline Py_ssize_t weight_size(const Op* op) noexcept nogil:
    """Elements of an op's weight in the parameter block, with their padding."""
    return op.row * (op.columns if op.transposed else larger(op.rows, 1)) if op.has_weight else 0


cdef inline Py_ssize_t bias_size(const Op* op) noexcept nogil:
    return round_up(op.n_out, VL) if op.has_bias else 0


cdef inline const real* weight_of(const Network* net, const Op* op) noexcept nogil:
    return net.params + op.weight if op.has_weight else NULL


cdef inline const real* bias_of(const Network* net, const Op* op) noexcept nogil:
    return net.params + op.bias if op.has_bias else NULL


cdef inline real* row_of(real** buffers, const Network* net, int b, Py_ssize_t first) noexcept nogil:
    """Row `first` of a buffer's value, gradient, ..."""
    return buffers[b] + first * net.buffers[b].row


cdef inline bint wants_weight(const Pass* p, const Op* op) noexcept nogil:
    """Whether the gradient of an op's weight is wanted, and below of its bias."""
    return op.has_weight and (op.trains_weight or p.wants.frozen_too)


cdef inline bint wants_bias(const Pass* p, const Op* op) noexcept nogil:
    return op.has_bias and (op.trains_bias or p.wants.frozen_too)


cdef inline bint in_training(const Workspace* ws, const Op* op) noexcept nogil:
    """Whether an op that differs between the modes is in training mode."""
    return ws.training and op.training


cdef inline const real* source(const Chunk* c, int b) noexcept nogil:
    """The first row of what an op reads: buffer 0 may lie where the caller has it."""
    return c.x if b == 0 else row_of(c.ws.value, c.net, b, c.first)


cdef inline Py_ssize_t source_row(const Chunk* c, int b) noexcept nogil:
    return c.x_row if b == 0 else c.net.buffers[b].row


cdef inline Py_ssize_t row_size(const Chunk* c, const Op* op) noexcept nogil:
    """Elements between the rows of the buffer that an op writes."""
    return c.net.buffers[op.dst].row


cdef inline real* output(const Chunk* c, const Op* op) noexcept nogil:
    return row_of(c.ws.value, c.net, op.dst, c.first)


cdef inline real* output_gradient(const Chunk* c, const Op* op) noexcept nogil:
    return row_of(c.ws.grad, c.net, op.dst, c.first)


cdef inline bint wants_gradient(const Chunk* c, int b) noexcept nogil:
    """Whether anybody reads the gradient of a buffer: nobody that of the model's input, unless it is asked for."""
    return b != 0 or c.input_grad


cdef inline real* scratch_of(const Chunk* c) noexcept nogil:
    """The rows of the scratch that belong to the chunk, whatever the width that is written there: another thread may be
    at another op."""
    return c.ws.scratch + c.first * c.net.widest


cdef inline real* gradient_room(const Chunk* c, const Op* op) noexcept nogil:
    """Where an op with one source writes the gradient of it; `gradient_done` follows."""
    if op.adds[0]:
        return scratch_of(c)
    return row_of(c.ws.grad, c.net, op.src, c.first)


cdef inline void gradient_done(const Chunk* c, const Op* op) noexcept nogil:
    """Add what was written to gradient_room, where other ops have left their parts already.

    Not the padding: in the scratch there may be what wider ops have left.
    """
    cdef Py_ssize_t row = c.net.buffers[op.src].row
    if op.adds[0]:
        add_columns(c.batch, op.n_in, scratch_of(c), row, True,
                    row_of(c.ws.grad, c.net, op.src, c.first), row)


cdef const real* kept(const Chunk* c, const Op* op) noexcept nogil:
    """What the forward pass kept for op's derivative: its output, or what went into the activation."""
    if not op.keeps_input:
        return output(c, op)
    if c.net.buffers[op.dst].preactivation:
        return row_of(c.ws.before, c.net, op.dst, c.first)
    return source(c, op.src)


cdef inline Py_ssize_t kept_row(const Chunk* c, const Op* op) noexcept nogil:
    if not op.keeps_input or c.net.buffers[op.dst].preactivation:
        return row_size(c, op)
    return source_row(c, op.src)


# The table ------------------------------------------------------------------------------------------------------------

cdef enum:
    MOST_OPS = 64

cdef const OpMethods* OP_TABLE[MOST_OPS]
OPS = {}        # name -> place in the table, for what Python hands over


cdef int define(const OpMethods* op) except -1:
    """Add an op to the table; RuntimeError if one of its methods is missing."""
    name = op.name.decode("ascii")
    methods = {
        "place": op.place != NULL, "extra_size": op.extra_size != NULL, "forward": op.forward != NULL,
        "backward": op.backward != NULL, "tangent": op.tangent != NULL, "second": op.second != NULL,
        "jet": op.jet != NULL, "jet_backward": op.jet_backward != NULL,
        "pieces": op.pieces != NULL, "weight_gradient": op.weight_gradient != NULL,
        "weight_tangent": op.weight_tangent != NULL,
    }
    if op.batch != NULL:
        methods |= {
            "batch.sums": op.batch.sums != NULL, "batch.backward_sums": op.batch.backward_sums != NULL,
            "batch.track": op.batch.track != NULL, "batch.use_running": op.batch.use_running != NULL,
            "batch.shard_moments": op.batch.shard_moments != NULL,
            "batch.shard_gradients": op.batch.shard_gradients != NULL, "batch.take": op.batch.take != NULL,
        }
    if missing := [method for method, there in methods.items() if not there]:
        raise RuntimeError(f"op {name}: no {', '.join(missing)}")
    if name in OPS or len(OPS) == MOST_OPS:
        raise RuntimeError(f"op {name}: defined twice, or more than {MOST_OPS} ops")
    OP_TABLE[len(OPS)] = op
    OPS[name] = len(OPS)
    return 0


# Methods of ops that have no parameters and keep nothing beside their buffers.

cdef int place_nothing(Network* net, Op* op, dict spec) except -1:
    op.work = 8 * op.n_out
    return 0


cdef Py_ssize_t no_extra(const Op* op, Py_ssize_t batch) noexcept nogil:
    return 0


cdef Py_ssize_t no_pieces(const Op* op, int threads, Py_ssize_t* rows, Py_ssize_t* unit) noexcept nogil:
    return 0


cdef void no_weight_gradient(const Pass* p, const Op* op, Py_ssize_t first, Py_ssize_t rows, const real* x,
                             Py_ssize_t x_row, real* panel) noexcept nogil:
    pass


cdef void no_weight_tangent(const Chunk* chunk, const Op* op, Py_ssize_t first, Py_ssize_t rows) noexcept nogil:
    pass


cdef OpMethods plain_op(const char* name) noexcept:
    """The methods of an op without parameters, all but its walks."""
    cdef OpMethods op
    memset(&op, 0, sizeof(op))
    op.name = name
    op.place = place_nothing
    op.extra_size = no_extra
    op.pieces = no_pieces
    op.weight_gradient = no_weight_gradient
    op.weight_tangent = no_weight_tangent
    op.jet = plain_jet
    op.jet_backward = plain_jet_backward
    return op
