# Batches that several processes share, with the same sums to the bit whichever process has which rows.
#
# A batch is cut into shards, runs of rows; a process has some that lie side by side. What a pass gives for a row does
# not depend on the rows beside it, so only sums over the batch need care: of the gradients, of the loss, and of the
# columns that batch normalisation reads. Each is taken shard by shard, and the shards' sums are added up in a binary
# tree: shard i gets shard i + 1, 2, 4, ... added where i is a multiple of twice that. A process with the 2**k shards
# from a multiple of 2**k on has a whole branch of the tree, and sends one sum. The branches are added up in
# Python, by `exchange`.
#
# All rows of the process run forward and backward in one pass. The products that give weights' gradients add up the
# shards tile by tile (product.pxi), and if all shards are here, the optimiser's step follows at once; other ops have a
# block of gradients for each level of the tree.

cdef enum:
    HEADER = 8              # doubles before the root of the gradients: for `exchange`, and sums of the loss
    SUMS = 4                # of the loss over the rows, of their weights, of rows classified right, of rows
    PIECES = 1024           # of the parameters, at most: one process takes the step for whole pieces

cdef enum:                  # what `Shards.step` does; training/distributed/parts.py has the same names
    BEGIN = 1
    PREPARE = 2
    UPDATE = 4
    END = 8
    WHOLE = 15

cdef enum:                  # what `Shards.memory` gives, beside the optimiser's state (1, 2, ...); there, too
    PARAMETERS = 0
    AVERAGE = -1
    SQUARES = -2
    MESSAGE = -3


cdef void add_shards(double* sums, Py_ssize_t n, Py_ssize_t count, Py_ssize_t row) noexcept nogil:
    """The sum of `count` vectors of n numbers, `row` apart, in the order of the tree: it takes the place of the first.
    """
    cdef Py_ssize_t i, j, stride = 1
    while stride < count:
        for i from 0 <= i < count - stride by 2 * stride:
            for j in range(n):
                sums[i * row + j] += sums[(i + stride) * row + j]
        stride *= 2


cdef void shard_of(const Pass* p, int shard, Pass* q, Workspace* ws, ShardList* alone, int thread) noexcept nogil:
    """Let q be the pass over one shard alone, after that over all of them; ws and alone are its memory."""
    cdef const Network* net = p.net
    cdef Py_ssize_t first = p.shards.cuts[shard]
    cdef real** pointers = p.shards.pointers + thread * p.shards.n_pointers
    cdef int i
    q[0] = p[0]
    ws[0] = p.ws[0]
    pointers_of(net, ws, pointers, True)
    for i in range(3 * net.n_buffers):
        pointers[i] = NULL if p.ws.value[i] == NULL else p.ws.value[i] + first * net.buffers[i % net.n_buffers].row
    for i in range(net.n_ops):
        ws.extra[i] = p.ws.extra[i] + net.ops[i].does.extra_size(&net.ops[i], first)
        ws.extra[i] -= net.ops[i].does.extra_size(&net.ops[i], 0)
    q.ws = ws
    q.batch.rows = p.shards.cuts[shard + 1] - first
    if p.batch.csr.start == NULL and not p.wants.gather:
        q.batch.x += first * p.batch.x_row
    if p.batch.csr.start != NULL:
        ws.spans += first
    alone[0] = p.shards[0]
    alone.count, alone.head = 1, p.shards.first == 0 and shard == 0
    q.shards = alone


cdef int push_block(real* blocks, Py_ssize_t n_block, Py_ssize_t first, Py_ssize_t n, int depth,
                    int done) noexcept nogil:
    """After `done` shards: add up what is complete of the tree, numbers `first` and following of each block; how many
    blocks are left."""
    cdef real* low
    while done % 2 == 0:
        done //= 2
        depth -= 1
        low = blocks + (depth - 1) * n_block + first
        add_block(n, low, low, 1, low + n_block)
    return depth


cdef void shard_gradient(const Pass* p, const Op* op, int thread) noexcept nogil:
    """The gradient of an op whose weight_gradient does not support shards: of each, in its own block, and the sum."""
    cdef Network into = p.net[0]
    cdef Workspace ws
    cdef ShardList alone
    cdef Pass q
    cdef const real* x
    cdef real* panel = p.ws.panel + thread * p.ws.panel_size
    cdef Py_ssize_t x_row, rows, unit, piece, at, begin, size, n = p.net.n_block
    cdef int i, depth = 0
    begin = op.weight if op.has_weight else op.bias
    size = (op.bias + bias_size(op) if op.has_bias else op.weight + weight_size(op)) - begin
    for i in range(p.shards.count):
        shard_of(p, i, &q, &ws, &alone, thread)
        into.grads = p.shards.blocks + depth * n
        memset(into.grads + begin, 0, size * sizeof(real))
        q.net = &into
        q.wants.update, q.wants.overwrite = NULL, False
        if q.batch.csr.start != NULL:
            sort_by_columns(&q.batch.csr, ws.spans, q.batch.rows, &ws.columns)
            p.ws.columns = ws.columns
        op.does.pieces(op, 1, &rows, &unit)
        piece = unit if unit >= COLUMNS else rows
        x = pass_input(&q, op.src, &x_row)
        for at from 0 <= at < rows by piece:
            if q.batch.rows:
                op.does.weight_gradient(&q, op, at, smaller(piece, rows - at), x, x_row, panel)
        depth = push_block(p.shards.blocks, n, begin, size, depth + 1, i + 1)
    while depth > 1:
        depth -= 1
        into.grads = p.shards.blocks + (depth - 1) * n + begin
        add_block(size, into.grads, into.grads, 1, into.grads + n)
    if p.wants.update != NULL:
        if wants_weight(p, op):
            update_rows(1, weight_size(op), p.net.params + op.weight, 0, p.shards.blocks + op.weight, 0,
                        p.wants.update + op.weight_group)
        if wants_bias(p, op):
            update_rows(1, bias_size(op), p.net.params + op.bias, 0, p.shards.blocks + op.bias, 0,
                        p.wants.update + op.bias_group)


cdef void update_part(const Network* net, Py_ssize_t begin, Py_ssize_t n, Py_ssize_t low, Py_ssize_t high,
                      real* grads, const Op* op, const Update* update) noexcept nogil:
    """Of an op's n parameters from `begin` on, those within low .. high: the step, or without an update add the
    gradients of the penalties."""
    n = smaller(begin + n, high)
    begin = larger(begin, low)
    if n <= begin:
        return
    if update != NULL:
        update_rows(1, n - begin, net.params + begin, 0, grads + begin, 0, update)
    else:
        penalty(n - begin, net.params + begin, grads + begin, op.l1, op.l2)


cdef class Shards:
    """Gradients of the shards of a batch that are here. Private to the library.

    Parameters
    ----------
    program : Program
    count : int
        Shards here.
    first : int
        The number of the first of them.
    keep : bool
        Whether several batches make a step: each shard's gradient has a block of its own then.
    exchange : callable
        exchange(vector): add up a float64 vector over all processes, in place, for batch normalisation; see `run` for
        an empty one.
    """
    cdef Program program
    cdef ShardList list
    cdef Arena block            # the header and the root, then the other blocks
    cdef double* totals         # of each shard
    cdef int threads            # that there are pointers for
    cdef Py_ssize_t piece       # numbers
    cdef double[PIECES] squares     # of the gradients, of each piece
    cdef void* room             # losses, and rows classified right, of each row
    cdef Py_ssize_t rows        # ... for so many
    cdef bint keep
    cdef object exchange
    cdef object error

    def __cinit__(self, Program program, int count, int first, bint keep, exchange):
        cdef const Network* net = &program.net
        cdef Py_ssize_t widest = 0, header
        cdef int i, blocks = 1
        self.program, self.keep, self.exchange = program, keep, exchange
        self.list.count, self.list.first, self.list.owner = count, first, <void*>self
        self.list.sum, self.list.gradient = sum_shards, shard_gradient
        while count >> blocks - 1:
            blocks += 1
        blocks = count if keep else blocks
        header = HEADER * sizeof(double) // sizeof(real)
        self.list.blocks = allocate(&self.block, header + times(blocks, net.n_block)) + header
        self.piece = round_up((net.n_block + PIECES - 1) // PIECES, 16)
        self.list.head = first == 0
        self.list.n_pointers = pointers_of(net, NULL, NULL, True)
        for i in range(net.n_ops):
            if net.ops[i].does.batch != NULL:
                widest = larger(widest, net.ops[i].row)
        self.totals = <double*>allocate_plain(count * SUMS * sizeof(double))
        self.list.columns = <double*>allocate_plain((4 * count + 2) * widest * sizeof(double))

    def __dealloc__(self):
        release(&self.block)
        free(self.list.pointers)
        free(self.totals)
        free(self.list.columns)
        free(self.room)

    def weighs(self, cnp.ndarray y, cnp.ndarray w):
        """Whether the sum of the weights of some rows may differ from the number of rows."""
        cdef Batch b
        self.program.loss.bind(&b, y, w)
        return b.weight != NULL or b.loss.labels or b.loss.ignore_nan

    def weights(self, cnp.ndarray y, cnp.ndarray w, cnp.ndarray order, cnp.ndarray ends, cnp.ndarray out):
        """The sums of the weights (see loss_weight) of runs of rows that follow one another; ends int64 (n,)."""
        cdef int64_t* turn = NULL if order is None else <int64_t*>cnp.PyArray_DATA(order)
        cdef const int64_t* end = <const int64_t*>cnp.PyArray_DATA(ends)
        cdef double* sums = <double*>cnp.PyArray_DATA(out)
        cdef Py_ssize_t i, at = 0, row
        cdef Batch b
        self.program.loss.bind(&b, y, w)
        for i in range(cnp.PyArray_SIZE(ends)):
            sums[i] = 0
            while at < end[i]:
                row = turn[at] if turn != NULL else at
                sums[i] += loss_weight(&b.loss, 1, b.target + row * b.target_bytes, b.target_bytes,
                                       b.weight + row if b.weight != NULL else NULL)
                at += 1

    def run(self, x, cnp.ndarray y, cnp.ndarray w, cnp.ndarray order, Py_ssize_t start, cnp.ndarray cuts,
            Py_ssize_t before, Py_ssize_t whole, double scale, bint training, bint fresh, cnp.ndarray out,
            int threads, bint fuse=False, cnp.ndarray rates=None, cnp.ndarray windows=None):
        """Forward and backward over the shards of a batch that are here: the sum of their gradients, and of the loss,
        is in `message` afterwards; with `keep`, after `join`.

        x, y, w and order are as `Program.train_batches` has them. The rows of the shards begin at place `start`;
        cuts, int64 (count + 1,): where each begins and the last ends, from there. before: rows of the batch in shards
        of lower numbers. whole: rows of the batch. scale: of the gradient. fresh: whether the gradients, with `keep`,
        replace those of the last run. out: None, or gets the outputs from place `start` on. fuse: take the optimiser's
        step too, at these rates, if the loss is finite. windows, int64 (runs, ops, 2): the gradients are computed in so
        many runs, of each op the units (see layout) from the first number on, as many as the second; after each run
        `exchange` is called, with an empty vector. Not with `keep`; of sparse rows all are computed at once.
        """
        cdef Program program = self.program
        cdef Network* net = &program.net
        cdef const int64_t* cut = <const int64_t*>cnp.PyArray_DATA(cuts)
        cdef Py_ssize_t rows = cut[self.list.count], correct = 0
        cdef double weight = 0
        cdef Batch all_rows
        cdef Pass p
        program.enter()
        try:
            program.forget("training has gone on since")
            program.reserve(&program.train, larger(rows, 1), True, threads, x,
                            most_entries(x, order, start, start + rows, larger(rows, 1)) if rows else 1)
            self.make_room(rows, threads)
            self.list.cuts, self.list.whole, self.list.failed = cut, whole, False
            p = program.training_pass(rows, threads)
            program.set_rows(&p, x, y, w)
            p.batch.order = NULL if order is None else <int64_t*>cnp.PyArray_DATA(order)
            p.wants.gather = p.wants.gather or p.batch.order != NULL
            p.wants.forward = p.wants.keep = p.wants.backward = True
            p.wants.scale = scale
            p.batch.losses = <double*>self.room
            p.batch.correct = <Py_ssize_t*>(p.batch.losses + rows)
            if out is not None:
                p.batch.out, p.batch.out_row = data(out), net.outputs
            all_rows = p.batch
            from_row(&p.batch, &all_rows, start)
            p.shards = &self.list
            program.train.training, program.train.row0 = training, program.rows_seen + before
            if fuse:
                prepare(&program.stepper, net, rates_of(rates, &program.stepper, 1))
            with nogil:
                run_pass(&p, &weight, &correct)
                if not self.list.failed:
                    self.count_losses(&p, fresh)
                    if fuse and isfinite((<double*>self.block.at)[1]):
                        p.wants.update = program.stepper.updates
                    if windows is None or p.batch.csr.start != NULL:
                        self.gradients(&p, fresh, NULL, 1)
                    else:
                        self.gradients(&p, fresh, <const int64_t*>cnp.PyArray_DATA(windows),
                                       cnp.PyArray_DIM(windows, 0))
                    if p.wants.update != NULL:
                        stepped(&program.stepper, net)
        finally:
            program.training_busy = False
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    cdef int make_room(self, Py_ssize_t rows, int threads) except -1:
        if threads > self.threads:
            free(self.list.pointers)
            self.list.pointers, self.threads = NULL, 0
            self.list.pointers = <real**>allocate_plain(threads * self.list.n_pointers * sizeof(real*))
            self.threads = threads
        if rows > self.rows or self.room == NULL:
            free(self.room)
            self.room, self.rows = NULL, 0
            self.room = allocate_plain(rows * (sizeof(double) + sizeof(Py_ssize_t)))
            self.rows = rows
        return 0

    cdef void count_losses(self, const Pass* p, bint fresh) noexcept nogil:
        """The sums of the loss, shard by shard in the order of the rows; in the header those of all shards here."""
        cdef const Batch* b = &p.batch
        cdef const int64_t* cut = self.list.cuts
        cdef double* sums = self.totals
        cdef double* header = <double*>self.block.at
        cdef Py_ssize_t i, j
        if fresh or not self.keep:
            memset(sums, 0, self.list.count * SUMS * sizeof(double))
        for i in range(self.list.count):
            for j in range(cut[i], cut[i + 1]):
                sums[0] += b.losses[j]
                sums[2] += b.correct[j]
            sums[1] += loss_weight(&b.loss, cut[i + 1] - cut[i], b.target + cut[i] * b.target_bytes, b.target_bytes,
                                   b.weight + cut[i] if b.weight != NULL else NULL)
            sums[3] += cut[i + 1] - cut[i]
            sums += SUMS
        if not self.keep:
            add_shards(self.totals, SUMS, self.list.count, SUMS)
            memcpy(header + 1, self.totals, SUMS * sizeof(double))

    cdef void gradients(self, Pass* p, bint fresh, const int64_t* windows, int runs) noexcept nogil:
        """The weights' gradients: their sum in the first block, or used for the step; with `keep` of each shard."""
        cdef Network into = p.net[0]
        cdef Workspace ws
        cdef ShardList alone
        cdef Pass all_shards = p[0], q
        cdef Pass* now = &all_shards
        cdef int i, run
        for i in range(self.list.count if self.keep else 1):
            if self.keep:
                shard_of(p, i, &q, &ws, &alone, 0)
                now = &q
            into.grads = self.list.blocks + i * p.net.n_block
            now.net = &into
            now.wants.weights, now.wants.overwrite = True, fresh
            if fresh and (now.batch.rows == 0 or into.frozen):
                memset(into.grads, 0, into.n_block * sizeof(real))
                now.wants.overwrite = False
            now.phase.claimed = 0
            if now.batch.rows == 0:
                continue
            if now.batch.csr.start != NULL:
                if now == &q:
                    sort_by_columns(&q.batch.csr, ws.spans, q.batch.rows, &ws.columns)
                    p.ws.columns = ws.columns
                elif self.list.count == 1:
                    sort_by_columns(&p.batch.csr, p.ws.spans, p.batch.rows, &p.ws.columns)
                now.wants.threads = 1       # the entries by columns are those of one shard
            for run in range(runs):
                if windows != NULL:
                    self.list.window = windows + run * 2 * p.net.n_ops
                    now.phase.claimed = 0
                parallel(weights_task, now, now.wants.threads)
                if windows != NULL and not add_up(<void*>self, NULL, 0):
                    break
            self.list.window = NULL

    def join(self):
        """With `keep`: add up the shards' gradients and sums of the loss."""
        cdef Py_ssize_t i, stride = 1, n = self.program.net.n_block, count = self.list.count
        cdef double* header = <double*>self.block.at
        cdef real* low
        if not self.keep:
            return
        while stride < count:
            for i from 0 <= i < count - stride by 2 * stride:
                low = self.list.blocks + i * n
                add_block(n, low, low, 1, low + stride * n)
            stride *= 2
        add_shards(self.totals, SUMS, count, SUMS)
        memcpy(header + 1, self.totals, SUMS * sizeof(double))

    @property
    def fuses(self):
        """Whether a step can be taken without the gradients in memory, if all shards are here."""
        return not self.keep and not needs_gradients(&self.program.stepper)

    def count_rows(self, Py_ssize_t rows):
        """So many rows more have been trained on: the random numbers of the next are others."""
        self.program.rows_seen += rows

    def layout(self):
        """Of each op: where its parameters begin in the block, the units of their gradients (see pieces), and the
        numbers of a unit, 0 if they are computed all at once. The last row: the numbers of the block, of a piece, 0."""
        cdef const Network* net = &self.program.net
        cdef cnp.npy_intp[2] shape
        cdef Py_ssize_t rows, unit
        cdef int64_t* at
        cdef const Op* op
        cdef int i
        shape[0], shape[1] = net.n_ops + 1, 3
        ops = cnp.PyArray_ZEROS(2, shape, cnp.NPY_INT64, 0)
        at = <int64_t*>cnp.PyArray_DATA(ops)
        for i in range(net.n_ops):
            op = &net.ops[i]
            if op.has_weight or op.has_bias:
                op.does.pieces(op, 1, &rows, &unit)
                at[0] = op.weight if op.has_weight else op.bias
                at[1] = (rows + unit - 1) // unit
                at[2] = unit * op.row if op.does.shards else 0
            at += 3
        at[0], at[1] = net.n_block, self.piece
        return ops

    def memory(self, int i):
        """The memory of the PARAMETERS, of a block of the optimiser's state (1, 2, ...), of the AVERAGE (None without
        one), of the SQUARES of each piece of the gradients, or of the MESSAGE, the header and the root of the
        gradients, as bytes."""
        cdef Program program = self.program
        cdef cnp.npy_intp n = program.net.n_block
        cdef void* at = program.net.params
        cdef int kind = REAL_TYPE
        if i > PARAMETERS:
            at = program.net.state + (i - 1) * n
        elif i == AVERAGE:
            at = program.stepper.average.at
        elif i == SQUARES:
            at, n, kind = self.squares, PIECES, cnp.NPY_FLOAT64
        elif i == MESSAGE:
            at, n, kind = self.block.at, HEADER * sizeof(double) + n * sizeof(real), cnp.NPY_UINT8
        if at == NULL:
            return None
        a = cnp.PyArray_SimpleNewFromData(1, &n, kind, at)
        cnp.set_array_base(a, self)
        return a

    def step(self, cnp.ndarray rates, int what, Py_ssize_t low, Py_ssize_t high):
        """Parts of the optimiser's step, with the gradients in the MESSAGE, for numbers low .. high of the parameters,
        whole pieces; what: the sum of BEGIN, which gives the penalties, PREPARE, what is done to the gradients before
        the norm of all is known, and their squares, which have to be those of all pieces before UPDATE, the step
        itself, and END."""
        cdef Program program = self.program
        cdef const double* rate = NULL
        cdef double extra = 0
        program.has_optimizer()
        if what & BEGIN:
            rate = rates_of(rates, &program.stepper, 1)
        if what == WHOLE:
            program.enter()
        if what & BEGIN:
            prepare(&program.stepper, &program.net, rate)
            extra = penalties(&program.net, False) if program.stepper.penalised else 0
        with nogil:
            self.step_part(what, low, high)
        if what & END:
            count_step(&program.stepper)
        if what == WHOLE:
            program.training_busy = False
        return extra

    cdef void step_part(self, int what, Py_ssize_t low, Py_ssize_t high) noexcept nogil:
        cdef const Network* net = &self.program.net
        cdef Stepper* s = &self.program.stepper
        cdef const double* hyper = s.table
        cdef real* grads = self.list.blocks
        cdef const Op* op
        cdef double square = 0
        cdef Py_ssize_t at
        cdef int i
        if what & PREPARE:
            for i in range(net.n_ops if s.penalised else 0):
                op = &net.ops[i]
                if op.trains_weight and (op.l1 != 0 or op.l2 != 0):
                    update_part(net, op.weight, weight_size(op), low, high, grads, op, NULL)
            if hyper[HYPER_CLIP_VALUE] > 0:
                clip_block(high - low, grads + low, <real>hyper[HYPER_CLIP_VALUE])
            if hyper[HYPER_CLIP_NORM] > 0:
                for at from low <= at < high by self.piece:
                    self.squares[at // self.piece] = sum_of_squares(smaller(self.piece, high - at), grads + at)
        if what & UPDATE:
            if hyper[HYPER_CLIP_NORM] > 0:
                for i in range(PIECES):
                    square += self.squares[i]
                square = clip_factor(square, hyper[HYPER_CLIP_NORM])
                if square != 1:
                    scale_block(high - low, grads + low, <real>square)
            for i in range(net.n_ops):
                op = &net.ops[i]
                if op.trains_weight:
                    update_part(net, op.weight, weight_size(op), low, high, grads, op, s.updates + op.weight_group)
                if op.trains_bias:
                    update_part(net, op.bias, bias_size(op), low, high, grads, op, s.updates + op.bias_group)
            average(s, net, low, high)

    def take(self):
        """Let the gradients in `message`, with those of the penalties, be the program's; packed, as `loss_and_grad`
        has them, and the penalties."""
        cdef Network* net = &self.program.net
        cdef double extra
        memcpy(net.grads, self.list.blocks, net.n_block * sizeof(real))
        extra = penalties(net, True)
        return packed(net, net.grads), extra


cdef bint add_up(void* owner, double* at, cnp.npy_intp n) noexcept with gil:
    """Add up n numbers over all processes; False if that fails."""
    cdef Shards shards = <Shards>owner
    try:
        shards.exchange(cnp.PyArray_SimpleNewFromData(1, &n, cnp.NPY_FLOAT64, at))
        return True
    except BaseException as error:
        shards.error = error
        return False


cdef bint sum_shards(Pass* p, const Op* op, bint backward) noexcept nogil:
    """What `sums_task` does, for a batch in shards: each shard's sums, their sums, and those over all processes."""
    cdef Py_ssize_t i, j, n = op.n_out, row = op.row, count = p.shards.count
    cdef double* sums = p.shards.columns
    cdef double* moments = sums + 2 * count * row
    cdef double* mean = moments + 2 * count * row
    cdef double rows, d
    cdef Workspace ws
    cdef ShardList alone
    cdef Pass q
    for i in range(count):
        shard_of(p, i, &q, &ws, &alone, 0)
        if backward:
            op.does.batch.shard_gradients(&q, op, sums + 2 * i * row)
        else:
            op.does.batch.shard_moments(&q, op, moments + 2 * i * row)
            rows = q.batch.rows
            for j in range(n):
                sums[2 * i * row + j] = rows * moments[2 * i * row + j]
    add_shards(sums, row + n if backward else n, count, 2 * row)
    if not add_up(p.shards.owner, sums, row + n if backward else n):
        return False
    if not backward:
        for j in range(n):
            mean[j] = sums[j] / p.shards.whole
        for i in range(count):
            rows = p.shards.cuts[i + 1] - p.shards.cuts[i]
            for j in range(n):
                d = moments[2 * i * row + j] - mean[j]
                sums[2 * i * row + j] = moments[(2 * i + 1) * row + j] + rows * d * d
        add_shards(sums, n, count, 2 * row)
        if not add_up(p.shards.owner, sums, n):
            return False
        for j in range(n):
            mean[row + j] = sums[j] / p.shards.whole
    op.does.batch.take(p, op, backward, sums if backward else mean)
    return True
