# Batches that several processes share, with the same sums to the bit whichever process has which rows.
#
# A batch is cut into shards, runs of rows; a process has some that lie side by side. What a pass gives for a row does
# not depend on the rows beside it, so only sums over the batch need care: of the gradients, of the loss, and of the
# columns that batch normalisation reads. Each is taken shard by shard, and the shards' sums are added up in a binary
# tree: shard i gets shard i + 1, 2, 4, ... added where i is a multiple of twice that. A process with the 2**k shards
# from a multiple of 2**k on has a whole branch of the tree, and sends one sum. Who adds the branches up is no matter of
# this file: `exchange`, in Python.
#
# All rows of the process run forward and backward in one pass. The products that give weights' gradients add up the
# shards tile by tile (product.pxi), and if all shards are here, the optimiser's step follows at once; other ops have a
# block of gradients for each level of the tree.

cdef enum:
    HEADER = 8              # doubles before the root of the gradients: for `exchange`, and sums of the loss
    SUMS = 4                # of the loss over the rows, of their weights, of rows classified right, of rows
    PIECES = 1024           # of the parameters, at most: one process takes the step for whole pieces


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
    """The gradient of an op whose weight_gradient knows no shards: of each, in a block of its own, and their sum."""
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


cdef double piece_squares(const real* g, Py_ssize_t low, Py_ssize_t high, Py_ssize_t piece,
                          double* sums) noexcept nogil:
    """The sum of the squares of numbers low .. high of a block, whole pieces; those of each piece go to `sums`, if that
    is not NULL."""
    cdef double total = 0, square
    cdef Py_ssize_t at
    for at from low <= at < high by piece:
        square = sum_of_squares(smaller(piece, high - at), g + at)
        total += square
        if sums != NULL:
            sums[at // piece] = square
    return total


cdef void update_part(const Network* net, Py_ssize_t begin, Py_ssize_t n, Py_ssize_t low, Py_ssize_t high,
                      real* grads, double l1, double l2, const Update* update) noexcept nogil:
    """Of n parameters from `begin` on, those within low .. high: add the penalties' gradients, or take the step."""
    begin, n = larger(begin, low), smaller(begin + n, high) - larger(begin, low)
    if n > 0 and update != NULL:
        update_rows(1, n, net.params + begin, 0, grads + begin, 0, update)
    elif n > 0 and (l1 != 0 or l2 != 0):
        penalty(n, net.params + begin, grads + begin, l1, l2)


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
        exchange(vector): add up a float64 vector over all processes, in place, for batch normalisation.
    """
    cdef Program program
    cdef ShardList list
    cdef Arena memory           # the header and the root, then the other blocks
    cdef double* totals         # of each shard
    cdef int threads            # that there are pointers for
    cdef Py_ssize_t piece       # numbers
    cdef void* room             # losses, and rows classified right, of each row
    cdef Py_ssize_t rows        # ... for so many
    cdef bint keep
    cdef object exchange
    cdef object advance         # of the run that is under way
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
        self.list.blocks = allocate(&self.memory, header + times(blocks, net.n_block)) + header
        self.piece = round_up((net.n_block + PIECES - 1) // PIECES, 16)
        self.list.head = first == 0
        self.list.n_pointers = pointers_of(net, NULL, NULL, True)
        for i in range(net.n_ops):
            if net.ops[i].does.batch != NULL:
                widest = larger(widest, net.ops[i].row)
        self.totals = <double*>allocate_plain(count * SUMS * sizeof(double))
        self.list.columns = <double*>allocate_plain((4 * count + 2) * widest * sizeof(double))

    def __dealloc__(self):
        release(&self.memory)
        free(self.list.pointers)
        free(self.totals)
        free(self.list.columns)
        free(self.room)

    @property
    def message(self):
        """The memory of the header and of the root of the gradients, as bytes."""
        cdef cnp.npy_intp n = HEADER * sizeof(double) + self.program.net.n_block * sizeof(real)
        cdef cnp.ndarray a = cnp.PyArray_SimpleNewFromData(1, &n, cnp.NPY_UINT8, self.memory.at)
        cnp.set_array_base(a, self)
        return a

    def weighs(self, cnp.ndarray y, cnp.ndarray w):
        """Whether the sum of the weights of some rows may be another number than that of the rows."""
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
            int threads, bint fuse=False, cnp.ndarray rates=None, cnp.ndarray windows=None, advance=None):
        """Forward and backward over the shards of a batch that are here: the sum of their gradients, and of the loss,
        is in `message` afterwards; with `keep`, after `join`.

        x, y, w and order are as `Program.train_batches` has them. The rows of the shards begin at place `start`;
        cuts, int64 (count + 1,): where each begins and the last ends, from there. before: rows of the batch in shards
        of lower numbers. whole: rows of the batch. scale: of the gradient. fresh: whether the gradients, with `keep`,
        replace those of the last run. out: None, or gets the outputs from place `start` on. fuse: take the optimiser's
        step too, at these rates, if the loss is finite. windows, int64 (runs, ops, 2): the gradients are computed in so
        many runs, of each op the units (see layout) from the first number on, as many as the second; after each run
        advance() is called. Not with `keep`; of sparse rows all are computed at once.
        """
        cdef Program program = self.program
        cdef Network* net = &program.net
        cdef const int64_t* cut = <const int64_t*>cnp.PyArray_DATA(cuts)
        cdef Py_ssize_t rows = cut[self.list.count], correct = 0
        cdef double weight = 0
        cdef Batch all_rows
        cdef Pass p
        program.enter()
        self.advance = advance
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
                    if fuse and isfinite((<double*>self.memory.at)[1]):
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
            self.advance = None
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
        cdef double* header = <double*>self.memory.at
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

    cdef bint advanced(self) noexcept with gil:
        try:
            self.advance()
            return True
        except BaseException as error:
            self.error = error
            return False

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
                if windows != NULL and not self.advanced():
                    break
            self.list.window = NULL

    def join(self):
        """With `keep`: add up the shards' gradients and sums of the loss."""
        cdef Py_ssize_t i, stride = 1, n = self.program.net.n_block, count = self.list.count
        cdef double* header = <double*>self.memory.at
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
        numbers of a unit, 0 if they are computed all at once. And the numbers of the block, and of a piece of it."""
        cdef const Network* net = &self.program.net
        cdef const Op* op
        cdef Py_ssize_t rows, unit, begin
        cdef int i
        ops = []
        for i in range(net.n_ops):
            op = &net.ops[i]
            begin = rows = 0
            unit = 1
            if op.has_weight or op.has_bias:
                begin = op.weight if op.has_weight else op.bias
                op.does.pieces(op, 1, &rows, &unit)
            ops.append((begin, (rows + unit - 1) // unit, unit * op.row if op.does.shards else 0))
        return ops, net.n_block, self.piece

    def block(self, int i):
        """The memory of the parameters (0), of a block of the optimiser's state (1, 2, ...) or of the average (-1);
        None if there is none."""
        cdef Program program = self.program
        cdef cnp.npy_intp n = program.net.n_block
        cdef real* at = program.net.params
        if i > 0:
            at = program.net.state + (i - 1) * n
        elif i < 0:
            at = program.stepper.average.at
        if at == NULL:
            return None
        a = cnp.PyArray_SimpleNewFromData(1, &n, REAL_TYPE, at)
        cnp.set_array_base(a, program)
        return a

    @property
    def clips(self):
        """Whether a step needs the norm of all gradients."""
        return self.program.stepper.table[HYPER_CLIP_NORM] > 0

    def begin_step(self, cnp.ndarray rates):
        """Before `prepare_part`, `step_part` and `end_step`: the penalties."""
        cdef Program program = self.program
        program.has_optimizer()
        prepare(&program.stepper, &program.net, rates_of(rates, &program.stepper, 1))
        return penalties(&program.net, False) if program.stepper.penalised else 0.0

    def prepare_part(self, Py_ssize_t low, Py_ssize_t high, cnp.ndarray squares=None):
        """What is done to the gradients in `message` before the step, of numbers low .. high of the block, whole
        pieces; squares: gets the sum of the squares of each of them."""
        cdef const Network* net = &self.program.net
        cdef const Stepper* s = &self.program.stepper
        cdef const Op* op
        cdef double limit = s.table[HYPER_CLIP_VALUE]
        cdef int i
        with nogil:
            for i in range(net.n_ops if s.penalised else 0):
                op = &net.ops[i]
                if op.trains_weight:
                    update_part(net, op.weight, weight_size(op), low, high, self.list.blocks, op.l1, op.l2, NULL)
            if limit > 0:
                clip_block(high - low, self.list.blocks + low, <real>limit)
        if squares is not None:
            piece_squares(self.list.blocks, low, high, self.piece, <double*>cnp.PyArray_DATA(squares))

    def step_part(self, Py_ssize_t low, Py_ssize_t high, double square=0):
        """The step with the gradients in `message`, after `prepare_part`; square: of the norm of all."""
        cdef const Network* net = &self.program.net
        cdef Stepper* s = &self.program.stepper
        cdef const Op* op
        cdef double factor = 1
        cdef int i
        if s.table[HYPER_CLIP_NORM] > 0:
            factor = clip_factor(square, s.table[HYPER_CLIP_NORM])
        with nogil:
            if factor != 1:
                scale_block(high - low, self.list.blocks + low, <real>factor)
            for i in range(net.n_ops):
                op = &net.ops[i]
                if op.has_weight and op.trains_weight:
                    update_part(net, op.weight, weight_size(op), low, high, self.list.blocks, 0, 0,
                                s.updates + op.weight_group)
                if op.has_bias and op.trains_bias:
                    update_part(net, op.bias, bias_size(op), low, high, self.list.blocks, 0, 0,
                                s.updates + op.bias_group)
            average(s, net, low, high)

    def end_step(self):
        count_step(&self.program.stepper)

    def step(self, cnp.ndarray rates):
        """Take the optimiser's step with the gradients in `message`; the penalties."""
        cdef Program program = self.program
        cdef Py_ssize_t n = program.net.n_block
        cdef double extra
        program.enter()
        try:
            extra = self.begin_step(rates)
            self.prepare_part(0, n)
            self.step_part(0, n, piece_squares(self.list.blocks, 0, n, self.piece, NULL) if self.clips else 0)
            self.end_step()
        finally:
            program.training_busy = False
        return extra

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
