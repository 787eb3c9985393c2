# The program: a Sequential compiled to an array of ops over numbered buffers, and the walks along it.
#
#     Sequential (Python)  ->  Program: ops[] + one aligned block: parameters | gradients | optimiser state
#                              forward      the ops in order
#                              backward     the ops in reverse; gradients are added, or the optimiser's step is taken
#                              one sample   forward, loss, backward and step, one sweep over each weight matrix
#
# Buffer 0 is the input of the model; every op reads buffer `src` and writes buffer `dst`. A buffer has a value, a
# gradient and, where its op's activation needs it, the value before the activation, all (batch, width) with rows padded
# to VL; the padding is zero. They live in a Workspace, which grows with the batch and is otherwise allocated once.
#
# Weights lie as the products like them. Normally W is (in, out), its rows padded to VL and the bias one more row below.
# A layer much narrower than a vector is kept transposed, (out, in), or most of each vector would be padding; its
# forward pass is `dot_rows`. Long rows are an odd number of cache lines apart, so that a panel's lines spread over all
# sets of the cache. No one outside sees this: `view` gives NumPy arrays of shape (in, out) with the strides that fit.

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

cdef struct Workspace:
    real* memory
    Py_ssize_t capacity     # rows
    real** value            # of each buffer
    real** before           # before the activation
    real** grad
    real* panel

cdef enum Saved:
    SAVED_NOTHING
    SAVED_OUTPUTS           # a forward pass
    SAVED_LOSS              # a forward pass and the gradient of its loss

cdef enum:
    LINE = 64                   # bytes of a cache line
    FEW_ROWS = 4                # up to this batch, dX is dot products with the rows of W as they lie
    CHUNK_BYTES = 1 << 19       # activations of one chunk of `predict`: half of L2
    GIL_WORK = 20000            # multiply-adds below which letting go of the GIL (35 ns) costs more than it frees


cdef Py_ssize_t padded_row(Py_ssize_t width, Py_ssize_t rows) noexcept nogil:
    """Elements between the rows of a (rows, width) matrix: whole vectors, and an odd number of lines where the matrix
    is larger than an L1 cache can hold without conflicts."""
    cdef Py_ssize_t row = round_up(width, VL), per_line = LINE // <Py_ssize_t>sizeof(real)
    if row * rows * <Py_ssize_t>sizeof(real) <= 32768 or row < 4 * per_line:
        return row
    row = round_up(row, per_line)
    return row if row // per_line % 2 else row + per_line


cdef real* allocate(Py_ssize_t n) except NULL:
    """n zeroed reals, aligned to a cache line."""
    cdef void* p = NULL
    if n < 0 or posix_memalign(&p, LINE, larger(n, 1) * sizeof(real)) != 0:
        raise MemoryError(f"cannot allocate {n * sizeof(real)} bytes")
    memset(p, 0, n * sizeof(real))
    return <real*>p


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
                         real* panel) noexcept nogil:
    """dX = dZ W^T, times act'(z) of the op `before` that made x (NULL: none). 2 batch in out FLOPs."""
    cdef Product p
    cdef bint slope = before != NULL and before.act != IDENTITY
    cdef bint mask = slope and before.act == RELU
    if not op.transposed and batch <= FEW_ROWS:
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


cdef void weight_gradient(const Op* op, Py_ssize_t batch, const real* x, Py_ssize_t x_row, const real* dz,
                          Py_ssize_t dz_row, real* grads, real* params, const Update* update,
                          real* panel) noexcept nogil:
    """dW = X^T dZ and db = sum of dZ over the batch, added to grads, or, with an update, used for the optimiser's step
    on params and not kept. 2 batch in out FLOPs. A transposed layer reads x in vectors: its rows must be padded."""
    cdef Product p
    memset(&p, 0, sizeof(p))
    p.k = batch
    p.finish = FINISH_ADD if update == NULL else FINISH_UPDATE
    p.update = update
    p.act = IDENTITY
    p.panel = panel
    p.c_row = op.row
    if op.transposed:
        p.m = op.n_out
        p.n = round_up(op.n_in, VL)
        p.a = dz
        p.a_row = 1
        p.a_col = dz_row
        p.b = x
        p.b_row = x_row
    else:
        p.m = op.n_in
        p.n = round_up(op.n_out, VL)
        p.a = x
        p.a_row = 1
        p.a_col = x_row
        p.b = dz
        p.b_row = dz_row
        p.ones_row = op.has_bias
    p.c = grads + op.weight
    p.param = params + op.weight
    product(&p)
    if op.transposed and op.has_bias:
        p.m = 0
        p.n = round_up(op.n_out, VL)
        p.b = dz
        p.b_row = dz_row
        p.ones_row = True
        p.c = grads + op.bias
        p.param = params + op.bias
        product(&p)


cdef class Program:
    """A compiled network: parameters, gradients, optimiser state and the walks over them. Private to the library.

    Parameters
    ----------
    widths : list of int
        Width of each buffer; the first is the input's.
    ops : list of tuple
        ("linear", src, dst, act, act_param, bias) or ("activation", src, dst, act, act_param); act from ACTIVATIONS.
    loss : str or None
        A key of LOSSES.
    where : tuple of str
        What takes the inputs and what gives the outputs, for error messages.
    """
    cdef int n_ops
    cdef int n_buffers
    cdef Op* ops
    cdef Buffer* buffers
    cdef real* params           # n_block each: parameters, gradients, optimiser state
    cdef real* grads
    cdef real* state
    cdef Py_ssize_t n_block
    cdef Workspace train
    cdef Workspace infer
    cdef Loss loss
    cdef Py_ssize_t work        # multiply-adds of a forward pass of one row
    cdef Py_ssize_t batch       # rows of the last forward pass
    cdef Saved saved
    cdef str lost               # why nothing is saved
    cdef bint training_busy
    cdef bint infer_busy
    cdef str takes
    cdef str gives
    cdef bint pad_input         # the first layer reads its input in whole vectors
    cdef readonly Py_ssize_t steps          # optimiser steps taken
    cdef readonly Py_ssize_t allocations    # of parameter blocks and workspaces, so far

    def __cinit__(self, widths, ops, loss, where):
        cdef Op* op
        cdef int i
        cdef Py_ssize_t n
        self.n_ops = len(ops)
        self.n_buffers = len(widths)
        self.takes, self.gives = where
        self.loss = LOSSES[loss] if loss is not None else LOSS_NONE
        self.lost = "there was no forward pass"
        self.ops = <Op*>calloc(self.n_ops, sizeof(Op))
        self.buffers = <Buffer*>calloc(self.n_buffers, sizeof(Buffer))
        if self.ops == NULL or self.buffers == NULL:
            raise MemoryError()
        for i, width in enumerate(widths):
            self.buffers[i].width = width
            self.buffers[i].row = padded_row(width, 64)
        for i, spec in enumerate(ops):
            op = &self.ops[i]
            op.kind = OP_LINEAR if spec[0] == "linear" else OP_ACTIVATION
            op.src = spec[1]
            op.dst = spec[2]
            op.act = spec[3]
            op.act_param = <double>spec[4]      # not `real`: to Cython that is a float
            op.keeps_input = op.act != IDENTITY and keeps_input(op.act, op.act_param)
            op.own_slope = True
            op.slope_of = -1
            op.n_in = self.buffers[op.src].width
            op.n_out = self.buffers[op.dst].width
            if op.kind == OP_LINEAR:
                self.place(op, spec[5])
                self.work += op.n_in * op.n_out
                self.buffers[op.dst].kept = op.keeps_input
                self.pad_input = self.pad_input or (op.src == 0 and op.transposed)
            else:
                self.work += 8 * op.n_in
        self.fuse_slopes()
        n = self.n_block
        if n < 0 or n > (<Py_ssize_t>1 << 58):
            raise MemoryError("the network is too large for this machine's addresses")
        self.params = allocate(3 * n)
        self.grads = self.params + n
        self.state = self.grads + n
        self.allocations += 1

    cdef void place(self, Op* op, bint bias):
        """Choose the layout of a linear op and give it its place in the parameter block."""
        cdef Py_ssize_t normal = op.n_in * round_up(op.n_out, VL), turned = op.n_out * round_up(op.n_in, VL)
        op.transposed = 2 * turned <= normal
        op.weight = self.n_block
        if op.transposed:
            op.row = padded_row(op.n_in, op.n_out)
            self.n_block += op.n_out * op.row
        else:
            op.row = padded_row(op.n_out, op.n_in)
            self.n_block += op.n_in * op.row
        op.bias = self.n_block
        op.has_bias = bias
        self.n_block += round_up(op.n_out, VL) if op.transposed else op.row

    cdef void fuse_slopes(self):
        """Where the only reader of a linear op's result is a linear op, that one multiplies by act' as it makes dX."""
        cdef int i, j, readers
        for i in range(self.n_ops):
            readers = 0
            for j in range(self.n_ops):
                readers += self.ops[j].src == self.ops[i].dst
            for j in range(self.n_ops):
                if (readers == 1 and self.ops[j].src == self.ops[i].dst and self.ops[i].kind == OP_LINEAR
                        and self.ops[j].kind == OP_LINEAR):
                    self.ops[j].slope_of = i
                    self.ops[i].own_slope = False

    def __dealloc__(self):
        self.release(&self.train)
        self.release(&self.infer)
        free(self.params)
        free(self.ops)
        free(self.buffers)

    # workspaces -----------------------------------------------------------------------------------------------------

    cdef void release(self, Workspace* ws):
        free(ws.memory)
        free(ws.value)
        memset(ws, 0, sizeof(Workspace))

    cdef int reserve(self, Workspace* ws, Py_ssize_t batch, bint training) except -1:
        """Make room for a batch: a new workspace if this one is too small. The old one stays if memory is short."""
        cdef Workspace grown
        cdef Py_ssize_t n = 0, size
        cdef int b, part
        cdef real* at
        if batch <= ws.capacity:
            return 0
        memset(&grown, 0, sizeof(grown))
        for b in range(self.n_buffers):
            size = batch * self.buffers[b].row
            if size // batch != self.buffers[b].row or n > (<Py_ssize_t>1 << 58):
                raise MemoryError(f"a batch of {batch} rows is too large for this machine's addresses")
            n += size * ((3 if self.buffers[b].kept else 2) if training else 1)
        grown.value = <real**>calloc(3 * self.n_buffers, sizeof(real*))
        if grown.value == NULL:
            raise MemoryError()
        try:
            grown.memory = allocate(n + panel_size(batch))
        except MemoryError:
            free(grown.value)
            raise
        grown.before = grown.value + self.n_buffers
        grown.grad = grown.before + self.n_buffers
        at = grown.memory
        for part in range(3 if training else 1):
            for b in range(self.n_buffers):
                if part != 1 or self.buffers[b].kept:
                    grown.value[part * self.n_buffers + b] = at
                    at += batch * self.buffers[b].row
        grown.panel = at
        grown.capacity = batch
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

    # the walks ------------------------------------------------------------------------------------------------------

    cdef void walk_forward(self, Workspace* ws, Py_ssize_t batch, const real* x, Py_ssize_t x_row,
                           bint keep) noexcept nogil:
        """Run the ops on x (batch, in); the outputs are ws.value of the last op's buffer. keep: for a backward walk."""
        cdef int i
        cdef Op* op
        cdef const real* src
        cdef Py_ssize_t src_row
        for i in range(self.n_ops):
            op = &self.ops[i]
            src = x if op.src == 0 else ws.value[op.src]
            src_row = x_row if op.src == 0 else self.buffers[op.src].row
            if op.kind == OP_LINEAR:
                forward_linear(op, batch, src, src_row, self.params, ws.value[op.dst], self.buffers[op.dst].row,
                               ws.before[op.dst] if keep and op.keeps_input else NULL, ws.panel)
            else:
                activate_rows(op.act, op.act_param, batch, op.n_out, src, src_row, ws.value[op.dst],
                              self.buffers[op.dst].row)

    cdef const real* kept(self, const Op* op, const real* x) noexcept nogil:
        """What the forward pass kept for op's derivative: its output, or what went into the activation."""
        if not op.keeps_input:
            return self.train.value[op.dst]
        if op.kind == OP_LINEAR:
            return self.train.before[op.dst]
        return x if op.src == 0 else self.train.value[op.src]

    cdef void walk_backward(self, Py_ssize_t batch, const real* x, Py_ssize_t x_row, bint input_grad,
                            const Update* update) noexcept nogil:
        """From the gradient of the outputs to those of everything: added to grads, or used for the step at once."""
        cdef Workspace* ws = &self.train
        cdef int i
        cdef Op* op
        cdef Op* before
        cdef const real* src
        cdef Py_ssize_t src_row, dst_row
        cdef real* dz
        for i in range(self.n_ops - 1, -1, -1):
            op = &self.ops[i]
            dz = ws.grad[op.dst]
            dst_row = self.buffers[op.dst].row
            src = x if op.src == 0 else ws.value[op.src]
            src_row = x_row if op.src == 0 else self.buffers[op.src].row
            if op.kind == OP_ACTIVATION:
                if op.src != 0 or input_grad:
                    activate_backward_rows(op.act, op.act_param, op.keeps_input, batch, op.n_out, dz, dst_row,
                                           self.kept(op, x), src_row if op.keeps_input else dst_row,
                                           ws.grad[op.src], self.buffers[op.src].row)
                continue
            if op.own_slope and op.act != IDENTITY:
                activate_backward_rows(op.act, op.act_param, op.keeps_input, batch, op.n_out, dz, dst_row,
                                       self.kept(op, x), dst_row, dz, dst_row)
            if op.src != 0 or input_grad:
                before = &self.ops[op.slope_of] if op.slope_of >= 0 else NULL
                input_gradient(op, before, self.kept(before, x) if before != NULL else NULL, batch, dz, dst_row,
                               self.params, ws.grad[op.src], self.buffers[op.src].row, ws.panel)
            weight_gradient(op, batch, src, src_row, dz, dst_row, self.grads, self.params, update, ws.panel)

    cdef double loss_and_gradient(self, Workspace* ws, Py_ssize_t batch, const void* target, Py_ssize_t target_row,
                                  double scale, bint gradient, Py_ssize_t* correct) noexcept nogil:
        """Sum of the loss over the rows; with gradient, that of the outputs goes to its buffer, times scale."""
        cdef int last = self.ops[self.n_ops - 1].dst
        cdef Buffer* out = &self.buffers[last]
        cdef real* dy = ws.grad[last] if gradient else NULL
        if self.loss == LOSS_MSE:
            return mse(batch, out.width, ws.value[last], out.row, <const real*>target, target_row, scale, dy, out.row)
        return cross_entropy(batch, out.width, ws.value[last], out.row, <const int64_t*>target, scale, dy, out.row,
                             correct)

    cdef double walk_sample(self, const real* x, const void* target, const Update* u,
                            Py_ssize_t* correct) noexcept nogil:
        """Forward, loss, backward and step of one sample."""
        cdef Workspace* ws = &self.train
        cdef int i
        cdef Op* op
        cdef Op* before
        cdef real* dz
        cdef double loss
        self.walk_forward(ws, 1, x, 0, True)
        loss = self.loss_and_gradient(ws, 1, target, 0, 1, True, correct)
        for i in range(self.n_ops - 1, -1, -1):
            op = &self.ops[i]
            dz = ws.grad[op.dst]
            if op.kind == OP_ACTIVATION:
                activate_backward_rows(op.act, op.act_param, op.keeps_input, 1, op.n_out, dz, 0, self.kept(op, x), 0,
                                       ws.grad[op.src], 0)
                continue
            if op.own_slope and op.act != IDENTITY:
                activate_backward_rows(op.act, op.act_param, op.keeps_input, 1, op.n_out, dz, 0, self.kept(op, x), 0,
                                       dz, 0)
            sample_backward(op.transposed, op.n_in, op.n_out, x if op.src == 0 else ws.value[op.src], dz,
                            self.params + op.weight, op.row, self.params + op.bias if op.has_bias else NULL, u,
                            ws.grad[op.src] if op.src != 0 else NULL)
            if op.slope_of >= 0:
                before = &self.ops[op.slope_of]
                if before.act != IDENTITY:
                    activate_backward_rows(before.act, before.act_param, before.keeps_input, 1, op.n_in,
                                           ws.grad[op.src], 0, self.kept(before, x), 0, ws.grad[op.src], 0)
        return loss

    cdef double walk_step(self, Py_ssize_t batch, const real* x, Py_ssize_t x_row, const void* target,
                          Py_ssize_t target_row, const Update* u, Py_ssize_t* correct) noexcept nogil:
        """One training step on a batch; the sum of the loss over its rows."""
        cdef double loss
        if self.pad_input and x != self.train.value[0]:
            copy_rows(batch, self.buffers[0].width, x, x_row, self.train.value[0], self.buffers[0].row)
            x = self.train.value[0]
            x_row = self.buffers[0].row
        if batch == 1:
            return self.walk_sample(x, target, u, correct)
        self.walk_forward(&self.train, batch, x, x_row, True)
        loss = self.loss_and_gradient(&self.train, batch, target, target_row, 1.0 / batch, True, correct)
        self.walk_backward(batch, x, x_row, False, u)
        return loss

    # arguments ------------------------------------------------------------------------------------------------------

    def inputs(self, x, name="x"):
        """x as the walks can read it: shape (batch, in_features), this dtype; x itself where that holds already."""
        return as_matrix(x, self.buffers[0].width, name, self.takes)

    def targets(self, y, Py_ssize_t batch, name="targets"):
        """y as the loss can read it: class indices (batch,) or numbers (batch, out_features)."""
        cdef cnp.ndarray t
        if self.loss == LOSS_NONE:
            raise RuntimeError("targets were given, but the model has no loss: let a loss stand last in its layers")
        if self.loss == LOSS_CROSS_ENTROPY:
            t = as_labels(y, self.buffers[self.n_buffers - 1].width)
        else:
            if self.buffers[self.n_buffers - 1].width == 1 and np.ndim(y) == 1:
                y = np.asarray(y)[:, None]
            t = as_matrix(y, self.buffers[self.n_buffers - 1].width, name, self.gives)
        if cnp.PyArray_DIM(t, 0) != batch:
            raise ValueError(f"{name}: expected {batch} rows, as many as x has, got {cnp.PyArray_DIM(t, 0)}")
        return t

    cdef Py_ssize_t target_stride(self, cnp.ndarray t) noexcept:
        return row_stride(t) if self.loss == LOSS_MSE else 1

    cdef Update update(self, cnp.ndarray hyper):
        """The coefficients of the next step, from an optimiser's array of hyper-parameters."""
        cdef const double* h = <const double*>cnp.PyArray_DATA(hyper)
        return sgd_coefficients(h[0], h[1], h[2], h[3], h[4] != 0, self.steps == 0,
                                self.state - self.params)

    # what Python calls ----------------------------------------------------------------------------------------------

    def forward(self, x, y=None):
        """Outputs (batch, out_features); with targets the mean loss instead, and its gradient is kept for backward.

        x is copied: changing it afterwards does not change what backward computes.
        """
        cdef cnp.ndarray rows = self.inputs(x), t = None
        cdef Py_ssize_t batch = cnp.PyArray_DIM(rows, 0), correct = 0, t_row = 0
        cdef int last = self.ops[self.n_ops - 1].dst
        cdef double loss = 0
        cdef const void* target = NULL
        cdef cnp.ndarray out
        if y is not None:
            t = self.targets(y, batch)
            if batch == 0:
                raise ValueError("the loss of an empty batch is not defined")
            target = cnp.PyArray_DATA(t)
            t_row = self.target_stride(t)
        self.enter()
        try:
            self.reserve(&self.train, batch, True)
            self.saved = SAVED_NOTHING
            with nogil:
                copy_rows(batch, self.buffers[0].width, data(rows), row_stride(rows), self.train.value[0],
                          self.buffers[0].row)
                self.walk_forward(&self.train, batch, self.train.value[0], self.buffers[0].row, True)
                if target != NULL:
                    loss = self.loss_and_gradient(&self.train, batch, target, t_row, 1.0 / batch, True, &correct)
            self.batch = batch
            self.saved = SAVED_LOSS if target != NULL else SAVED_OUTPUTS
            if target != NULL:
                return loss / batch
            out = empty_matrix(batch, self.buffers[last].width)
            copy_rows(batch, self.buffers[last].width, self.train.value[last], self.buffers[last].row, data(out),
                      self.buffers[last].width)
            return out
        finally:
            self.training_busy = False

    def backward(self, grad_output=None):
        """Add the gradients of the last forward pass to the parameters' gradients; the gradient of x (batch, in)."""
        cdef int last = self.ops[self.n_ops - 1].dst
        cdef cnp.ndarray g = None, dx
        if self.saved == SAVED_NOTHING:
            raise RuntimeError(f"backward needs a forward pass to go back over, but {self.lost}")
        if grad_output is None and self.saved != SAVED_LOSS:
            raise RuntimeError("backward needs grad_output, or a forward pass with targets that no backward has used")
        if grad_output is not None:
            g = as_matrix(grad_output, self.buffers[last].width, "grad_output", self.gives)
            if cnp.PyArray_DIM(g, 0) != self.batch:
                raise ValueError(f"grad_output: expected {self.batch} rows, as the last forward pass had, got "
                                 f"{cnp.PyArray_DIM(g, 0)}")
        self.enter()
        try:
            dx = empty_matrix(self.batch, self.buffers[0].width)
            if g is not None:
                copy_rows(self.batch, self.buffers[last].width, data(g), row_stride(g), self.train.grad[last],
                          self.buffers[last].row)
            self.saved = SAVED_OUTPUTS
            with nogil:
                self.walk_backward(self.batch, self.train.value[0], self.buffers[0].row, True, NULL)
                copy_rows(self.batch, self.buffers[0].width, self.train.grad[0], self.buffers[0].row, data(dx),
                          self.buffers[0].width)
            return dx
        finally:
            self.training_busy = False

    def gradient_of(self, int buffer):
        """A copy of the gradient that the last backward pass left in a buffer, (batch, width)."""
        cdef cnp.ndarray g = empty_matrix(self.batch, self.buffers[buffer].width)
        copy_rows(self.batch, self.buffers[buffer].width, self.train.grad[buffer], self.buffers[buffer].row, data(g),
                  self.buffers[buffer].width)
        return g

    def step(self, cnp.ndarray hyper):
        """Take the optimiser's step with the gradients as they are."""
        cdef Update u = self.update(hyper)
        self.enter()
        with nogil:
            update_block(self.n_block, self.params, self.grads, &u)
        self.training_busy = False
        self.steps += 1
        self.forget("a step has changed the parameters since")

    def zero_grads(self):
        """Set the gradients to zero."""
        memset(self.grads, 0, self.n_block * sizeof(real))

    def forget(self, str why):
        """A backward pass over the last forward pass would be wrong from now on; why is for its error message."""
        self.saved = SAVED_NOTHING
        self.lost = why

    def train_step(self, x, y, cnp.ndarray hyper):
        """Forward, loss, backward and step, the update fused into the weight gradient; the mean loss of the batch."""
        cdef cnp.ndarray rows = self.inputs(x)
        cdef Py_ssize_t batch = cnp.PyArray_DIM(rows, 0), correct = 0, t_row, x_row = row_stride(rows)
        cdef cnp.ndarray t = self.targets(y, batch)
        cdef Update u = self.update(hyper)
        cdef double loss
        cdef const real* x_data = data(rows)
        cdef const void* target = cnp.PyArray_DATA(t)
        if batch == 0:
            raise ValueError("x: training needs at least one row, got an empty batch")
        t_row = self.target_stride(t)
        self.enter()
        try:
            self.reserve(&self.train, batch, True)
            if batch * self.work < GIL_WORK:
                loss = self.walk_step(batch, x_data, x_row, target, t_row, &u, &correct)
            else:
                with nogil:
                    loss = self.walk_step(batch, x_data, x_row, target, t_row, &u, &correct)
        finally:
            self.training_busy = False
        self.steps += 1
        if self.saved != SAVED_NOTHING:
            self.forget("train_step has run since")
        return loss / batch

    def train_batches(self, cnp.ndarray x, cnp.ndarray y, cnp.ndarray order, Py_ssize_t start, Py_ssize_t stop,
                      Py_ssize_t batch_size, cnp.ndarray hyper):
        """train_step on batch after batch of rows start .. stop - 1, taken in `order` (None: as they lie).

        Returns (sum of the loss over the rows, rows classified right, first row of the batch with a loss that is not
        finite, or -1).
        x and y as `inputs` and `targets` give them, order int64.
        """
        cdef Update u
        cdef Py_ssize_t at = start, batch, i, row, correct = 0, bad = -1
        cdef Py_ssize_t width = self.buffers[0].width, out = self.buffers[self.n_buffers - 1].width
        cdef Py_ssize_t x_row = row_stride(x), t_row = self.target_stride(y)
        cdef const real* x_data = data(x)
        cdef const real* rows
        cdef Py_ssize_t rows_row
        cdef const char* target
        cdef const char* t_data = <const char*>cnp.PyArray_DATA(y)
        cdef Py_ssize_t t_bytes = t_row * (sizeof(real) if self.loss == LOSS_MSE else sizeof(int64_t))
        cdef int64_t* turn = NULL if order is None else <int64_t*>cnp.PyArray_DATA(order)
        cdef char* gathered = NULL
        cdef Py_ssize_t gathered_bytes = out * sizeof(real) if self.loss == LOSS_MSE else sizeof(int64_t)
        cdef double total = 0, loss
        self.enter()
        try:
            self.reserve(&self.train, smaller(batch_size, stop - start), True)
            if turn != NULL and batch_size > 1:
                gathered = <char*>malloc(batch_size * gathered_bytes)
                if gathered == NULL:
                    raise MemoryError()
            self.forget("fit has run since")
            u = self.update(hyper)
            with nogil:
                while at < stop:
                    batch = smaller(batch_size, stop - at)
                    if turn == NULL:
                        rows, rows_row = x_data + at * x_row, x_row
                        target = t_data + at * t_bytes
                    elif batch == 1:
                        rows, rows_row = x_data + turn[at] * x_row, x_row
                        target = t_data + turn[at] * t_bytes
                    else:
                        rows, rows_row = self.train.value[0], self.buffers[0].row
                        target = gathered
                        for i in range(batch):
                            row = turn[at + i]
                            memcpy(self.train.value[0] + i * rows_row, x_data + row * x_row, width * sizeof(real))
                            memcpy(gathered + i * gathered_bytes, t_data + row * t_bytes, gathered_bytes)
                    loss = self.walk_step(batch, rows, rows_row, target,
                                          out if target == gathered else t_row, &u, &correct)
                    if self.steps == 0:
                        self.steps = 1
                        with gil:
                            u = self.update(hyper)
                    else:
                        self.steps += 1
                    if not isfinite(loss):
                        bad = at
                        break
                    total += loss
                    at += batch
        finally:
            free(gathered)
            self.training_busy = False
        return total, correct, bad

    def predict(self, x, out=None):
        """Outputs (batch, out_features), in `out` if given, chunk by chunk. Does not disturb a pending backward."""
        cdef cnp.ndarray rows = self.inputs(x), result
        cdef Py_ssize_t batch = cnp.PyArray_DIM(rows, 0), width = self.buffers[self.n_buffers - 1].width
        if out is None:
            result = empty_matrix(batch, width)
        else:
            result = as_out(out, (batch, width), "out", any_rows=True)
            if overlap(result, rows):
                raise ValueError("out: shares memory with x")
        self.infer_rows(rows, result, None, NULL)
        return result

    def evaluate(self, x, y):
        """(mean loss, rows classified right) of x, y; right is 0 without class indices."""
        cdef cnp.ndarray rows = self.inputs(x)
        cdef cnp.ndarray t = self.targets(y, cnp.PyArray_DIM(rows, 0))
        cdef Py_ssize_t correct = 0
        if cnp.PyArray_DIM(rows, 0) == 0:
            raise ValueError("x: expected at least one row to evaluate, got an empty batch")
        return self.infer_rows(rows, None, t, &correct) / cnp.PyArray_DIM(rows, 0), correct

    cdef double infer_rows(self, cnp.ndarray x, cnp.ndarray out, cnp.ndarray t, Py_ssize_t* correct) except? -1:
        """Run x forward in chunks that stay in cache: outputs to out, or the sum of the loss against t."""
        cdef Workspace own
        cdef Workspace* ws = &self.infer
        cdef bint alone = not self.infer_busy
        cdef Py_ssize_t batch = cnp.PyArray_DIM(x, 0), chunk = TILE_MR, at = 0, some, bytes = 0
        cdef Py_ssize_t x_row = row_stride(x), out_row = 0, t_row = 0, t_bytes = 0
        cdef const real* x_data = data(x)
        cdef real* out_data = NULL
        cdef const char* t_data = NULL
        cdef int b, last = self.ops[self.n_ops - 1].dst
        cdef double total = 0
        for b in range(self.n_buffers):
            bytes += self.buffers[b].row * sizeof(real)
        chunk = smaller(larger(CHUNK_BYTES // bytes // TILE_MR, 8) * TILE_MR, larger(batch, 1))
        if out is not None:
            out_data, out_row = data(out), row_stride(out)
        if t is not None:
            t_row = self.target_stride(t)
            t_bytes = t_row * (sizeof(real) if self.loss == LOSS_MSE else sizeof(int64_t))
            t_data = <const char*>cnp.PyArray_DATA(t)
        if alone:
            self.infer_busy = True
        else:                                   # another thread is predicting: work in memory of our own
            memset(&own, 0, sizeof(own))
            ws = &own
        try:
            self.reserve(ws, chunk, False)
            if batch * self.work < GIL_WORK:
                total = self.infer_chunks(ws, batch, chunk, x_data, x_row, out_data, out_row, t_data, t_row, t_bytes,
                                          correct)
            else:
                with nogil:
                    total = self.infer_chunks(ws, batch, chunk, x_data, x_row, out_data, out_row, t_data, t_row,
                                              t_bytes, correct)
        finally:
            if alone:
                self.infer_busy = False
            else:
                self.release(&own)
        return total

    cdef double infer_chunks(self, Workspace* ws, Py_ssize_t batch, Py_ssize_t chunk, const real* x, Py_ssize_t x_row,
                             real* out, Py_ssize_t out_row, const char* t, Py_ssize_t t_row, Py_ssize_t t_bytes,
                             Py_ssize_t* correct) noexcept nogil:
        cdef Py_ssize_t at, some
        cdef int last = self.ops[self.n_ops - 1].dst
        cdef double total = 0
        for at from 0 <= at < batch by chunk:
            some = smaller(chunk, batch - at)
            self.walk_forward(ws, some, x + at * x_row, x_row, False)
            if out != NULL:
                copy_rows(some, self.buffers[last].width, ws.value[last], self.buffers[last].row, out + at * out_row,
                          out_row)
            if t != NULL:
                total += self.loss_and_gradient(ws, some, t + at * t_bytes, t_row, 1, False, correct)
        return total

    # parameters -----------------------------------------------------------------------------------------------------

    def view(self, int op, str what):
        """An array over the memory of an op's "weight" (in, out), "bias" (out,), "grad_weight" or "grad_bias".

        None for the bias of an op without one. The array keeps the program alive.
        """
        cdef const Op* o = &self.ops[op]
        cdef real* block = self.grads if what.startswith("grad_") else self.params
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

    def snapshot(self):
        """A copy of parameters and optimiser state, for restore."""
        cdef cnp.npy_intp n = 2 * self.n_block
        cdef cnp.ndarray copy = cnp.PyArray_EMPTY(1, &n, REAL_TYPE, 0)
        memcpy(data(copy), self.params, self.n_block * sizeof(real))
        memcpy(data(copy) + self.n_block, self.state, self.n_block * sizeof(real))
        return copy, self.steps

    def restore(self, saved):
        """Put back what snapshot returned."""
        cdef cnp.ndarray copy = saved[0]
        memcpy(self.params, data(copy), self.n_block * sizeof(real))
        memcpy(self.state, data(copy) + self.n_block, self.n_block * sizeof(real))
        self.steps = saved[1]
        self.forget("the parameters have been set back since")

    @property
    def nbytes(self):
        """Bytes of the parameter block and the workspaces."""
        cdef Py_ssize_t total = 3 * self.n_block * sizeof(real)
        cdef int b
        for b in range(self.n_buffers):
            total += self.train.capacity * self.buffers[b].row * (3 if self.buffers[b].kept else 2) * sizeof(real)
            total += self.infer.capacity * self.buffers[b].row * sizeof(real)
        return total


def permutation(Py_ssize_t n, uint64_t seed, uint64_t epoch, cnp.ndarray out=None):
    """A random order of 0 .. n - 1 that depends on seed and epoch alone, int64."""
    cdef cnp.ndarray order = np.empty(n, dtype=np.int64) if out is None else out
    cdef int64_t* p = <int64_t*>cnp.PyArray_DATA(order)
    with nogil:
        shuffle(p, n, seed, epoch)
    return order
