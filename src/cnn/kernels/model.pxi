# The class that Python sees: a Network, its workspaces, and calls that check their arguments and start the walks.

cdef enum Saved:
    SAVED_NOTHING
    SAVED_OUTPUTS           # a forward pass
    SAVED_LOSS              # a forward pass and the gradient of its loss

cdef enum:
    GIL_WORK = 20000        # multiply-adds below which letting go of the GIL (35 ns) costs more than it frees


cdef const double* rates_of(cnp.ndarray rates) noexcept:
    """A schedule's lr and momentum, step by step; NULL for None."""
    if rates is None:
        return NULL
    return <const double*>cnp.PyArray_DATA(rates)


cdef class Program:
    """A compiled network: parameters, gradients, optimiser state and the walks over them. Private to the library.

    Parameters
    ----------
    widths : list of int
        Width of each buffer; the first is the input's, the last the output's.
    ops : list of dict
        kind (a key of OP_KINDS), src (list of buffers) and dst, in order; further, by kind: act (from ACTIVATIONS),
        param, bias, l1 and l2 (linear); act, param (activation); param (dropout: p); param (eps), weight, bias and
        momentum (norms).
    loss : dict or None
        What `Loss.spec` returns.
    where : tuple of str
        What takes the inputs and what gives the outputs, for error messages.
    seed : int
        Of dropout.
    """
    cdef Network net
    cdef void* memory           # of the parameter block
    cdef void* running_memory
    cdef void* average_memory
    cdef Workspace train
    cdef Workspace infer
    cdef Stepper stepper
    cdef object table           # the optimiser's, kept alive
    cdef Py_ssize_t batch       # rows of the last forward pass
    cdef Saved saved
    cdef str lost               # why nothing is saved
    cdef bint training_busy
    cdef bint infer_busy
    cdef str takes
    cdef str gives
    cdef int64_t rows_seen      # rows that training has run forward: dropout's masks follow from it
    cdef readonly Py_ssize_t allocations    # of parameter blocks and workspaces, so far

    def __cinit__(self, widths, ops, loss, where, uint64_t seed=0):
        cdef Network* net = &self.net
        cdef Op* op
        cdef int i, s, sources = 0
        cdef Py_ssize_t n
        if max(widths) >= CNN_MOST >> 10:
            raise MemoryError(f"a width of {max(widths)} is too large for this machine's addresses")
        net.n_ops = len(ops)
        net.n_buffers = len(widths)
        net.outputs = widths[net.n_buffers - 1]
        for spec in ops:
            sources += len(spec["src"])
        net.ops = <Op*>calloc(net.n_ops, sizeof(Op))
        net.sources = <int*>calloc(sources, sizeof(int))
        net.adds = <char*>calloc(sources, 1)
        net.segments = <int*>calloc(net.n_ops + 1, sizeof(int))
        net.buffers = <Buffer*>calloc(net.n_buffers, sizeof(Buffer))
        if (net.ops == NULL or net.sources == NULL or net.adds == NULL or net.segments == NULL
                or net.buffers == NULL):
            raise MemoryError()
        if loss is not None:
            fill_loss(&net.loss, loss, net.outputs)
        self.takes, self.gives = where
        self.lost = "there was no forward pass"
        for i, width in enumerate(widths):
            net.buffers[i].width = width
            net.buffers[i].row = padded_row(width, 64)
            net.widest = larger(net.widest, net.buffers[i].row)
        net.n_segments = 1
        net.chain = True
        sources = 0
        for i, spec in enumerate(ops):
            op = &net.ops[i]
            op.kind = OP_KINDS[spec["kind"]]
            op.n_src = len(spec["src"])
            op.srcs = net.sources + sources
            op.adds = net.adds + sources
            for s in range(op.n_src):
                op.srcs[s] = spec["src"][s]
            sources += op.n_src
            op.src = op.srcs[0]
            op.dst = spec["dst"]
            op.act = spec.get("act", IDENTITY)
            op.param = <double>spec.get("param", 0.0)       # not `real`: to Cython that is a float
            op.keeps_input = op.act != IDENTITY and keeps_input(op.act, op.param)
            op.own_slope = True
            op.slope_of = -1
            op.n_in = net.buffers[op.src].width
            op.n_out = net.buffers[op.dst].width
            op.has_weight = op.kind == OP_LINEAR or spec.get("weight", False)
            op.has_bias = spec.get("bias", False)
            op.l1 = spec.get("l1", 0.0)
            op.l2 = spec.get("l2", 0.0)
            op.key = random_bits(seed, i)
            net.chain = net.chain and op.kind <= OP_ACTIVATION and op.src == op.dst - 1
            if op.kind == OP_LINEAR:
                self.place(op)
                net.work += op.n_in * op.n_out
                net.buffers[op.dst].kept = op.keeps_input
                net.pad_input = net.pad_input or (op.src == 0 and op.transposed)
            else:
                net.work += 8 * op.n_out
                for s in range(op.n_src):
                    net.pad_input = net.pad_input or op.srcs[s] == 0 and op.kind >= OP_ADD
            if op.kind == OP_LAYER_NORM or op.kind == OP_BATCH_NORM:
                self.place_norm(op, spec)
            if op.kind == OP_BATCH_NORM:
                net.segments[net.n_segments] = i
                net.n_segments += 1
            net.random = net.random or op.kind == OP_DROPOUT
        self.share_gradients()
        self.fuse_slopes()
        n = net.n_block
        net.params = allocate(times(2 + STATES, n), &self.memory)
        net.grads = net.params + n
        net.state = net.grads + n
        if net.n_running:
            net.running = allocate(net.n_running, &self.running_memory)
            self.clear_running()
        self.allocations += 1

    cdef int place(self, Op* op) except -1:
        """Choose the layout of a linear op and give it its place in the parameter block."""
        cdef Py_ssize_t normal = times(op.n_in, round_up(op.n_out, VL)), turned = times(op.n_out, round_up(op.n_in, VL))
        op.transposed = 2 * turned <= normal
        if plus(normal, self.net.n_block) >= CNN_MOST:
            raise MemoryError("the network is too large for this machine's addresses")
        op.weight = self.net.n_block
        if op.transposed:
            op.row = padded_row(op.n_in, op.n_out)
            self.net.n_block += op.n_out * op.row
        else:
            op.row = padded_row(op.n_out, op.n_in)
            self.net.n_block += op.n_in * op.row
        op.bias = self.net.n_block
        self.net.n_block += round_up(op.n_out, VL) if op.transposed else op.row
        self.net.n_parameters += (op.n_in + op.has_bias) * op.n_out
        return 0

    cdef void place_norm(self, Op* op, spec):
        """The same for a norm: a weight and a bias for each column, and running statistics."""
        op.row = round_up(op.n_out, VL)
        op.weight = self.net.n_block
        op.bias = op.weight + op.row * op.has_weight
        self.net.n_block = op.bias + op.row * op.has_bias
        self.net.n_parameters += op.n_out * (op.has_weight + op.has_bias)
        if op.kind == OP_BATCH_NORM:
            op.momentum = spec["momentum"]
            op.running = self.net.n_running
            self.net.n_running += 2 * op.row

    cdef void clear_running(self):
        """Running statistics before the first batch: mean 0, variance 1."""
        cdef Py_ssize_t j
        cdef int i
        cdef Op* op
        for i in range(self.net.n_ops):
            op = &self.net.ops[i]
            if op.kind == OP_BATCH_NORM:
                op.tracked = 0
                for j in range(op.n_out):
                    self.net.running[op.running + j] = 0
                    self.net.running[op.running + op.row + j] = 1

    cdef void share_gradients(self):
        """Mark, going back as walk_backward does, who adds to a gradient that a later reader has stored."""
        cdef int i, s
        cdef const Op* op
        seen = set()
        for i in range(self.net.n_ops - 1, -1, -1):
            op = &self.net.ops[i]
            for s in range(op.n_src):
                op.adds[s] = op.srcs[s] in seen
                self.net.scratch = self.net.scratch or op.adds[s]
                seen.add(op.srcs[s])

    cdef void fuse_slopes(self):
        """Where the only reader of a linear op's result is a linear op, that one multiplies by act' as it makes dX."""
        cdef int i, j, s, readers, reader = 0
        for i in range(self.net.n_ops):
            readers = 0
            for j in range(self.net.n_ops):
                for s in range(self.net.ops[j].n_src):
                    if self.net.ops[j].srcs[s] == self.net.ops[i].dst:
                        readers += 1
                        reader = j
            if readers == 1 and self.net.ops[i].kind == OP_LINEAR and self.net.ops[reader].kind == OP_LINEAR:
                self.net.ops[reader].slope_of = i
                self.net.ops[i].own_slope = False

    def __dealloc__(self):
        self.release(&self.train)
        self.release(&self.infer)
        clear_loss(&self.net.loss)
        release_arena(self.memory, self.net.params)
        release_arena(self.running_memory, self.net.running)
        release_arena(self.average_memory, self.stepper.average)
        free(self.stepper.updates)
        free(self.net.ops)
        free(self.net.sources)
        free(self.net.adds)
        free(self.net.segments)
        free(self.net.buffers)

    # workspaces -------------------------------------------------------------------------------------------------------

    cdef void release(self, Workspace* ws):
        release_arena(ws.memory, ws.value[0] if ws.value != NULL else NULL)
        free(ws.value)
        free(ws.losses)
        memset(ws, 0, sizeof(Workspace))

    cdef int reserve(self, Workspace* ws, Py_ssize_t batch, bint training, int threads) except -1:
        """Make room for a batch: a new workspace if this one is too small. The old one stays if memory is short."""
        cdef Workspace grown
        cdef Network* net = &self.net
        cdef Py_ssize_t n = 0, blocks, target
        cdef int b, part, n_buffers = net.n_buffers
        cdef real* at
        if batch <= ws.capacity and threads <= ws.threads:
            return 0
        memset(&grown, 0, sizeof(grown))
        batch = larger(batch, larger(ws.capacity, 1))
        grown.threads = <int>larger(threads, ws.threads)
        if times(times(batch, net.widest + TILE_NV * VL), 4 * (n_buffers + net.n_ops + grown.threads)) >= CNN_MOST:
            raise MemoryError(f"a batch of {batch} rows is too large for this machine's addresses")
        grown.capacity = batch
        grown.training = ws.training
        grown.row0 = ws.row0
        grown.panel_size = panel_size(batch, net.widest) if training else panel_size(0, 0)
        blocks = batch // LOSS_BLOCK + 1
        for b in range(n_buffers):
            n += batch * net.buffers[b].row * ((3 if net.buffers[b].kept else 2) if training else 1)
        if training and net.scratch:
            n += batch * net.widest
        for b in range(net.n_ops):
            n += round_up(extra_size(&net.ops[b], batch), VL)
        try:
            grown.value = <real**>calloc(3 * n_buffers + net.n_ops, sizeof(real*))
            if grown.value == NULL:
                raise MemoryError()
            if training:        # losses, correct, targets and weights lie in one piece
                target = larger(net.outputs * sizeof(real), sizeof(int64_t))
                grown.losses = <double*>calloc(16 * blocks + batch * (target + sizeof(real)), 1)
                if grown.losses == NULL:
                    raise MemoryError()
                grown.correct = <Py_ssize_t*>(grown.losses + blocks)
                grown.targets = <char*>(grown.correct + blocks)
                grown.weights = <real*>(grown.targets + batch * target)
            at = allocate(n + grown.threads * grown.panel_size, &grown.memory)
        except MemoryError:
            self.release(&grown)
            raise
        grown.before = grown.value + n_buffers
        grown.grad = grown.before + n_buffers
        grown.extra = grown.grad + n_buffers
        for part in range(3 if training else 1):
            for b in range(n_buffers):
                if part != 1 or net.buffers[b].kept:
                    grown.value[part * n_buffers + b] = at
                    at += batch * net.buffers[b].row
        if training and net.scratch:
            grown.scratch = at
            at += batch * net.widest
        for b in range(net.n_ops):
            grown.extra[b] = at
            at += round_up(extra_size(&net.ops[b], batch), VL)
        grown.panel = at
        self.release(ws)
        ws[0] = grown
        self.allocations += 1
        return 0

    cdef int enter(self) except -1:
        """Claim the training workspace; two threads in one model would corrupt it."""
        if self.training_busy:
            raise RuntimeError("another thread is training this model, or running it forward: use predict, which may "
                               "run at the same time, or one model a thread")
        self.training_busy = True
        return 0

    cdef Pass training_pass(self, Py_ssize_t batch) noexcept nogil:
        """A Pass over the training workspace, all else zero."""
        cdef Pass p
        memset(&p, 0, sizeof(p))
        p.net = &self.net
        p.ws = &self.train
        p.batch = batch
        p.losses = self.train.losses
        p.correct = self.train.correct
        p.scale = 1
        return p

    cdef int enough_rows(self, Py_ssize_t batch) except -1:
        """Batch normalisation cannot train on one row: its variance is zero."""
        if batch == 1 and self.net.n_segments > 1:
            raise ValueError("BatchNorm1d: expected at least 2 rows in a batch in training mode, got 1")
        return 0

    cdef void begin(self, Py_ssize_t batch, bint training):
        """Before a forward pass in the training workspace."""
        self.train.training = training
        self.train.row0 = self.rows_seen
        if training:
            self.rows_seen += batch

    # arguments --------------------------------------------------------------------------------------------------------

    def inputs(self, x, name="x"):
        """x as the walks can read it: shape (batch, in_features), this dtype; x itself where that holds already."""
        return as_matrix(x, self.net.buffers[0].width, name, self.takes)

    def targets(self, y, Py_ssize_t batch, name="targets"):
        """y as the loss can read it: class indices (batch,) or numbers (batch, out_features)."""
        if self.net.loss.kind == LOSS_NONE:
            raise RuntimeError("targets were given, but the model has no loss: let a loss stand last in its layers")
        return as_targets(&self.net.loss, y, batch, self.net.outputs, name, self.gives)

    def weights(self, w, Py_ssize_t batch, name="sample_weight"):
        """w as the losses can read it: (batch,), not negative, finite."""
        return as_weights(w, batch, name)

    cdef void set_rows(self, Pass* p, cnp.ndarray x, cnp.ndarray t, cnp.ndarray w=None) noexcept:
        """The arrays of a pass, t and w or None: as `inputs`, `targets` and `weights` give them."""
        p.x = data(x)
        p.x_row = row_stride(x)
        p.gather = self.net.pad_input
        if t is not None:
            p.loss = self.net.loss
            p.loss.labels = cnp.PyArray_NDIM(t) == 1
            p.target = <const char*>cnp.PyArray_DATA(t)
            p.target_bytes = sizeof(int64_t) if p.loss.labels else row_stride(t) * sizeof(real)
        if w is not None:
            p.weight = data(w)

    cdef double reduced(self, double total, double weight):
        """The loss of a batch from its sums."""
        if self.net.loss.mean:
            total = total / weight if weight > 0 else 0
        return total + penalties(&self.net, False)

    # what Python calls ------------------------------------------------------------------------------------------------

    def set_optimizer(self, cnp.ndarray table, groups, clip_norm, clip_value, ema_decay):
        """Take an optimiser: its table of hyper-parameters, which is read at each step, and for each op a pair of rows
        of it, for weight and bias. Its state is empty then. None for no clipping and no average."""
        cdef Stepper* s = &self.stepper
        cdef int i
        self.enter()
        try:
            self.table = table
            s.table = <const double*>cnp.PyArray_DATA(table)
            s.groups = table.shape[0]
            free(s.updates)
            s.updates = <Update*>calloc(s.groups, sizeof(Update))
            if s.updates == NULL:
                s.table = NULL
                raise MemoryError()
            s.penalised = False
            for i in range(self.net.n_ops):
                self.net.ops[i].weight_group, self.net.ops[i].bias_group = groups[i]
                s.penalised = s.penalised or self.net.ops[i].l1 != 0 or self.net.ops[i].l2 != 0
            s.clip_norm = clip_norm or 0.0
            s.clip_value = clip_value or 0.0
            s.whole = s.penalised or s.clip_norm > 0 or s.clip_value > 0
            s.ema_decay = 0.0 if ema_decay is None else ema_decay
            release_arena(self.average_memory, s.average)
            self.average_memory = s.average = NULL
            if ema_decay is not None:
                s.average = allocate(self.net.n_block, &self.average_memory)
            self.reset()
        finally:
            self.training_busy = False

    cdef int has_optimizer(self) except -1:
        if self.stepper.table == NULL:
            raise RuntimeError("the model has no optimizer: pass one to Sequential, or set model.optimizer")
        return 0

    cdef bint single(self, cnp.ndarray w):
        """Whether a batch of one row may take the way of its own."""
        return (self.net.chain and self.stepper.groups == 1 and not self.stepper.whole and w is None
                and not (self.net.loss.labels and self.net.loss.column != NULL))

    def forward(self, x, y, int threads, bint training=True):
        """Outputs (batch, out_features); with targets the loss instead, and its gradient is kept for backward.

        x is copied: changing it afterwards does not change what backward computes.
        """
        cdef cnp.ndarray rows = self.inputs(x), t = None, out = None
        cdef Py_ssize_t batch = cnp.PyArray_DIM(rows, 0), correct = 0
        cdef double loss, weight = 0
        cdef Pass p
        if y is not None:
            t = self.targets(y, batch)
            if batch == 0:
                raise ValueError("the loss of an empty batch is not defined")
        if training:
            self.enough_rows(batch)
        self.enter()
        try:
            self.reserve(&self.train, batch, True, threads)
            p = self.training_pass(batch)
            self.set_rows(&p, rows, t)
            p.gather = p.forward = p.keep = True
            if t is None:
                out = empty_matrix(batch, self.net.outputs)
                p.out, p.out_row = data(out), self.net.outputs
            self.saved = SAVED_NOTHING
            self.begin(batch, training)
            with nogil:
                loss = run_pass(&p, threads, &weight, &correct)
            self.batch = batch
            self.saved = SAVED_OUTPUTS if t is None else SAVED_LOSS
            return out if t is None else self.reduced(loss, weight)
        finally:
            self.training_busy = False

    def backward(self, grad_output, int threads, bint weights=True):
        """Add the gradients of the last forward pass to the parameters' gradients, unless weights is False; the
        gradient of x (batch, in). The gradient of the loss includes that of the penalties."""
        cdef int last = self.net.n_buffers - 1
        cdef Py_ssize_t width = self.net.buffers[0].width, correct = 0
        cdef cnp.ndarray g = None, dx
        cdef double weight = 0
        cdef Pass p
        if self.saved == SAVED_NOTHING:
            raise RuntimeError(f"backward needs a forward pass to go back over, but {self.lost}")
        if grad_output is None and self.saved != SAVED_LOSS:
            raise RuntimeError("backward needs grad_output, or a forward pass with targets that no backward has used")
        if grad_output is not None:
            g = as_matrix(grad_output, self.net.outputs, "grad_output", self.gives)
            if cnp.PyArray_DIM(g, 0) != self.batch:
                raise ValueError(f"grad_output: expected {self.batch} rows, as the last forward pass had, got "
                                 f"{cnp.PyArray_DIM(g, 0)}")
        self.enter()
        try:
            threads = <int>smaller(threads, self.train.threads)     # a larger workspace would not hold the forward pass
            dx = empty_matrix(self.batch, width)
            if g is not None:
                copy_rows(self.batch, self.net.outputs, data(g), row_stride(g), self.train.grad[last],
                          self.net.buffers[last].row)
            self.saved = SAVED_OUTPUTS
            p = self.training_pass(self.batch)
            p.gather = p.backward = p.input_grad = True
            p.weights = weights
            with nogil:
                run_pass(&p, threads, &weight, &correct)
                copy_rows(self.batch, width, self.train.grad[0], self.net.buffers[0].row, data(dx), width)
            if g is None and weights:
                penalties(&self.net, True)
            return dx
        finally:
            self.training_busy = False

    cdef cnp.ndarray rows_of(self, real** buffers, int b, Py_ssize_t batch):
        """A copy of rows of a buffer, without their padding."""
        cdef Buffer* buffer = &self.net.buffers[b]
        cdef cnp.ndarray rows = empty_matrix(batch, buffer.width)
        copy_rows(batch, buffer.width, buffers[b], buffer.row, data(rows), buffer.width)
        return rows

    def value_of(self, int buffer):
        """A copy of what the last forward pass wrote to a buffer, (batch, width)."""
        return self.rows_of(self.train.value, buffer, self.batch)

    def gradient_of(self, int buffer):
        """A copy of the gradient that the last backward pass left in a buffer, (batch, width)."""
        return self.rows_of(self.train.grad, buffer, self.batch)

    def loss_and_grad(self, x, y, int threads, bint training=True):
        """Loss and its gradient, packed in the order of the ops: weight (in, out), then bias.

        The gradients are replaced by this one.
        """
        cdef cnp.ndarray rows = self.inputs(x)
        cdef Py_ssize_t batch = cnp.PyArray_DIM(rows, 0), correct = 0
        cdef cnp.ndarray t = self.targets(y, batch)
        cdef double loss, weight = 0
        cdef Pass p
        if batch == 0:
            raise ValueError("the loss of an empty batch is not defined")
        if training:
            self.enough_rows(batch)
        self.enter()
        try:
            self.reserve(&self.train, batch, True, threads)
            p = self.training_pass(batch)
            self.set_rows(&p, rows, t)
            p.forward = p.keep = p.backward = p.weights = p.overwrite = True
            self.begin(batch, training)
            with nogil:
                loss = run_pass(&p, threads, &weight, &correct)
                penalties(&self.net, True)
            if self.saved != SAVED_NOTHING:
                self.forget("loss_and_grad has run since")
            return self.reduced(loss, weight), self.packed(self.net.grads)
        finally:
            self.training_busy = False

    def step(self, cnp.ndarray rates=None):
        """Take the optimiser's step with the gradients as they are; rates: None, or the schedule's lr and momentum."""
        self.has_optimizer()
        self.enter()
        prepare(&self.stepper, &self.net, rates_of(rates))
        with nogil:
            clip(&self.stepper, &self.net)
            sweep_updates(&self.net, self.stepper.updates)
            stepped(&self.stepper, &self.net)
        self.training_busy = False
        self.clear_padding()
        self.forget("a step has changed the parameters since")

    def zero_grads(self):
        """Set the gradients to zero."""
        self.enter()
        memset(self.net.grads, 0, self.net.n_block * sizeof(real))
        self.training_busy = False

    def forget(self, str why):
        """A backward pass over the last forward pass would be wrong from now on; why is for its error message."""
        self.saved = SAVED_NOTHING
        self.lost = why

    cdef double finish(self) noexcept nogil:
        """The penalties, clipping and step with whole gradients; the penalties."""
        cdef double extra = penalties(&self.net, True) if self.stepper.penalised else 0
        clip(&self.stepper, &self.net)
        sweep_updates(&self.net, self.stepper.updates)
        return extra

    def train_step(self, x, y, int threads, w=None, cnp.ndarray rates=None):
        """Forward, loss, backward and step, the update fused into the weight gradient; the loss of the batch."""
        cdef cnp.ndarray rows = self.inputs(x)
        cdef Py_ssize_t batch = cnp.PyArray_DIM(rows, 0), correct = 0
        cdef cnp.ndarray t = self.targets(y, batch), v = None
        cdef double loss, weight = 0, extra = 0
        cdef bint single
        cdef Pass p
        self.has_optimizer()
        if batch == 0:
            raise ValueError("x: training needs at least one row, got an empty batch")
        if w is not None:
            v = self.weights(w, batch)
        self.enough_rows(batch)
        self.enter()
        try:
            self.reserve(&self.train, batch, True, threads)
            prepare(&self.stepper, &self.net, rates_of(rates))
            p = self.training_pass(batch)
            self.set_rows(&p, rows, t, v)
            p.forward = p.keep = p.backward = p.weights = True
            p.overwrite = self.stepper.whole
            single = self.single(v)
            self.begin(batch, True)
            if batch * self.net.work < GIL_WORK and not self.stepper.whole:
                loss = train_batch(&p, &self.stepper, single, threads, &weight, &correct)
            else:
                with nogil:
                    loss = train_batch(&p, &self.stepper, single, threads, &weight, &correct)
                    if self.stepper.whole:
                        extra = self.finish()
            stepped(&self.stepper, &self.net)
        finally:
            self.training_busy = False
        if not isfinite(loss):
            self.clear_padding()
        if self.saved != SAVED_NOTHING:
            self.forget("train_step has run since")
        if self.net.loss.mean:
            loss = loss / weight if weight > 0 else 0
        return loss + extra

    def check_batches(self, Py_ssize_t n, Py_ssize_t batch_size):
        """Raise ValueError if n rows cannot be cut into batches of this size."""
        self.enough_rows(smaller(n, batch_size))
        if self.net.n_segments > 1 and n % batch_size == 1:
            raise ValueError(f"batch_size: the last of the batches of {batch_size} would have one row of {n}, and "
                             "BatchNorm1d needs at least 2: choose another batch_size")

    def train_batches(self, cnp.ndarray x, cnp.ndarray y, cnp.ndarray w, cnp.ndarray order, Py_ssize_t start,
                      Py_ssize_t stop, Py_ssize_t batch_size, cnp.ndarray rates, cnp.ndarray out, int threads,
                      Py_ssize_t accumulate, cnp.ndarray totals):
        """train_step on batch after batch of rows start .. stop - 1, taken in `order` (None: as they lie).

        Returns the first row of the batch with a loss that is not finite, or -1. x, y and w (None: one each) as
        `inputs`, `targets` and `weights` give them, order int64 or None. rates: None, or float64 (steps, 2), the
        schedule's lr and momentum. out: None, or an array whose rows start .. stop - 1 get the outputs, in the order of
        the batches. The mean gradient of `accumulate` batches makes a step. totals, float64, is added to: the sum of
        the loss over the rows, of the rows' weights, of rows classified right, of rows.
        """
        cdef int64_t* turn = NULL if order is None else <int64_t*>cnp.PyArray_DATA(order)
        cdef double* total = <double*>cnp.PyArray_DATA(totals)
        cdef const double* rate = rates_of(rates)
        cdef Py_ssize_t at = start, correct = 0, bad = -1, group = 0, left = 0
        cdef Stepper* s = &self.stepper
        cdef bint whole = s.whole, single = self.single(w) and accumulate == 1, ready = False
        # row after row without a look back: nothing to be done between two steps
        cdef bint many = single and batch_size == 1 and rates is None and out is None and s.average == NULL
        cdef const real* all_x
        cdef const char* all_targets
        cdef const real* all_weights
        cdef real* all_out = NULL if out is None else data(out)
        cdef Py_ssize_t target_bytes, done
        cdef double loss, weight, group_weight = 0, extra
        cdef Pass p
        self.has_optimizer()
        self.enter()
        try:
            self.reserve(&self.train, smaller(batch_size, stop - start), True, threads)
            self.forget("fit has run since")
            s.whole = whole or accumulate > 1
            p = self.training_pass(0)
            self.set_rows(&p, x, y, w)
            p.gather = p.gather or turn != NULL
            p.forward = p.keep = p.backward = p.weights = True
            all_x, all_targets, all_weights, target_bytes = p.x, p.target, p.weight, p.target_bytes
            p.out_row = self.net.outputs
            self.train.training = True
            with nogil:
                while at < stop:
                    if left == 0:
                        left = group = smaller(accumulate, (stop - at + batch_size - 1) // batch_size)
                        if not ready:
                            prepare(s, &self.net, rate)
                    p.batch = smaller(batch_size, stop - at)
                    p.scale = 1.0 / group
                    p.overwrite = left == group
                    p.target, p.target_bytes, p.weight = all_targets, target_bytes, all_weights
                    if turn != NULL:
                        p.order = turn + at
                    else:
                        p.x = all_x + at * p.x_row
                        p.target = all_targets + at * target_bytes
                        if all_weights != NULL:
                            p.weight = all_weights + at
                    if all_out != NULL:
                        p.out = all_out + at * p.out_row
                    if many and ready:
                        done = train_rest(&p, s, stop - at, total, &correct)
                        self.rows_seen += done
                        if at + done < stop:
                            bad = at + done
                        break
                    self.train.row0 = self.rows_seen
                    self.rows_seen += p.batch
                    weight = extra = 0
                    loss = train_batch(&p, s, single, threads, &weight, &correct)
                    if not isfinite(loss):
                        bad = at
                        break
                    left -= 1
                    group_weight = (weight if p.overwrite else group_weight + weight)
                    if left == 0:
                        if s.whole:
                            extra = self.finish()
                        stepped(s, &self.net)
                        if rate != NULL:
                            rate += 2
                        ready = not prepared_again(s, rate)
                    total[0] += loss + extra * (group_weight if self.net.loss.mean else 1)
                    total[1] += weight
                    total[3] += p.batch
                    at += p.batch
        finally:
            s.whole = whole
            self.training_busy = False
        total[2] += correct
        return bad

    def predict(self, x, out, int threads):
        """Outputs (batch, out_features), in `out` if given, chunk by chunk. Does not disturb a pending backward."""
        cdef cnp.ndarray rows = self.inputs(x), result
        cdef Py_ssize_t batch = cnp.PyArray_DIM(rows, 0)
        cdef Pass p
        if out is None:
            result = empty_matrix(batch, self.net.outputs)
        else:
            result = as_output(out, batch, self.net.outputs)
            if overlap(result, rows):
                raise ValueError("out: shares memory with x")
        memset(&p, 0, sizeof(p))
        self.set_rows(&p, rows, None)
        p.batch = batch
        p.out, p.out_row = data(result), row_stride(result)
        self.infer_pass(&p, threads, NULL, NULL)
        return result

    def evaluate(self, x, y, w, int threads):
        """(sum of the loss over the rows, sum of their weights, rows classified right); w may be None: one each."""
        cdef cnp.ndarray rows = self.inputs(x)
        cdef Py_ssize_t batch = cnp.PyArray_DIM(rows, 0), correct = 0, blocks = batch // LOSS_BLOCK + 1
        cdef cnp.ndarray t = self.targets(y, batch), v = None if w is None else self.weights(w, batch)
        cdef double loss, weight = 0
        cdef Pass p
        if batch == 0:
            raise ValueError("x: expected at least one row to evaluate, got an empty batch")
        memset(&p, 0, sizeof(p))
        self.set_rows(&p, rows, t, v)
        p.batch = batch
        p.losses = <double*>malloc(blocks * (sizeof(double) + sizeof(Py_ssize_t)))
        if p.losses == NULL:
            raise MemoryError()
        p.correct = <Py_ssize_t*>(p.losses + blocks)
        try:
            loss = self.infer_pass(&p, threads, &weight, &correct)
        finally:
            free(p.losses)
        return loss, weight, correct

    def penalty(self, bint gradient=False):
        """The penalties on the weights, l1 sum |w| + l2 sum w**2; with gradient, theirs is added to the gradients."""
        return penalties(&self.net, gradient)

    cdef double infer_pass(self, Pass* p, int threads, double* weight, Py_ssize_t* correct) except? -1:
        """Run p.x forward, in chunks that stay in cache."""
        cdef Workspace own
        cdef bint alone = not self.infer_busy
        cdef Py_ssize_t bytes = 0
        cdef int b
        cdef double total = 0
        for b in range(self.net.n_buffers):
            bytes += self.net.buffers[b].row * sizeof(real)
        p.chunk = larger(CHUNK_BYTES // bytes // LOSS_BLOCK, 1) * LOSS_BLOCK
        if p.batch <= p.chunk or p.batch * self.net.work < THREAD_WORK:
            threads = 1
        p.chunk = smaller(p.chunk, larger(p.batch, 1))
        p.net = &self.net
        p.forward = True
        if alone:
            self.infer_busy = True
            p.ws = &self.infer
        else:                                   # another thread is predicting: work in memory of our own
            memset(&own, 0, sizeof(own))
            p.ws = &own
        try:
            self.reserve(p.ws, threads * p.chunk, False, threads)
            if p.batch * self.net.work < GIL_WORK:
                total = run_pass(p, threads, weight, correct)
            else:
                with nogil:
                    total = run_pass(p, threads, weight, correct)
        finally:
            if alone:
                self.infer_busy = False
            else:
                self.release(&own)
        return total

    # parameters -------------------------------------------------------------------------------------------------------

    cdef cnp.ndarray packed(self, const real* block):
        """The numbers of a block without its padding, in the order of the ops: weight (in, out), then bias."""
        cdef const Op* op
        cdef Py_ssize_t i, j
        cdef cnp.npy_intp n = self.net.n_parameters
        cdef int o
        cdef real* at
        cdef cnp.ndarray vector
        vector = cnp.PyArray_EMPTY(1, &n, REAL_TYPE, 0)
        at = data(vector)
        for o in range(self.net.n_ops):
            op = &self.net.ops[o]
            if op.has_weight and op.transposed:
                for i in range(op.n_in):
                    for j in range(op.n_out):
                        at[i * op.n_out + j] = block[op.weight + j * op.row + i]
            elif op.has_weight:
                copy_rows(weight_rows(op), op.n_out, block + op.weight, op.row, at, op.n_out)
            at += weight_rows(op) * op.n_out
            if op.has_bias:
                memcpy(at, block + op.bias, op.n_out * sizeof(real))
                at += op.n_out
        return vector

    cdef int unpack(self, object vector, str name, real* block) except -1:
        """Fill a block from what `packed` gives; its padding becomes zero."""
        cdef const Op* op
        cdef Py_ssize_t i, j
        cdef int o
        cdef cnp.ndarray v = as_vector(vector, self.net.n_parameters, name)
        cdef const real* at = data(v)
        memset(block, 0, self.net.n_block * sizeof(real))
        for o in range(self.net.n_ops):
            op = &self.net.ops[o]
            if op.has_weight and op.transposed:
                for i in range(op.n_in):
                    for j in range(op.n_out):
                        block[op.weight + j * op.row + i] = at[i * op.n_out + j]
            elif op.has_weight:
                copy_rows(weight_rows(op), op.n_out, at, op.n_out, block + op.weight, op.row)
            at += weight_rows(op) * op.n_out
            if op.has_bias:
                memcpy(block + op.bias, at, op.n_out * sizeof(real))
                at += op.n_out
        return 0

    @property
    def parameters(self):
        """All parameters as one vector, a copy."""
        return self.packed(self.net.params)

    def set_parameters(self, vector):
        """Set all parameters from one vector, and the padding to zero: NaN may have come there."""
        self.enter()
        try:
            self.unpack(vector, "parameters", self.net.params)
        finally:
            self.training_busy = False
        self.forget("the parameters have been changed since")

    def clear_padding(self):
        """Set the padding of the parameters to zero. Infinity or NaN in x, or in a gradient, times the zeros there is
        NaN, which a later forward pass would carry to numbers that are right."""
        cdef const Op* op
        cdef int i
        cdef Py_ssize_t width, rows, row, at
        for i in range(self.net.n_ops):
            op = &self.net.ops[i]
            width = op.n_in if op.transposed else op.n_out
            rows = weight_size(op) // op.row if op.has_weight else 0
            if width < op.row:
                for row in range(rows):
                    at = op.weight + row * op.row + width
                    memset(self.net.params + at, 0, (op.row - width) * sizeof(real))
            if op.has_bias:
                memset(self.net.params + op.bias + op.n_out, 0, (bias_size(op) - op.n_out) * sizeof(real))

    @property
    def gradients(self):
        """All gradients as one vector, a copy."""
        return self.packed(self.net.grads)

    @property
    def average(self):
        """The exponential moving average of the parameters as one vector, a copy; None without one."""
        if self.stepper.average == NULL or self.stepper.steps == 0:
            return None
        return self.packed(self.stepper.average)

    @property
    def steps(self):
        """Optimiser steps taken."""
        return self.stepper.steps

    def view(self, int op, str what):
        """An array over the memory of an op's "weight" (linear: (in, out), norms: (n,)), "bias" (out,), "grad_weight",
        "grad_bias", "running_mean" or "running_var" (n,).

        None for what the op does not have. The array keeps the program alive.
        """
        cdef const Op* o = &self.net.ops[op]
        cdef real* block = self.net.grads if what.startswith("grad_") else self.net.params
        cdef cnp.npy_intp shape[2]
        cdef cnp.npy_intp strides[2]
        cdef cnp.ndarray a
        cdef int dims = 1
        shape[0], strides[0] = o.n_out, sizeof(real)
        if what.startswith("running_"):
            if o.kind != OP_BATCH_NORM:
                return None
            block = self.net.running + o.running + (o.row if what == "running_var" else 0)
        elif what.endswith("weight"):
            if not o.has_weight:
                return None
            block += o.weight
            if o.kind == OP_LINEAR:
                dims = 2
                shape[0], shape[1] = o.n_in, o.n_out
                strides[0] = (1 if o.transposed else o.row) * sizeof(real)
                strides[1] = (o.row if o.transposed else 1) * sizeof(real)
        else:
            if not o.has_bias:
                return None
            block += o.bias
        a = cnp.PyArray_New(cnp.ndarray, dims, shape, REAL_TYPE, strides, block, 0,
                            cnp.NPY_ARRAY_ALIGNED | cnp.NPY_ARRAY_WRITEABLE, None)
        cnp.set_array_base(a, self)
        return a

    def tracked(self, int op):
        """Batches in the running statistics of an op."""
        return self.net.ops[op].tracked

    def set_tracked(self, int op, int64_t batches):
        self.net.ops[op].tracked = batches

    def snapshot(self, int states):
        """A copy of all that training changes, `states` blocks of optimiser state in use, for restore."""
        cdef Py_ssize_t blocks = 1 + states + (self.stepper.average != NULL)
        cdef cnp.npy_intp n = blocks * self.net.n_block + self.net.n_running
        cdef cnp.ndarray copy = cnp.PyArray_EMPTY(1, &n, REAL_TYPE, 0)
        cdef real* at = data(copy)
        memcpy(at, self.net.params, self.net.n_block * sizeof(real))
        memcpy(at + self.net.n_block, self.net.state, states * self.net.n_block * sizeof(real))
        at += (1 + states) * self.net.n_block
        if self.stepper.average != NULL:
            memcpy(at, self.stepper.average, self.net.n_block * sizeof(real))
            at += self.net.n_block
        if self.net.n_running:
            memcpy(at, self.net.running, self.net.n_running * sizeof(real))
        return copy, states, self.stepper.average != NULL, self.counters()

    def restore(self, saved):
        """Put back what snapshot returned."""
        cdef cnp.ndarray copy = saved[0]
        cdef int states = saved[1]
        cdef bint averaged = saved[2]       # the model may have got another optimiser since
        cdef const real* at = data(copy)
        self.enter()
        memcpy(self.net.params, at, self.net.n_block * sizeof(real))
        memcpy(self.net.state, at + self.net.n_block, states * self.net.n_block * sizeof(real))
        at += (1 + states) * self.net.n_block
        if averaged and self.stepper.average != NULL:
            memcpy(self.stepper.average, at, self.net.n_block * sizeof(real))
        at += averaged * self.net.n_block
        if self.net.n_running:
            memcpy(self.net.running, at, self.net.n_running * sizeof(real))
        self.set_counters(saved[3])
        self.training_busy = False
        self.forget("the parameters have been set back since")

    cdef object counters(self):
        """Steps, steps with momentum, rows seen, and batches in the running statistics of each batch norm."""
        counts = [self.stepper.steps, self.stepper.momentum_steps, self.rows_seen]
        counts += [self.net.ops[self.net.segments[i]].tracked for i in range(1, self.net.n_segments)]
        return np.array(counts, np.int64)

    cdef void set_counters(self, cnp.ndarray counts):
        cdef const int64_t* n = <const int64_t*>cnp.PyArray_DATA(counts)
        cdef int i
        self.stepper.steps, self.stepper.momentum_steps, self.rows_seen = n[0], n[1], n[2]
        for i in range(1, self.net.n_segments):
            self.net.ops[self.net.segments[i]].tracked = n[2 + i]

    def state(self, int states):
        """What training depends on beside the parameters and the running statistics, as a dict of arrays: "state.0",
        ... the blocks of the optimiser, "ema", packed as the parameters are, and "counters"."""
        cdef int i
        arrays = {}
        for i in range(states):
            arrays[f"state.{i}"] = self.packed(self.net.state + i * self.net.n_block)
        if self.average is not None:
            arrays["ema"] = self.average
        arrays["counters"] = self.counters()
        return arrays

    def set_state(self, arrays, int states):
        """Put back what `state` returned; ValueError, and nothing changed, if it is another network's."""
        cdef int i
        names = [f"state.{block}" for block in range(states)] + ["counters"]
        ema = [] if self.stepper.average == NULL or "ema" not in arrays else ["ema"]
        if missing := [name for name in names if name not in arrays]:
            raise ValueError(f"training state: missing {', '.join(missing)}")
        if unknown := [name for name in arrays if name not in names + ema]:
            raise ValueError(f"training state: unknown {', '.join(unknown)}; expected {', '.join(names)}")
        vectors = [as_vector(arrays[name], self.net.n_parameters, name) for name in names[:states] + ema]
        counts = np.ascontiguousarray(arrays["counters"], np.int64)
        expected = 2 + self.net.n_segments
        if counts.shape != (expected,) or counts.min() < 0:
            raise ValueError(f"counters: expected {expected} counts, got {counts}")
        self.enter()
        try:
            for i in range(states):
                self.unpack(vectors[i], names[i], self.net.state + i * self.net.n_block)
            if ema:
                self.unpack(vectors[states], "ema", self.stepper.average)
            self.set_counters(counts)
        finally:
            self.training_busy = False
        self.forget("the training state has been set since")

    def set_seed(self, uint64_t seed):
        """Draw the random numbers of dropout from another seed."""
        cdef int i
        for i in range(self.net.n_ops):
            self.net.ops[i].key = random_bits(seed, i)

    def reset(self):
        """Clear the optimiser's state, for another optimiser."""
        memset(self.net.state, 0, STATES * self.net.n_block * sizeof(real))
        self.stepper.steps = self.stepper.momentum_steps = 0

    @property
    def n_parameters(self):
        """How many numbers the parameters are."""
        return self.net.n_parameters

    @property
    def nbytes(self):
        """Bytes of the parameter block and the workspaces."""
        cdef Py_ssize_t total = 2 * self.net.n_block * sizeof(real)
        cdef Buffer* buffer
        cdef int b
        for b in range(self.net.n_buffers):
            buffer = &self.net.buffers[b]
            total += self.train.capacity * buffer.row * (3 if buffer.kept else 2) * sizeof(real)
            total += self.infer.capacity * buffer.row * sizeof(real)
        return total


def permutation(Py_ssize_t n, uint64_t seed, uint64_t epoch, cnp.ndarray out=None):
    """A random order of 0 .. n - 1 that depends on seed and epoch alone, int64."""
    cdef cnp.ndarray order = np.empty(n, dtype=np.int64) if out is None else out
    cdef int64_t* p = <int64_t*>cnp.PyArray_DATA(order)
    with nogil:
        shuffle(p, n, seed, epoch)
    return order
