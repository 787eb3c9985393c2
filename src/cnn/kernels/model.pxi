# The class that Python sees: a Network, its workspaces, and calls that check their arguments and start the walks.

cdef enum Saved:
    SAVED_NOTHING
    SAVED_OUTPUTS           # a forward pass
    SAVED_LOSS              # a forward pass and the gradient of its loss

cdef enum:
    GIL_WORK = 20000        # multiply-adds below which letting go of the GIL (35 ns) costs more than it frees


cdef class Program:
    """A compiled network: parameters, gradients, optimiser state and the walks over them. Private to the library.

    Parameters
    ----------
    widths : list of int
        Width of each buffer; the first is the input's.
    ops : list of tuple
        ("linear", src, dst, act, act_param, bias) or ("activation", src, dst, act, act_param); act from ACTIVATIONS.
    loss : dict or None
        A loss's `spec()`.
    where : tuple of str
        What takes the inputs and what gives the outputs, for error messages.
    """
    cdef Network net
    cdef void* memory           # of the parameter block
    cdef Workspace train
    cdef Workspace infer
    cdef Py_ssize_t batch       # rows of the last forward pass
    cdef Saved saved
    cdef str lost               # why nothing is saved
    cdef bint finite            # the loss of the last forward pass; if not, NaN may reach the padding of the weights
    cdef bint training_busy
    cdef bint infer_busy
    cdef str takes
    cdef str gives
    cdef readonly Py_ssize_t steps          # optimiser steps taken
    cdef Py_ssize_t momentum_steps          # of them with SGD's momentum
    cdef readonly Py_ssize_t allocations    # of parameter blocks and workspaces, so far

    def __cinit__(self, widths, ops, loss, where):
        cdef Network* net = &self.net
        cdef Op* op
        cdef int i
        cdef Py_ssize_t n
        net.n_ops = len(ops)
        net.n_buffers = len(widths)
        net.outputs = widths[net.n_buffers - 1]
        if loss is not None:
            fill_loss(&net.loss, loss, net.outputs)
        net.ops = <Op*>calloc(net.n_ops, sizeof(Op))
        net.buffers = <Buffer*>calloc(net.n_buffers, sizeof(Buffer))
        if net.ops == NULL or net.buffers == NULL:
            raise MemoryError()
        self.takes, self.gives = where
        self.finite = True
        self.lost = "there was no forward pass"
        for i, width in enumerate(widths):
            net.buffers[i].width = width
            net.buffers[i].row = padded_row(width, 64)
        for i, spec in enumerate(ops):
            op = &net.ops[i]
            op.kind = OP_LINEAR if spec[0] == "linear" else OP_ACTIVATION
            op.src = spec[1]
            op.dst = spec[2]
            op.act = spec[3]
            op.act_param = <double>spec[4]      # not `real`: to Cython that is a float
            op.keeps_input = op.act != IDENTITY and keeps_input(op.act, op.act_param)
            op.own_slope = True
            op.slope_of = -1
            op.n_in = net.buffers[op.src].width
            op.n_out = net.buffers[op.dst].width
            if op.kind == OP_LINEAR:
                self.place(op, spec[5])
                net.work += op.n_in * op.n_out
                net.n_parameters += (op.n_in + op.has_bias) * op.n_out
                net.buffers[op.dst].kept = op.keeps_input
                net.pad_input = net.pad_input or (op.src == 0 and op.transposed)
            else:
                net.work += 8 * op.n_in
        self.fuse_slopes()
        n = net.n_block
        if n < 0 or n > (<Py_ssize_t>1 << 58):
            raise MemoryError("the network is too large for this machine's addresses")
        net.params = allocate(5 * n, &self.memory)
        net.grads = net.params + n
        net.state = net.grads + n
        self.allocations += 1

    cdef void place(self, Op* op, bint bias):
        """Choose the layout of a linear op and give it its place in the parameter block."""
        cdef Py_ssize_t normal = op.n_in * round_up(op.n_out, VL), turned = op.n_out * round_up(op.n_in, VL)
        op.transposed = 2 * turned <= normal
        op.weight = self.net.n_block
        if op.transposed:
            op.row = padded_row(op.n_in, op.n_out)
            self.net.n_block += op.n_out * op.row
        else:
            op.row = padded_row(op.n_out, op.n_in)
            self.net.n_block += op.n_in * op.row
        op.bias = self.net.n_block
        op.has_bias = bias
        self.net.n_block += round_up(op.n_out, VL) if op.transposed else op.row

    cdef void fuse_slopes(self):
        """Where the only reader of a linear op's result is a linear op, that one multiplies by act' as it makes dX."""
        cdef int i, j, readers
        for i in range(self.net.n_ops):
            readers = 0
            for j in range(self.net.n_ops):
                readers += self.net.ops[j].src == self.net.ops[i].dst
            for j in range(self.net.n_ops):
                if (readers == 1 and self.net.ops[j].src == self.net.ops[i].dst and self.net.ops[i].kind == OP_LINEAR
                        and self.net.ops[j].kind == OP_LINEAR):
                    self.net.ops[j].slope_of = i
                    self.net.ops[i].own_slope = False

    def __dealloc__(self):
        self.release(&self.train)
        self.release(&self.infer)
        clear_loss(&self.net.loss)
        free(self.memory)
        free(self.net.ops)
        free(self.net.buffers)

    # workspaces -------------------------------------------------------------------------------------------------------

    cdef void release(self, Workspace* ws):
        free(ws.memory)
        free(ws.value)
        free(ws.losses)
        memset(ws, 0, sizeof(Workspace))

    cdef int reserve(self, Workspace* ws, Py_ssize_t batch, bint training, int threads) except -1:
        """Make room for a batch: a new workspace if this one is too small. The old one stays if memory is short."""
        cdef Workspace grown
        cdef Py_ssize_t n = 0, size, blocks
        cdef int b, part, n_buffers = self.net.n_buffers
        cdef real* at
        if batch <= ws.capacity and threads <= ws.threads:
            return 0
        memset(&grown, 0, sizeof(grown))
        batch = larger(batch, larger(ws.capacity, 1))
        grown.threads = <int>larger(threads, ws.threads)
        grown.capacity = batch
        grown.panel_size = panel_size(batch if training else 0)
        blocks = batch // LOSS_BLOCK + 1
        for b in range(n_buffers):
            size = batch * self.net.buffers[b].row
            if size // batch != self.net.buffers[b].row or n > (<Py_ssize_t>1 << 58):
                raise MemoryError(f"a batch of {batch} rows is too large for this machine's addresses")
            n += size * ((3 if self.net.buffers[b].kept else 2) if training else 1)
        try:
            grown.value = <real**>calloc(3 * n_buffers, sizeof(real*))
            if grown.value == NULL:
                raise MemoryError()
            if training:        # losses, correct and targets lie in one piece
                grown.losses = <double*>calloc(16 * blocks + batch * larger(self.net.outputs * sizeof(real), 8), 1)
                if grown.losses == NULL:
                    raise MemoryError()
            at = allocate(n + grown.threads * grown.panel_size, &grown.memory)
        except MemoryError:
            self.release(&grown)
            raise
        grown.correct = <Py_ssize_t*>(grown.losses + blocks)
        grown.targets = <char*>(grown.correct + blocks)
        grown.before = grown.value + n_buffers
        grown.grad = grown.before + n_buffers
        for part in range(3 if training else 1):
            for b in range(n_buffers):
                if part != 1 or self.net.buffers[b].kept:
                    grown.value[part * n_buffers + b] = at
                    at += batch * self.net.buffers[b].row
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

    cdef Pass training_pass(self, Py_ssize_t batch):
        """A Pass over the training workspace, all else zero."""
        cdef Pass p
        memset(&p, 0, sizeof(p))
        p.net = &self.net
        p.ws = &self.train
        p.batch = batch
        p.losses = self.train.losses
        p.correct = self.train.correct
        p.scale = 1.0 / batch if batch else 0
        return p

    # arguments --------------------------------------------------------------------------------------------------------

    def inputs(self, x, name="x"):
        """x as the walks can read it: shape (batch, in_features), this dtype; x itself where that holds already."""
        return as_matrix(x, self.net.buffers[0].width, name, self.takes)

    def targets(self, y, Py_ssize_t batch, name="targets"):
        """y as the loss can read it: class indices (batch,) or numbers (batch, out_features)."""
        if self.net.loss.kind == LOSS_NONE:
            raise RuntimeError("targets were given, but the model has no loss: let a loss stand last in its layers")
        return as_targets(&self.net.loss, y, batch, self.net.outputs, name, self.gives)

    cdef void set_rows(self, Pass* p, cnp.ndarray x, cnp.ndarray t) noexcept:
        """The arrays of a pass, t or None: as `inputs` and `targets` give them."""
        p.x = data(x)
        p.x_row = row_stride(x)
        p.gather = self.net.pad_input
        if t is not None:
            p.loss = self.net.loss
            p.loss.labels = cnp.PyArray_NDIM(t) == 1
            p.target = <const char*>cnp.PyArray_DATA(t)
            p.target_bytes = sizeof(int64_t) if p.loss.labels else row_stride(t) * sizeof(real)

    cdef Update update(self, cnp.ndarray hyper):
        """The coefficients of the next step, from an optimiser's table of hyper-parameters."""
        return self.next_update(<const double*>cnp.PyArray_DATA(hyper))

    cdef Update next_update(self, const double* hyper) noexcept nogil:
        return coefficients(hyper, NULL, self.steps, self.momentum_steps, self.net.state - self.net.params,
                            self.net.n_block)

    cdef void stepped(self, const Update* u) noexcept nogil:
        """Count a step."""
        self.steps += 1
        self.momentum_steps += u.kind == UPDATE_MOMENTUM

    # what Python calls ------------------------------------------------------------------------------------------------

    def forward(self, x, y, int threads):
        """Outputs (batch, out_features); with targets the mean loss instead, and its gradient is kept for backward.

        x is copied: changing it afterwards does not change what backward computes.
        """
        cdef cnp.ndarray rows = self.inputs(x), t = None, out = None
        cdef Py_ssize_t batch = cnp.PyArray_DIM(rows, 0), correct = 0
        cdef double loss
        cdef Pass p
        if y is not None:
            t = self.targets(y, batch)
            if batch == 0:
                raise ValueError("the loss of an empty batch is not defined")
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
            with nogil:
                loss = run_pass(&p, threads, &correct)
            self.batch = batch
            self.finite = isfinite(loss)
            self.saved = SAVED_OUTPUTS if t is None else SAVED_LOSS
            return out if t is None else loss / batch
        finally:
            self.training_busy = False

    def backward(self, grad_output, int threads):
        """Add the gradients of the last forward pass to the parameters' gradients; the gradient of x (batch, in)."""
        cdef int last = self.net.n_buffers - 1
        cdef Py_ssize_t width = self.net.buffers[0].width, correct = 0
        cdef cnp.ndarray g = None, dx
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
            p.gather = p.backward = p.input_grad = p.weights = True
            with nogil:
                run_pass(&p, threads, &correct)
                copy_rows(self.batch, width, self.train.grad[0], self.net.buffers[0].row, data(dx), width)
            return dx
        finally:
            self.training_busy = False

    def gradient_of(self, int buffer):
        """A copy of the gradient that the last backward pass left in a buffer, (batch, width)."""
        cdef Py_ssize_t width = self.net.buffers[buffer].width
        cdef cnp.ndarray g = empty_matrix(self.batch, width)
        copy_rows(self.batch, width, self.train.grad[buffer], self.net.buffers[buffer].row, data(g), width)
        return g

    def loss_and_grad(self, x, y, int threads):
        """Mean loss and its gradient, packed in the order of the ops: weight (in, out), then bias.

        The gradients are replaced by this one.
        """
        cdef cnp.ndarray rows = self.inputs(x)
        cdef Py_ssize_t batch = cnp.PyArray_DIM(rows, 0), correct = 0
        cdef cnp.ndarray t = self.targets(y, batch)
        cdef double loss
        cdef Pass p
        if batch == 0:
            raise ValueError("the loss of an empty batch is not defined")
        self.enter()
        try:
            self.reserve(&self.train, batch, True, threads)
            p = self.training_pass(batch)
            self.set_rows(&p, rows, t)
            p.forward = p.keep = p.backward = p.weights = p.overwrite = True
            with nogil:
                loss = run_pass(&p, threads, &correct)
            if self.saved != SAVED_NOTHING:
                self.forget("loss_and_grad has run since")
            return loss / batch, self.packed(self.net.grads)
        finally:
            self.training_busy = False

    def step(self, cnp.ndarray hyper):
        """Take the optimiser's step with the gradients as they are."""
        cdef Update u = self.update(hyper)
        self.enter()
        with nogil:
            update_rows(1, self.net.n_block, self.net.params, 0, self.net.grads, 0, &u)
        self.training_busy = False
        self.stepped(&u)
        if not self.finite:
            self.set_parameters(self.parameters)
        self.forget("a step has changed the parameters since")

    def zero_grads(self):
        """Set the gradients to zero."""
        memset(self.net.grads, 0, self.net.n_block * sizeof(real))

    def forget(self, str why):
        """A backward pass over the last forward pass would be wrong from now on; why is for its error message."""
        self.saved = SAVED_NOTHING
        self.lost = why

    def train_step(self, x, y, cnp.ndarray hyper, int threads):
        """Forward, loss, backward and step, the update fused into the weight gradient; the mean loss of the batch."""
        cdef cnp.ndarray rows = self.inputs(x)
        cdef Py_ssize_t batch = cnp.PyArray_DIM(rows, 0), correct = 0
        cdef cnp.ndarray t = self.targets(y, batch)
        cdef Update u = self.update(hyper)
        cdef double loss
        cdef Pass p
        if batch == 0:
            raise ValueError("x: training needs at least one row, got an empty batch")
        self.enter()
        try:
            self.reserve(&self.train, batch, True, threads)
            p = self.training_pass(batch)
            self.set_rows(&p, rows, t)
            p.forward = p.keep = p.backward = p.weights = True
            p.update = &u
            if batch * self.net.work < GIL_WORK:
                loss = train_batch(&p, threads, &correct)
            else:
                with nogil:
                    loss = train_batch(&p, threads, &correct)
        finally:
            self.training_busy = False
        self.stepped(&u)
        if not isfinite(loss):
            self.set_parameters(self.parameters)
        if self.saved != SAVED_NOTHING:
            self.forget("train_step has run since")
        return loss / batch

    def train_batches(self, cnp.ndarray x, cnp.ndarray y, cnp.ndarray order, Py_ssize_t start, Py_ssize_t stop,
                      Py_ssize_t batch_size, cnp.ndarray hyper, int threads, double total):
        """train_step on batch after batch of rows start .. stop - 1, taken in `order` (None: as they lie).

        Returns (total plus the sum of the loss over the rows, rows classified right, first row of the batch with a loss
        that is not finite, or -1). x and y as `inputs` and `targets` give them, order int64.
        """
        cdef const double* rates = <const double*>cnp.PyArray_DATA(hyper)
        cdef int64_t* turn = NULL if order is None else <int64_t*>cnp.PyArray_DATA(order)
        cdef Py_ssize_t at = start, correct = 0, bad = -1, done
        cdef const real* all_x
        cdef const char* all_targets
        cdef double loss
        cdef Update u
        cdef Pass p
        self.enter()
        try:
            self.reserve(&self.train, smaller(batch_size, stop - start), True, threads)
            self.forget("fit has run since")
            p = self.training_pass(0)
            self.set_rows(&p, x, y)
            p.gather = p.gather or turn != NULL
            p.forward = p.keep = p.backward = p.weights = True
            p.update = &u
            all_x, all_targets = p.x, p.target
            u = self.next_update(rates)
            with nogil:
                while at < stop:
                    p.batch = smaller(batch_size, stop - at)
                    p.scale = 1.0 / p.batch
                    if turn != NULL:
                        p.order = turn + at
                    else:
                        p.x = all_x + at * p.x_row
                        p.target = all_targets + at * p.target_bytes
                    if batch_size == 1 and at > start and not depends_on_step(u.kind):      # the rest in one call
                        done = train_samples(&p, stop - at, &total, &correct)
                        self.steps += done
                        self.momentum_steps += done if u.kind == UPDATE_MOMENTUM else 0
                        if at + done < stop:
                            bad = at + done
                        break
                    loss = train_batch(&p, threads, &correct)
                    self.stepped(&u)
                    if depends_on_step(u.kind) or self.momentum_steps == 1:
                        u = self.next_update(rates)
                    if not isfinite(loss):
                        bad = at
                        break
                    total += loss
                    at += p.batch
        finally:
            self.training_busy = False
        return total, correct, bad

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
        self.infer_pass(&p, threads, NULL)
        return result

    def evaluate(self, x, y, int threads):
        """(mean loss, rows classified right) of x, y; right is 0 without class indices."""
        cdef cnp.ndarray rows = self.inputs(x)
        cdef Py_ssize_t batch = cnp.PyArray_DIM(rows, 0), correct = 0, blocks = batch // LOSS_BLOCK + 1
        cdef cnp.ndarray t = self.targets(y, batch)
        cdef double loss
        cdef Pass p
        if batch == 0:
            raise ValueError("x: expected at least one row to evaluate, got an empty batch")
        memset(&p, 0, sizeof(p))
        self.set_rows(&p, rows, t)
        p.batch = batch
        p.losses = <double*>malloc(blocks * (sizeof(double) + sizeof(Py_ssize_t)))
        if p.losses == NULL:
            raise MemoryError()
        p.correct = <Py_ssize_t*>(p.losses + blocks)
        try:
            loss = self.infer_pass(&p, threads, &correct)
        finally:
            free(p.losses)
        return loss / batch, correct

    cdef double infer_pass(self, Pass* p, int threads, Py_ssize_t* correct) except? -1:
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
                total = run_pass(p, threads, correct)
            else:
                with nogil:
                    total = run_pass(p, threads, correct)
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
            if op.kind != OP_LINEAR:
                continue
            if op.transposed:
                for i in range(op.n_in):
                    for j in range(op.n_out):
                        at[i * op.n_out + j] = block[op.weight + j * op.row + i]
            else:
                copy_rows(op.n_in, op.n_out, block + op.weight, op.row, at, op.n_out)
            at += op.n_in * op.n_out
            if op.has_bias:
                memcpy(at, block + op.bias, op.n_out * sizeof(real))
                at += op.n_out
        return vector

    @property
    def parameters(self):
        """All parameters as one vector, a copy."""
        return self.packed(self.net.params)

    def set_parameters(self, vector):
        """Set all parameters from one vector, and the padding to zero: NaN may have come there."""
        cdef const Op* op
        cdef Py_ssize_t i, j
        cdef int o
        cdef cnp.ndarray v = as_vector(vector, self.net.n_parameters, "parameters")
        cdef const real* at = data(v)
        cdef real* w
        memset(self.net.params, 0, self.net.n_block * sizeof(real))
        for o in range(self.net.n_ops):
            op = &self.net.ops[o]
            if op.kind != OP_LINEAR:
                continue
            w = self.net.params + op.weight
            if op.transposed:
                for i in range(op.n_in):
                    for j in range(op.n_out):
                        w[j * op.row + i] = at[i * op.n_out + j]
            else:
                copy_rows(op.n_in, op.n_out, at, op.n_out, w, op.row)
            at += op.n_in * op.n_out
            if op.has_bias:
                memcpy(self.net.params + op.bias, at, op.n_out * sizeof(real))
                at += op.n_out
        self.forget("the parameters have been changed since")

    @property
    def gradients(self):
        """All gradients as one vector, a copy."""
        return self.packed(self.net.grads)

    def view(self, int op, str what):
        """An array over the memory of an op's "weight" (in, out), "bias" (out,), "grad_weight" or "grad_bias".

        None for the bias of an op without one. The array keeps the program alive.
        """
        cdef const Op* o = &self.net.ops[op]
        cdef real* block = self.net.grads if what.startswith("grad_") else self.net.params
        cdef cnp.npy_intp shape[2]
        cdef cnp.npy_intp strides[2]
        cdef cnp.ndarray a
        cdef int dims = 1
        if what.endswith("weight"):
            dims = 2
            block += o.weight
            shape[0], shape[1] = o.n_in, o.n_out
            strides[0] = (1 if o.transposed else o.row) * sizeof(real)
            strides[1] = (o.row if o.transposed else 1) * sizeof(real)
        else:
            if not o.has_bias:
                return None
            block += o.bias
            shape[0], strides[0] = o.n_out, sizeof(real)
        a = cnp.PyArray_New(cnp.ndarray, dims, shape, REAL_TYPE, strides, block, 0,
                            cnp.NPY_ARRAY_ALIGNED | cnp.NPY_ARRAY_WRITEABLE, None)
        cnp.set_array_base(a, self)
        return a

    def snapshot(self, int states):
        """A copy of the parameters and of the blocks of optimiser state in use, for restore."""
        cdef cnp.npy_intp n = (1 + states) * self.net.n_block
        cdef cnp.ndarray copy = cnp.PyArray_EMPTY(1, &n, REAL_TYPE, 0)
        memcpy(data(copy), self.net.params, self.net.n_block * sizeof(real))
        memcpy(data(copy) + self.net.n_block, self.net.state, states * self.net.n_block * sizeof(real))
        return copy, self.steps, self.momentum_steps

    def reset(self):
        """Clear the optimiser's state, for another optimiser."""
        memset(self.net.state, 0, 3 * self.net.n_block * sizeof(real))
        self.steps = self.momentum_steps = 0

    def restore(self, saved):
        """Put back what snapshot returned."""
        cdef cnp.ndarray copy = saved[0]
        memcpy(self.net.params, data(copy), self.net.n_block * sizeof(real))
        memcpy(self.net.state, data(copy) + self.net.n_block, (copy.size - self.net.n_block) * sizeof(real))
        self.steps, self.momentum_steps = saved[1:]
        self.forget("the parameters have been set back since")

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
