# The class that Python sees: a Network, its workspaces, and calls that check their arguments and start the walks.

# Limits that Python checks before it comes here.
LIMITS = {"sources": MOST_SOURCES, "threads": MOST_THREADS, "axes": MOST_AXES}

cdef enum Saved:
    SAVED_NOTHING
    SAVED_OUTPUTS           # a forward pass
    SAVED_LOSS              # a forward pass and the gradient of its loss

cdef enum:
    GIL_WORK = 20000        # multiply-adds below which letting go of the GIL (35 ns) costs more than it frees


cdef const double* rates_of(cnp.ndarray rates, Stepper* s, Py_ssize_t steps) except? NULL:
    """A schedule's rates of each row of the optimiser's table, and momentum, for so many steps, or with three axes the
    table of each step; NULL for None."""
    s.rated = s.groups + 1
    if rates is None:
        return NULL
    if cnp.PyArray_NDIM(rates) == 3:
        s.rated = s.groups * HYPER_COLUMNS
    if (cnp.PyArray_TYPE(rates) != cnp.NPY_FLOAT64 or not cnp.PyArray_IS_C_CONTIGUOUS(rates)
            or cnp.PyArray_SIZE(rates) != steps * s.rated):
        raise ValueError(f"rates: expected {steps} steps of {s.groups} rates and a momentum, or of {s.groups} rows of "
                         f"a table, in float64, got shape {np.shape(rates)}")
    return <const double*>cnp.PyArray_DATA(rates)


cdef class Program:
    """A compiled network: parameters, gradients, optimiser state and the walks over them. Private to the library.

    Parameters
    ----------
    shapes : list of tuple of int
        Of each buffer, without the batch; the first is the input's, the last the output's.
    ops : list of dict
        See `compile_network`.
    loss : dict or None
        What `Loss.spec` returns.
    where : tuple of str
        What takes the inputs and what gives the outputs, for error messages.
    seed : int
        Of dropout.
    of : Program, optional
        Whose parameters and statistics these are as well: no memory of its own then, and no optimiser.
    places : list of int
        With it: for each op the other's number, or -1 for an op without parameters.
    """
    cdef Network net
    cdef Criterion loss
    cdef Arena block            # parameters, gradients, optimiser state
    cdef Arena running
    cdef Arena running_exact
    cdef Arena more             # the optimiser's state, if it is more than STATES blocks
    cdef int states             # blocks of it that there is room for
    cdef Workspace train
    cdef Workspace infer
    cdef Stepper stepper
    cdef object table           # the optimiser's, kept alive
    cdef tuple made_of          # the arguments, for clone
    cdef Program of             # whose memory it is, if it is not its own
    cdef Py_ssize_t batch       # rows of the last forward pass
    cdef tuple leading          # axes of its x but the last, if it had others than rows
    cdef object kept            # ... and that x, if it was sparse
    cdef Saved saved
    cdef str lost               # why nothing is saved
    cdef bint handed_out        # a writeable view of parameters has been returned to Python
    cdef uint64_t seen          # their fingerprint when the forward pass was saved, if one is
    cdef bint training_busy
    cdef bint infer_busy
    cdef str takes
    cdef str gives
    cdef int64_t rows_seen      # rows that training has run forward: dropout's masks follow from it
    cdef readonly Py_ssize_t modes          # changes of what is trained, and how
    cdef readonly Py_ssize_t passes         # calls of forward
    cdef readonly Py_ssize_t allocations    # of parameter blocks and workspaces, so far

    def __cinit__(self, list shapes, list ops, loss, where, uint64_t seed=0, Program of=None, list places=None):
        cdef Network* net = &self.net
        compile_network(net, shapes, ops, seed)
        self.takes, self.gives = where
        self.made_of = (shapes, ops, loss, where, seed)
        self.lost = "there was no forward pass"
        if loss is not None:
            self.loss = Criterion(loss, net.outputs)
            net.loss = self.loss.spec
        if of is not None:
            share_memory(net, &of.net, places)
            self.of = of
            self.handed_out = True      # the other may change the parameters: see fingerprint
            return
        net.params = allocate(&self.block, times(2 + STATES, net.n_block))
        net.grads = net.params + net.n_block
        net.state = net.grads + net.n_block
        self.states = STATES
        if net.n_running:
            net.running = allocate(&self.running, net.n_running)
            net.running_exact = <double*>allocate(&self.running_exact,
                                                  net.n_running * sizeof(double) // sizeof(real))
            clear_running(net)
        self.allocations += 1

    def __dealloc__(self):
        release_workspace(&self.train)
        release_workspace(&self.infer)
        release(&self.block)
        release(&self.running)
        release(&self.running_exact)
        release(&self.more)
        release(&self.stepper.average)
        free(self.stepper.updates)
        clear_network(&self.net)

    cdef int reserve(self, Workspace* ws, Py_ssize_t batch, bint training, int threads, object rows=None,
                     Py_ssize_t entries=0) except -1:
        """Make room for a batch of rows, as `rows` gave them; entries: that it has at most, if they are sparse."""
        cdef bint sparse = rows is not None and not cnp.PyArray_CheckExact(rows)
        cdef Py_ssize_t made = reserve(&self.net, ws, batch, training, threads, not sparse)
        if sparse:
            made += reserve_entries(&self.net, ws, training, entries)
        if made and training and self.saved != SAVED_NOTHING:
            self.forget("a larger batch has taken its memory since")
        self.allocations += made
        return 0

    cdef int enter(self) except -1:
        """Claim the training workspace; two threads in one model would corrupt it."""
        if self.training_busy:
            raise RuntimeError("another thread is training this model, or running it forward: use predict, which may "
                               "run at the same time, or one model a thread")
        self.training_busy = True
        return 0

    cdef Pass training_pass(self, Py_ssize_t batch, int threads) noexcept nogil:
        """A Pass over the training workspace, all else zero."""
        cdef Pass p
        memset(&p, 0, sizeof(p))
        p.net = &self.net
        p.ws = &self.train
        p.batch.rows = batch
        p.batch.work = self.net.work
        p.batch.losses = self.train.losses
        p.batch.correct = self.train.correct
        p.wants.threads = threads
        p.wants.scale = 1
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
        if training and not self.net.all_off:
            self.rows_seen += batch

    # arguments --------------------------------------------------------------------------------------------------------

    def inputs(self, x, name="x"):
        """x as the walks can read it: shape (batch, in_features), this dtype; x itself where that holds already. Each
        (in_features,) of an array with other leading axes is a row."""
        return as_rows(x, self.net.buffers[0].width, name, self.takes)

    def joined(self, x, name="x"):
        """Several inputs, a list of matrices whose columns add up to in_features, side by side; all else as it is."""
        return _arrays.side_by_side(x, self.net.buffers[0].width, name, DTYPE)

    def rows(self, x, name="x"):
        """`inputs`, or SparseRows of x if it is sparse."""
        return self.read_rows(self.read(x, name), name)

    cdef object read(self, object x, str name):
        """x as an array of real numbers, or as it is if it is sparse."""
        if cnp.PyArray_CheckExact(x) or _sparse.is_sparse(x):
            return x
        return _arrays.real_array(self.joined(x, name), name)

    cdef object read_rows(self, object x, str name):
        """The same of what `read` gave."""
        if cnp.PyArray_CheckExact(x):
            return as_rows(x, self.net.buffers[0].width, name, self.takes)
        if not self.net.sparse:
            raise TypeError(f"{name}: expected a dense array{self.takes}, got {type(x).__name__}: only Linear reads "
                            "sparse rows; pass its .toarray(), or begin the model with a Linear")
        return _sparse.sparse_rows(x, self.net.buffers[0].width, name, self.takes, DTYPE)

    def flattened(self, x, y, w=None, name_x="x", name_y="targets", name_w="sample_weight"):
        """x with the axes (batch, in_features), and y and w with as many: their leading axes are those of x."""
        x = self.read(x, name_x)
        if is_matrix(x):
            return x, y, w
        leading = leading_of(x)
        return self.inputs(x, name_x), _arrays.flat(y, leading, name_y), _arrays.flat(w, leading, name_w)

    def targets(self, y, Py_ssize_t batch, name="targets"):
        """y as the loss can read it: class indices (batch,) or numbers (batch, out_features)."""
        if self.loss is None:
            raise RuntimeError("targets were given, but the model has no loss: make a loss its last "
                               "layer, or set model.loss")
        return self.loss.targets(y, batch, name, self.gives)

    def weights(self, w, Py_ssize_t batch, name="sample_weight"):
        """w as the losses can read it: (batch,), not negative, finite."""
        return as_weights(w, batch, name)

    cdef void set_rows(self, Pass* p, object x, cnp.ndarray t, cnp.ndarray w=None) noexcept:
        """The arrays of a pass, t and w or None: as `rows`, `targets` and `weights` give them."""
        if cnp.PyArray_CheckExact(x):
            p.batch.x = data(x)
            p.batch.x_row = row_stride(x)
            p.batch.work = self.net.work
            p.wants.gather = self.net.pad_input
        else:
            set_sparse_rows(&p.batch, &self.net, x.start, x.column, x.value)
        if t is not None:
            self.loss.bind(&p.batch, t, w)

    cdef int some_count(self, Pass* p) except -1:
        """ValueError if no row of a batch counts: its loss is not defined."""
        if loss_weight(&p.batch.loss, p.batch.rows, p.batch.target, p.batch.target_bytes, p.batch.weight) == 0:
            raise ValueError("x: no row counts: all weights are 0, or all targets are ignored")
        return 0

    cdef double reduced(self, double total, double weight):
        """The loss of a batch from its sums."""
        return mean_loss(&self.net.loss, total, weight) + penalties(&self.net, False)

    # what Python calls ------------------------------------------------------------------------------------------------

    cdef int make_room(self, int states) except -1:
        """Room for blocks of the optimiser's state: beside the parameters, or, if it is more than STATES, by itself."""
        cdef Network* net = &self.net
        states = <int>larger(states, STATES)
        if states != self.states:
            net.state, self.states = net.grads + net.n_block, STATES
            release(&self.more)
        if states > STATES and self.more.at == NULL:
            net.state = allocate(&self.more, times(states, net.n_block))
            self.states = states
            self.allocations += 1
        return 0

    def set_optimizer(self, cnp.ndarray table, groups, int states):
        """Take an optimiser: its table of hyper-parameters, which is read at each step, for each op a pair of rows
        of it, for weight and bias, and how many blocks of state it has. Its state is empty then."""
        cdef Stepper* s = &self.stepper
        cdef int i
        if self.of is not None:
            raise RuntimeError("a part of a model has no optimizer of its own: train the model that it is a part of")
        self.enter()
        try:
            self.make_room(states)
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
            release(&s.average)
            if not isnan(s.table[HYPER_EMA_DECAY]):
                allocate(&s.average, self.net.n_block)
            self.reset()
        finally:
            self.training_busy = False

    cdef int has_optimizer(self) except -1:
        if self.stepper.table == NULL:
            raise RuntimeError("the model has no optimizer: pass one to Sequential, or set model.optimizer")
        if isnan(self.stepper.table[HYPER_OPTIMIZER]):
            raise RuntimeError("the optimizer needs the loss of the whole data at parameters of its own choice, not a "
                               "gradient alone: use fit or train_step, or another optimizer")
        return 0

    cdef bint single(self, const Pass* p, cnp.ndarray w):
        """Whether the batch-1 fast path is allowed (see online.pxi)."""
        return (self.net.single and not self.net.frozen and self.stepper.groups == 1 and not self.stepper.unfused
                and p.batch.csr.start == NULL and w is None and not self.net.loss.ignore_nan
                and not (self.net.loss.labels and self.net.loss.column != NULL))

    def forward(self, x, y, int threads, bint training=True):
        """Outputs (batch, out_features); with targets the loss instead, and its gradient is kept for backward.

        x is copied: changing it afterwards does not change what backward computes.
        """
        cdef cnp.ndarray t = None, out = None
        cdef Py_ssize_t batch, correct = 0
        cdef double loss, weight = 0
        cdef Pass p
        x = self.read(x, "x")
        rows = self.read_rows(x, "x")
        batch = count_rows(rows)
        kept = None if cnp.PyArray_CheckExact(rows) else rows.copy()
        if y is not None and not is_matrix(x):
            y = _arrays.flat(y, leading_of(x), "targets")
        if y is not None:
            t = self.targets(y, batch)
            if batch == 0:
                raise ValueError("the loss of an empty batch is not defined")
        if training:
            self.enough_rows(batch)
        self.enter()
        try:
            self.reserve(&self.train, batch, True, threads, rows, most_entries(rows, None, 0, batch, batch))
            p = self.training_pass(batch, threads)
            self.set_rows(&p, rows if kept is None else kept, t)
            if t is not None:
                self.some_count(&p)
            p.wants.gather = p.wants.forward = p.wants.keep = True
            if t is None:
                out = empty_matrix(batch, self.net.outputs)
                p.batch.out, p.batch.out_row = data(out), self.net.outputs
            self.saved = SAVED_NOTHING
            self.begin(batch, training)
            with nogil:
                loss = run_pass(&p, &weight, &correct)
            self.batch, self.kept = batch, kept
            self.passes += 1
            self.saved = SAVED_OUTPUTS if t is None else SAVED_LOSS
            self.leading = None if is_matrix(x) else leading_of(x)
            if self.handed_out:
                self.seen = fingerprint(&self.net)
            return led(out, x) if t is None else self.reduced(loss, weight)
        finally:
            self.training_busy = False

    def backward(self, grad_output, int threads, bint weights=True):
        """Add the gradients of the last forward pass to the parameters' gradients, unless weights is False; the
        gradient of x (batch, in), None if x was sparse. The gradient of the loss includes that of the penalties."""
        cdef int last = self.net.n_buffers - 1
        cdef Py_ssize_t width = self.net.buffers[0].width, correct = 0
        cdef cnp.ndarray g = None, dx = None
        cdef double weight = 0
        cdef Pass p
        if self.training_busy:
            self.enter()                # which says so
        if self.saved != SAVED_NOTHING and self.handed_out and self.seen != fingerprint(&self.net):
            self.forget("the parameters have been changed since")
        if self.saved == SAVED_NOTHING:
            raise RuntimeError(f"backward needs a forward pass, but {self.lost}")
        if grad_output is None and self.saved != SAVED_LOSS:
            raise RuntimeError("backward needs grad_output, or a forward pass with targets that no backward has used")
        if self.kept is not None and not weights:
            raise ValueError("the gradient of sparse rows is not computed: pass x.toarray() to forward")
        if grad_output is not None:
            if self.leading is None:
                g = as_matrix(grad_output, self.net.outputs, "grad_output", self.gives)
            else:
                g = as_rows(grad_output, self.net.outputs, "grad_output", self.gives)
            if cnp.PyArray_DIM(g, 0) != self.batch:
                raise ValueError(f"grad_output: expected {self.batch} rows, as the last forward pass had, got "
                                 f"{cnp.PyArray_DIM(g, 0)}")
        self.enter()
        try:
            threads = <int>smaller(threads, self.train.threads)     # a larger workspace would not hold the forward pass
            if self.kept is None:
                dx = empty_matrix(self.batch, width)
            if g is not None:
                copy_rows(self.batch, self.net.outputs, data(g), row_stride(g), self.train.grad[last],
                          self.net.buffers[last].row)
            self.saved = SAVED_OUTPUTS
            p = self.training_pass(self.batch, threads)
            if self.kept is not None:
                self.set_rows(&p, self.kept, None)
            p.wants.gather = p.wants.backward = True
            p.wants.input_grad = dx is not None
            p.wants.weights = weights
            with nogil:
                run_pass(&p, &weight, &correct)
            if dx is not None:
                copy_rows(self.batch, width, self.train.grad[0], self.net.buffers[0].row, data(dx), width)
            if g is None and weights:
                penalties(&self.net, True)
            return dx if self.leading is None or dx is None else dx.reshape(self.leading + (width,))
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
        x, y, _ = self.flattened(x, y)
        rows = self.read_rows(x, "x")
        cdef Py_ssize_t batch = count_rows(rows), correct = 0
        cdef cnp.ndarray t = self.targets(y, batch)
        cdef double loss, weight = 0
        cdef Pass p
        if batch == 0:
            raise ValueError("the loss of an empty batch is not defined")
        if training:
            self.enough_rows(batch)
        self.enter()
        try:
            self.reserve(&self.train, batch, True, threads, rows, most_entries(rows, None, 0, batch, batch))
            p = self.training_pass(batch, threads)
            self.set_rows(&p, rows, t)
            self.some_count(&p)
            p.wants.forward = p.wants.keep = p.wants.backward = p.wants.weights = p.wants.overwrite = True
            self.begin(batch, training)
            with nogil:
                loss = run_pass(&p, &weight, &correct)
                penalties(&self.net, True)
            if self.saved != SAVED_NOTHING:
                self.forget("loss_and_grad has run since")
            return self.reduced(loss, weight), packed(&self.net, self.net.grads)
        finally:
            self.training_busy = False

    def step(self, cnp.ndarray rates=None):
        """Take the optimiser's step with the gradients as they are; rates: None, or as `train_batches` has them."""
        self.has_optimizer()
        cdef const double* rate = rates_of(rates, &self.stepper, 1)
        self.enter()
        prepare(&self.stepper, &self.net, rate)
        with nogil:
            clip(&self.stepper, &self.net)
            sweep_updates(&self.net, self.stepper.updates)
            stepped(&self.stepper, &self.net)
        self.training_busy = False
        clear_paddings(&self.net)
        self.forget("a step has changed the parameters since")

    def zero_grads(self):
        """Set the gradients to zero."""
        self.enter()
        clear_blocks(&self.net, self.net.grads)
        self.training_busy = False

    @property
    def pending(self):
        """Whether the last forward pass can be used by backward."""
        return self.saved != SAVED_NOTHING

    @property
    def fingerprint(self):
        """A number that is another one where a parameter is."""
        return fingerprint(&self.net)

    def forget(self, str why):
        """A backward pass over the last forward pass would be wrong from now on; why is for its error message."""
        self.saved = SAVED_NOTHING
        self.lost = why

    def train_step(self, x, y, int threads, w=None, cnp.ndarray rates=None):
        """Forward, loss, backward and step, the update fused into the weight gradient; the loss of the batch."""
        if not cnp.PyArray_CheckExact(x) or cnp.PyArray_NDIM(x) != 2:
            x, y, w = self.flattened(x, y, w)
        rows = self.read_rows(x, "x")
        cdef Py_ssize_t batch = count_rows(rows), correct = 0
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
            self.reserve(&self.train, batch, True, threads, rows, most_entries(rows, None, 0, batch, batch))
            prepare(&self.stepper, &self.net, rates_of(rates, &self.stepper, 1))
            self.stepper.unfused = needs_gradients(&self.stepper)
            p = self.training_pass(batch, threads)
            self.set_rows(&p, rows, t, v)
            self.some_count(&p)
            p.wants.forward = p.wants.keep = p.wants.backward = p.wants.weights = True
            p.wants.overwrite = self.stepper.unfused
            single = self.single(&p, v)
            self.begin(batch, True)
            if pass_work(&p) < GIL_WORK and not self.stepper.unfused:
                loss = train_batch(&p, &self.stepper, single, &weight, &correct)
            else:
                with nogil:
                    loss = train_batch(&p, &self.stepper, single, &weight, &correct)
                    if self.stepper.unfused:
                        extra = finish(&self.stepper, &self.net)
            stepped(&self.stepper, &self.net)
        finally:
            self.training_busy = False
        if not isfinite(loss):
            clear_paddings(&self.net)
        if self.saved != SAVED_NOTHING:
            self.forget("train_step has run since")
        return mean_loss(&self.net.loss, loss, weight) + extra

    # the whole data, for optimisers that evaluate the loss as often as they like -------------------------------------

    def weight_of(self, cnp.ndarray y, cnp.ndarray w):
        """The sum of the rows' weights that a mean is divided by; y and w (None: one each) as `train_batches` has
        them."""
        cdef Batch b
        self.loss.bind(&b, y, w)
        return loss_weight(&b.loss, cnp.PyArray_DIM(y, 0), b.target, b.target_bytes, b.weight)

    def sweep(self, x, cnp.ndarray y, cnp.ndarray w, Py_ssize_t start, Py_ssize_t stop, double whole,
              cnp.ndarray out, int threads, cnp.ndarray totals):
        """Forward and backward over rows start .. stop - 1 in training mode: the gradient of their part of the loss
        takes the place of the gradients, or joins them if start > 0. whole: `weight_of` all rows. The other arguments
        are those of `train_batches`; without a step, the penalties, and new random numbers."""
        cdef bint dense = cnp.PyArray_CheckExact(x)
        cdef Py_ssize_t correct = 0
        cdef double loss, weight = 0
        cdef double* total = <double*>cnp.PyArray_DATA(totals)
        cdef Pass p
        self.enter()
        try:
            rows = x if dense else x[start:stop]
            self.reserve(&self.train, stop - start, True, threads, rows,
                         most_entries(rows, None, 0, stop - start, stop - start))
            if self.saved != SAVED_NOTHING:
                self.forget("training has gone on since")
            p = self.training_pass(stop - start, threads)
            self.set_rows(&p, rows, y, w)
            if dense:
                p.batch.x += start * p.batch.x_row
            p.batch.target += start * p.batch.target_bytes
            if w is not None:
                p.batch.weight += start
            if out is not None:
                p.batch.out, p.batch.out_row = data(out) + start * self.net.outputs, self.net.outputs
            p.wants.forward = p.wants.keep = p.wants.backward = p.wants.weights = True
            p.wants.overwrite = start == 0
            if self.net.loss.mean:
                p.wants.scale = loss_weight(&p.batch.loss, stop - start, p.batch.target, p.batch.target_bytes,
                                            p.batch.weight) / whole if whole > 0 else 0
            self.train.training, self.train.row0 = True, self.rows_seen
            with nogil:
                loss = run_pass(&p, &weight, &correct)
        finally:
            self.training_busy = False
        total[0] += loss
        total[1] += weight
        total[2] += correct
        total[3] += stop - start

    def decay(self):
        """The optimiser's weight decay as a term of the loss, weight_decay / 2 w**2 summed over what is trained; its
        gradient is added to the gradients."""
        cdef const Network* net = &self.net
        cdef const Op* op
        cdef double total = 0
        cdef int i
        self.enter()
        for i in range(net.n_ops):
            op = &net.ops[i]
            if op.has_weight and op.trains_weight:
                total += half_squares(weight_size(op), net.params + op.weight, net.grads + op.weight,
                                      self.stepper.table[op.weight_group * HYPER_COLUMNS + HYPER_WEIGHT_DECAY])
            if op.has_bias and op.trains_bias:
                total += half_squares(bias_size(op), net.params + op.bias, net.grads + op.bias,
                                      self.stepper.table[op.bias_group * HYPER_COLUMNS + HYPER_WEIGHT_DECAY])
        self.training_busy = False
        return total

    def statistics(self):
        """A copy of the running statistics, for `set_statistics`; None without any."""
        if self.net.n_running == 0:
            return None
        cdef cnp.npy_intp n = self.net.n_running
        cdef cnp.ndarray copy = cnp.PyArray_EMPTY(1, &n, REAL_TYPE, 0)
        memcpy(data(copy), self.net.running, n * sizeof(real))
        return copy, self.exact_statistics(), self.counters()[3:]

    def set_statistics(self, saved):
        """Put them back."""
        counts = self.counters()
        counts[3:] = saved[2]
        memcpy(self.net.running, data(saved[0]), self.net.n_running * sizeof(real))
        self.set_exact_statistics(saved[1])
        self.set_counters(counts)

    @property
    def mean(self):
        """Whether the loss is a mean over the rows, not a sum."""
        return self.net.loss.mean

    @property
    def all_off(self):
        """Whether all ops that differ between the modes are in evaluation mode."""
        return self.net.all_off

    @property
    def separable(self):
        """Whether the rows do not depend on each other, so that a sweep may be cut anywhere."""
        return self.net.n_segments == 1

    def in_lanes(self, Py_ssize_t rows):
        """Whether a training step puts so many rows into the lanes of vectors, whose sums are rounded otherwise than
        `backward`'s."""
        return samples_train(&self.net, rows) and not self.net.frozen

    @property
    def repeatable(self):
        """Whether training mode gives what evaluation mode does: no op drops, or takes the statistics of the batch."""
        cdef const Op* op
        cdef int i
        for i in range(self.net.n_ops):
            op = &self.net.ops[i]
            if op.training and (op.does.random or op.does.batch != NULL):
                return False
        return True

    def check_batches(self, Py_ssize_t n, Py_ssize_t batch_size):
        """Raise ValueError if n rows cannot be cut into batches of this size."""
        self.enough_rows(smaller(n, batch_size))
        if self.net.n_segments > 1 and n % batch_size == 1:
            raise ValueError(f"batch_size: the last of the batches of {batch_size} would have one row of {n}, and "
                             "BatchNorm1d needs at least 2: choose another batch_size")

    def train_batches(self, x, cnp.ndarray y, cnp.ndarray w, cnp.ndarray order, Py_ssize_t start,
                      Py_ssize_t stop, Py_ssize_t batch_size, cnp.ndarray rates, cnp.ndarray out, int threads,
                      Py_ssize_t accumulate, cnp.ndarray totals):
        """train_step on batch after batch of rows start .. stop - 1, taken in `order` (None: as they lie).

        Returns the first row of the batch with a loss that is not finite, or -1. x, y and w (None: one each) as
        `rows`, `targets` and `weights` give them, order int64 or None. rates: None, or float64 (steps, rows
        of the optimiser's table + 1), the schedule's lr of each row, and momentum, or the whole table of each step.
        out: None, or an array whose rows start .. stop - 1 get the outputs, in the order of the batches. The mean
        gradient of `accumulate` batches makes a step. totals, float64, is added to: the sum of the loss over the rows,
        of the rows' weights, of rows classified right, of rows; and if it has five, of the rows' weights times
        `decayed`.
        """
        cdef Stepper* s = &self.stepper
        cdef Py_ssize_t batches = (stop - start + batch_size - 1) // batch_size
        cdef Run r
        self.has_optimizer()
        r.rates, r.rates_step = rates_of(rates, s, (batches + accumulate - 1) // accumulate), s.rated
        self.enter()
        try:
            self.reserve(&self.train, smaller(batch_size, stop - start), True, threads, x,
                         most_entries(x, order, start, stop, batch_size))
            self.forget("fit has run since")
            s.unfused = accumulate > 1 or needs_gradients(s)
            r.rows = self.training_pass(0, threads)
            self.set_rows(&r.rows, x, y, w)
            r.single = self.single(&r.rows, w)
            r.rows.wants.forward = r.rows.wants.keep = r.rows.wants.backward = r.rows.wants.weights = True
            r.rows.batch.order = NULL if order is None else <int64_t*>cnp.PyArray_DATA(order)
            if out is not None:
                r.rows.batch.out, r.rows.batch.out_row = data(out), self.net.outputs
            r.stepper, r.rows_seen, r.total = s, &self.rows_seen, <double*>cnp.PyArray_DATA(totals)
            r.batch_size, r.accumulate, r.at, r.stop, r.n = batch_size, accumulate, start, stop, stop
            r.deadline, r.decayed = 0, cnp.PyArray_SIZE(totals) > 4
            with nogil:
                train_rows(&r)
        finally:
            self.training_busy = False
        return r.bad

    def predict(self, x, out, int threads):
        """Outputs (batch, out_features), in `out` if given, chunk by chunk. Does not disturb a pending backward."""
        cdef cnp.ndarray result
        cdef Py_ssize_t batch
        cdef Pass p
        x = self.read(x, "x")
        rows = self.read_rows(x, "x")
        batch = count_rows(rows)
        if out is None:
            result = empty_matrix(batch, self.net.outputs)
        else:
            if is_matrix(x):
                result = as_output(out, batch, self.net.outputs)
            else:
                result = as_out(out, leading_of(x) + (self.net.outputs,), "out").reshape(batch, self.net.outputs)
            if overlap(result, memory_of(rows)):
                raise ValueError("out: shares memory with x")
        memset(&p, 0, sizeof(p))
        self.set_rows(&p, rows, None)
        p.batch.rows = batch
        p.batch.out, p.batch.out_row = data(result), row_stride(result)
        self.infer_pass(&p, rows, threads, NULL, NULL)
        return led(result, x) if out is None else out

    def evaluate(self, x, y, w, int threads):
        """(sum of the loss over the rows, sum of their weights, rows classified right); w may be None: one each."""
        x, y, w = self.flattened(x, y, w)
        rows = self.read_rows(x, "x")
        cdef Py_ssize_t batch = count_rows(rows), correct = 0, blocks = batch // LOSS_BLOCK + 1
        cdef cnp.ndarray t = self.targets(y, batch), v = None if w is None else self.weights(w, batch)
        cdef double loss, weight = 0
        cdef Pass p
        if batch == 0:
            raise ValueError("x: expected at least one row to evaluate, got an empty batch")
        memset(&p, 0, sizeof(p))
        self.set_rows(&p, rows, t, v)
        p.batch.rows = batch
        p.batch.losses = <double*>allocate_plain(blocks * (sizeof(double) + sizeof(Py_ssize_t)))
        p.batch.correct = <Py_ssize_t*>(p.batch.losses + blocks)
        try:
            loss = self.infer_pass(&p, rows, threads, &weight, &correct)
        finally:
            free(p.batch.losses)
        return loss, weight, correct

    def penalty(self, bint gradient=False):
        """The penalties on the weights, l1 sum |w| + l2 sum w**2; with gradient, theirs is added to the gradients."""
        return penalties(&self.net, gradient)

    cdef double infer_pass(self, Pass* p, object rows, int threads, double* weight, Py_ssize_t* correct) except? -1:
        """Run the rows that p is set to forward, in chunks that stay in cache."""
        cdef Workspace own
        cdef bint alone = not self.infer_busy
        cdef double total = 0
        p.net = &self.net
        p.phase.chunk = chunk_rows(p.net, p.batch.csr.start != NULL)
        if p.batch.rows <= p.phase.chunk or pass_work(p) < THREAD_WORK:
            threads = 1
        p.phase.chunk = smaller(p.phase.chunk, larger(p.batch.rows, 1))
        p.wants.forward = True
        if alone:
            self.infer_busy = True
            p.ws = &self.infer
        else:                                   # another thread is predicting: work in memory of our own
            memset(&own, 0, sizeof(own))
            p.ws = &own
        try:
            p.wants.threads = threads
            self.reserve(p.ws, threads * p.phase.chunk, False, threads, rows)
            if pass_work(p) < GIL_WORK:
                total = run_pass(p, weight, correct)
            else:
                with nogil:
                    total = run_pass(p, weight, correct)
        finally:
            if alone:
                self.infer_busy = False
            else:
                release_workspace(&own)
        return total

    # parameters -------------------------------------------------------------------------------------------------------

    @property
    def parameters(self):
        """All parameters as one vector, a copy."""
        return packed(&self.net, self.net.params)

    def set_parameters(self, vector):
        """Set all parameters from one vector, and the padding to zero: NaN may have come there."""
        self.enter()
        try:
            unpack(&self.net, vector, "parameters", self.net.params)
        finally:
            self.training_busy = False
        self.forget("the parameters have been changed since")
        if self.of is not None:
            self.of.forget("the parameters of a part have been changed since")

    def clear_padding(self):
        """Set the padding of the parameters to zero."""
        clear_paddings(&self.net)

    @property
    def gradients(self):
        """All gradients as one vector, a copy."""
        return packed(&self.net, self.net.grads)

    def set_gradients(self, vector):
        """Set all gradients from one vector; those of what is not trained become zero."""
        self.enter()
        try:
            unpack(&self.net, vector, "gradients", self.net.grads)
            clear_frozen(&self.net, self.net.grads)
        finally:
            self.training_busy = False

    def gradients_square(self):
        """The sum of the squares of all gradients."""
        return gradients_square(&self.net)

    def scale_gradients(self, double factor):
        """gradients = factor gradients."""
        self.enter()
        scale_gradients(&self.net, factor)
        self.training_busy = False

    def lerp(self, Program source, double part):
        """Bring the parameters and the running statistics a part of the way to another program's, see lerp_network;
        False, and no change, if that is of other layers."""
        if not alike(&self.net, &source.net):
            return False
        self.enter()
        lerp_network(&self.net, &source.net, part)
        self.training_busy = False
        self.forget("the parameters have been changed since")
        if self.of is not None:
            self.of.forget("the parameters of a part have been changed since")
        return True

    def set_loss(self, loss):
        """Take another loss, what `Loss.spec` returns, or None."""
        cdef Criterion criterion = None if loss is None else Criterion(loss, self.net.outputs)
        self.enter()
        self.loss = criterion
        if criterion is None:
            memset(&self.net.loss, 0, sizeof(LossSpec))
        else:
            self.net.loss = criterion.spec
        self.training_busy = False
        self.made_of = self.made_of[:2] + (loss,) + self.made_of[3:]
        self.forget("the loss has been changed since")

    def clone(self, cnp.ndarray table=None):
        """A program of the same network with memory of its own: the same parameters, statistics, modes, and, with the
        table of its optimiser, the same state of the training; gradients of zero."""
        cdef Program other = Program(*self.made_of)
        cdef Network* net = &other.net
        cdef Op* op
        cdef const Op* mine
        cdef int i
        self.enter()
        try:
            for i in range(net.n_ops):
                op, mine = &net.ops[i], &self.net.ops[i]
                op.key, op.training = mine.key, mine.training
                op.trains_weight, op.trains_bias = mine.trains_weight, mine.trains_bias
                op.weight_group, op.bias_group = mine.weight_group, mine.bias_group
            note_modes(net)
            lerp_network(net, &self.net, 1)
            other.rows_seen = self.rows_seen
            if table is not None:
                other.set_optimizer(table, [(self.net.ops[i].weight_group, self.net.ops[i].bias_group)
                                            for i in range(net.n_ops)], self.states)
                memcpy(net.state, self.net.state, self.states * net.n_block * sizeof(real))
                other.stepper.steps, other.stepper.momentum_steps = self.stepper.steps, self.stepper.momentum_steps
                if self.stepper.average.at != NULL and other.stepper.average.at != NULL:
                    memcpy(other.stepper.average.at, self.stepper.average.at, net.n_block * sizeof(real))
        finally:
            self.training_busy = False
        return other

    @property
    def average(self):
        """The exponential moving average of the parameters as one vector, a copy; None without one."""
        if self.stepper.average.at == NULL or self.stepper.steps == 0:
            return None
        return packed(&self.net, self.stepper.average.at)

    @property
    def steps(self):
        """Optimiser steps taken."""
        return self.stepper.steps

    def view(self, int op, str what):
        """An array over the memory of an op's "weight", "bias", "grad_weight", "grad_bias", "running_mean" or
        "running_var"; see `view` in parameters.pxi. It keeps the program alive."""
        return view(&self.net, &self.net.ops[op], what, self)

    def hand_out(self, int op):
        """Before a view of an op's arrays goes to a user, who may write to it: what is written shall not stand beside
        NaN in the padding, and a pending backward must notice it."""
        if self.training_busy:          # another thread is training: it writes to the padding itself
            return
        clear_padding(&self.net, &self.net.ops[op])
        if not self.handed_out:
            self.handed_out = True
            self.seen = fingerprint(&self.net)

    def tracked(self, int op):
        """Batches in the running statistics of an op."""
        return self.net.ops[op].tracked[0]

    def set_tracked(self, int op, int64_t batches):
        self.net.ops[op].tracked[0] = batches

    def set_mode(self, int op, bint training):
        """Whether an op is in training mode where the program trains, or always in evaluation mode."""
        self.net.ops[op].training = training
        self.modes += 1
        note_modes(&self.net)

    def set_trainable(self, int op, bint weight, bint bias):
        """Whether the optimiser changes an op's weight and bias."""
        self.net.ops[op].trains_weight, self.net.ops[op].trains_bias = weight, bias
        self.modes += 1
        note_modes(&self.net)

    def snapshot(self, int states):
        """A copy of all that training changes, `states` blocks of optimiser state in use, for restore."""
        cdef Py_ssize_t blocks = 1 + states + (self.stepper.average.at != NULL)
        cdef cnp.npy_intp n = blocks * self.net.n_block + self.net.n_running
        cdef cnp.ndarray copy = cnp.PyArray_EMPTY(1, &n, REAL_TYPE, 0)
        cdef real* at = data(copy)
        memcpy(at, self.net.params, self.net.n_block * sizeof(real))
        memcpy(at + self.net.n_block, self.net.state, states * self.net.n_block * sizeof(real))
        at += (1 + states) * self.net.n_block
        if self.stepper.average.at != NULL:
            memcpy(at, self.stepper.average.at, self.net.n_block * sizeof(real))
            at += self.net.n_block
        if self.net.n_running:
            memcpy(at, self.net.running, self.net.n_running * sizeof(real))
        return copy, states, self.stepper.average.at != NULL, self.counters(), self.exact_statistics()

    def restore(self, saved, bint optimizer=True):
        """Put back what snapshot returned; optimizer: its state, too, or else that is empty, as another one's."""
        cdef cnp.ndarray copy = saved[0]
        cdef int states = saved[1]
        cdef bint averaged = saved[2]
        cdef const real* at = data(copy)
        if optimizer and (states > self.states or averaged != (self.stepper.average.at != NULL)):
            raise ValueError("a state of training: expected that of this optimizer, got another one's")
        self.enter()
        memcpy(self.net.params, at, self.net.n_block * sizeof(real))
        if optimizer:
            memcpy(self.net.state, at + self.net.n_block, states * self.net.n_block * sizeof(real))
        at += (1 + states) * self.net.n_block
        if averaged and optimizer:
            memcpy(self.stepper.average.at, at, self.net.n_block * sizeof(real))
        at += averaged * self.net.n_block
        if self.net.n_running:
            memcpy(self.net.running, at, self.net.n_running * sizeof(real))
        self.set_counters(saved[3])
        if not optimizer:
            self.reset()
        self.set_exact_statistics(saved[4])
        self.training_busy = False
        self.forget("the parameters have been set back since")

    cdef cnp.ndarray exact_statistics(self):
        """The running statistics before they were rounded, op by op means and variances without the padding: a copy."""
        cdef cnp.npy_intp n = statistics_size(&self.net)
        cdef cnp.ndarray exact = cnp.PyArray_EMPTY(1, &n, cnp.NPY_FLOAT64, 0)
        copy_statistics(&self.net, <double*>cnp.PyArray_DATA(exact), True)
        return exact

    cdef void set_exact_statistics(self, cnp.ndarray exact):
        copy_statistics(&self.net, <double*>cnp.PyArray_DATA(exact), False)

    cdef object counters(self):
        """Steps, steps with momentum, rows seen, and batches in the running statistics of each batch norm."""
        counts = [self.stepper.steps, self.stepper.momentum_steps, self.rows_seen]
        counts += [self.net.ops[i].tracked[0] for i in range(self.net.n_ops) if self.net.ops[i].has_running]
        return np.array(counts, np.int64)

    cdef void set_counters(self, cnp.ndarray counts):
        cdef const int64_t* n = <const int64_t*>cnp.PyArray_DATA(counts)
        cdef int i, at = 3
        self.stepper.steps, self.stepper.momentum_steps, self.rows_seen = n[0], n[1], n[2]
        for i in range(self.net.n_ops):
            if self.net.ops[i].has_running:
                self.net.ops[i].tracked[0] = n[at]
                at += 1

    def state(self, int states):
        """What training depends on beside the parameters and the running statistics, as a dict of arrays: "state.0",
        ... the blocks of the optimiser, "ema", packed as the parameters are, and "counters"."""
        cdef int i
        arrays = {}
        for i in range(states):
            arrays[f"state.{i}"] = packed(&self.net, self.net.state + i * self.net.n_block)
        average = self.average
        if average is not None:
            arrays["ema"] = average
        arrays["counters"] = self.counters()
        if statistics_size(&self.net):
            arrays["statistics"] = self.exact_statistics()
        return arrays

    def set_state(self, arrays, int states):
        """Put back what `state` returned; ValueError, and nothing changed, if it is another network's."""
        cdef int i
        names, counts, exact = _arrays.training_state(arrays, states, self.stepper.average.at != NULL,
                                                      statistics_size(&self.net), len(self.counters()))
        vectors = [as_vector(arrays[name], self.net.n_parameters, name) for name in names]
        self.enter()
        try:
            for i in range(states):
                unpack(&self.net, vectors[i], names[i], self.net.state + i * self.net.n_block)
            if len(names) > states:
                unpack(&self.net, vectors[states], "ema", self.stepper.average.at)
            self.set_counters(counts)
            if exact is not None:
                self.set_exact_statistics(exact)
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
        memset(self.net.state, 0, self.states * self.net.n_block * sizeof(real))
        self.stepper.steps = self.stepper.momentum_steps = 0

    @property
    def n_parameters(self):
        """How many numbers the parameters are."""
        return self.net.n_parameters

    @property
    def nbytes(self):
        """Bytes of the parameters, gradients, optimiser state, statistics, moving average and workspaces."""
        return (self.block.bytes + self.running.bytes + self.running_exact.bytes + self.more.bytes
                + self.stepper.average.bytes + workspace_bytes(&self.train) + workspace_bytes(&self.infer))


def permutation(Py_ssize_t n, uint64_t seed, uint64_t epoch, cnp.ndarray out=None):
    """A random order of 0 .. n - 1 that depends on seed and epoch alone, int64."""
    cdef cnp.ndarray order = np.empty(n, dtype=np.int64) if out is None else out
    cdef int64_t* p = <int64_t*>cnp.PyArray_DATA(order)
    with nogil:
        shuffle(p, n, seed, epoch)
    return order


def states_of(cnp.ndarray table, bint momentum):
    """Blocks of state that an optimiser needs, from its table; momentum: it has one, now or by a schedule."""
    cdef const double* row = <const double*>cnp.PyArray_DATA(table)
    return optimizer_states(<int>row[HYPER_OPTIMIZER], momentum, row + HYPER_OWN)
