# Derivative products: derivatives of the walks along a direction (x', theta') in the inputs and the parameters. In the
# comments ' is the derivative along that direction, written _t in names.
#
#     forward    y' = J (x', theta')                                 Jacobian-vector product (jvp)
#     backward   derivative of backward: (dL/dx)' and (dL/dtheta)'   Hessian-vector product (hvp), exact (Pearlmutter,
#                                                                    Neural Computation 6, 1994)
#
# All of them are in evaluation mode, where the model is a function of its input row by row. FLOPs, with P those of one
# product over all layers: a gradient 3 P (forward, dX, dW); jvp 3 P (x W, x' W, x W'); hvp 8 P (these; dX, and dX' and
# dW' of two each): 2.7 times a gradient. Memory is that of two more passes. Nothing is fused here but what the products
# fuse.
#
# The walks are in walk.pxi, what each op does on them stands beside its other functions. theta' lies in a block of the
# layout of the parameters, so that an op's offsets fit, and the results go to another one.
#
# Threads take chunks of rows, and then pieces of the weights' (dL/dtheta)'; no sum depends on them. Where a batch is
# long and the parameters few, or where an op sums over rows as it goes back (norms), threads take segments of the rows
# instead, each with a (dL/dtheta)' of its own, which are added up in order: the segments do not depend on threads.

cdef enum:
    TANGENT_ROWS = 128          # of a chunk: values, gradients and their tangents of a layer stay in L2

cdef struct TangentPass:
    const Network* net
    Workspace* ws
    const Tangents* t
    Py_ssize_t rows
    const real* x
    Py_ssize_t x_row
    const real* x_t             # NULL: zero
    Py_ssize_t x_t_row
    real* y                     # NULL, or where the outputs go, row after row,
    real* y_t                   # ... their tangents,
    real* dx_t                  # ... and those of the inputs' gradients
    Py_ssize_t chunk            # rows
    Py_ssize_t segments         # of chunks
    int threads
    int64_t claimed
    bint passing                # nobody comes back to a row: those of a thread share the room of a chunk
    real* sums                  # (segments, n_block), or NULL
    bint back                   # gradients of the outputs are wanted, and then
    bint second                 # ... walk_second; if not, walk_backward from the tangents
    const Batch* batch          # of the loss, or
    const real* v               # the gradient of the outputs
    Py_ssize_t v_row
    double scale


cdef void put_rows(const Network* net, real** buffers, int b, Py_ssize_t first, Py_ssize_t rows, const real* a,
                   Py_ssize_t a_row) noexcept nogil:
    """Copy the caller's rows to those of a buffer from `first` on."""
    copy_rows(rows, net.buffers[b].width, a, a_row, row_of(buffers, net, b, first), net.buffers[b].row)


cdef void take_rows(const Network* net, real** buffers, int b, Py_ssize_t first, Py_ssize_t rows,
                    real* a) noexcept nogil:
    """Copy rows of a buffer from `first` on to the caller's, one after the other."""
    copy_rows(rows, net.buffers[b].width, row_of(buffers, net, b, first), net.buffers[b].row, a, net.buffers[b].width)


cdef bint sums_in_second(const Network* net) noexcept nogil:
    """Whether an op adds to (dL/dtheta)' row by row."""
    cdef const Op* op
    cdef int i
    for i in range(net.n_ops):
        op = &net.ops[i]
        if (op.has_weight or op.has_bias) and op.does.weight_tangent == no_weight_tangent:
            return True
    return False


cdef Chunk tangent_chunk(const TangentPass* p, const Tangents* t, Py_ssize_t first, Py_ssize_t rows,
                         int thread) noexcept nogil:
    cdef Chunk c
    memset(&c, 0, sizeof(c))
    c.net, c.ws, c.t, c.first, c.batch, c.all_rows = p.net, p.ws, t, first, rows, p.rows
    c.x, c.x_row = row_of(p.ws.value, p.net, 0, first), p.net.buffers[0].row
    c.keep, c.input_grad, c.panel = True, p.dx_t != NULL, p.ws.panel + thread * p.ws.panel_size
    return c


cdef void tangent_rows(const TangentPass* p, const Tangents* t, Py_ssize_t first, Py_ssize_t rows,
                       int thread) noexcept nogil:
    """A chunk: forward with tangents, and what is asked for of the way back."""
    cdef const Network* net = p.net
    cdef Workspace* ws = p.ws
    cdef Py_ssize_t at = thread * p.chunk if p.passing else first        # in the workspace
    cdef Chunk c = tangent_chunk(p, t, at, rows, thread)
    cdef const Batch* b = p.batch
    cdef const Op* op
    cdef const real* weight
    cdef int last = net.n_buffers - 1, i
    cdef Py_ssize_t row = net.buffers[last].row, correct = 0, n
    put_rows(net, ws.value, 0, at, rows, p.x + first * p.x_row, p.x_row)
    if p.x_t != NULL:
        put_rows(net, t.value, 0, at, rows, p.x_t + first * p.x_t_row, p.x_t_row)
    else:
        memset(row_of(t.value, net, 0, at), 0, rows * net.buffers[0].row * sizeof(real))
    walk_forward(&c, 0, net.n_ops)
    walk_tangent(&c)
    if p.y != NULL:
        take_rows(net, ws.value, last, at, rows, p.y + first * net.outputs)
        take_rows(net, t.value, last, at, rows, p.y_t + first * net.outputs)
    if not p.back:
        return
    if b != NULL:
        weight = b.weight + first if b.weight != NULL else NULL
        loss_hessian_rows(&b.loss, rows, net.outputs, row_of(ws.value, net, last, at), row,
                          b.target + first * b.target_bytes, b.target_bytes, weight, p.scale,
                          row_of(t.value, net, last, at), row, row_of(t.grad, net, last, at), row)
        batch_loss(net, &b.loss, ws, at, rows, b.target + first * b.target_bytes, b.target_bytes, weight, p.scale,
                   True, &correct)
    else:
        memset(row_of(t.grad, net, last, at), 0, rows * row * sizeof(real))
        put_rows(net, ws.grad, last, at, rows, p.v + first * p.v_row, p.v_row)
    if p.second:
        walk_second(&c)
        if p.dx_t != NULL:
            take_rows(net, t.grad, 0, at, rows, p.dx_t + first * net.buffers[0].width)
    else:
        copy_rows(rows, row, row_of(t.grad, net, last, at), row, row_of(ws.grad, net, last, at), row)
        walk_backward(&c, net.n_ops, 0)
    for i in range(net.n_ops if p.sums != NULL else 0):
        op = &net.ops[i]
        n = op.n_out if op.transposed else op.n_in
        if p.second:
            op.does.weight_tangent(&c, op, 0, n)
        elif op.has_weight or op.has_bias:
            weight_product(op, True, op.has_bias, 0, n, rows, source(&c, op.src), source_row(&c, op.src),
                           output_gradient(&c, op), row_size(&c, op), net.params, t.grads, NULL, False, NULL, c.panel)


cdef void tangent_task(void* argument, int thread) noexcept nogil:
    cdef TangentPass* p = <TangentPass*>argument
    cdef Tangents t = p.t[0]
    cdef Py_ssize_t chunks = (p.rows + p.chunk - 1) // p.chunk, segment, i
    while True:
        segment = atomic_add(&p.claimed, 1)
        if segment >= p.segments:
            break
        if p.sums != NULL:
            t.grads = p.sums + segment * p.net.n_block
            memset(t.grads, 0, p.net.n_block * sizeof(real))
        for i in range(chunks * segment // p.segments, chunks * (segment + 1) // p.segments):
            tangent_rows(p, &t, i * p.chunk, smaller(p.chunk, p.rows - i * p.chunk), thread)


cdef void weight_tangents_task(void* argument, int thread) noexcept nogil:
    cdef TangentPass* p = <TangentPass*>argument
    cdef Chunk c = tangent_chunk(p, p.t, 0, p.rows, thread)
    cdef Py_ssize_t rows, unit, units, pieces, piece, first, at = 0, claimed = atomic_add(&p.claimed, 1)
    cdef const Op* op
    cdef int i
    for i in range(p.net.n_ops):
        op = &p.net.ops[i]
        pieces = op.does.pieces(op, p.threads, &rows, &unit)
        if pieces == 0 and not op.has_weight and not op.has_bias:
            continue
        units = (rows + unit - 1) // unit
        pieces = larger(1, smaller(pieces, units))
        for piece in range(pieces):
            if at == claimed:
                first = units * piece // pieces * unit
                op.does.weight_tangent(&c, op, first, smaller(rows, units * (piece + 1) // pieces * unit) - first)
                claimed = atomic_add(&p.claimed, 1)
            at += 1


cdef void run_tangents(TangentPass* p) noexcept nogil:
    """All rows, and then what is left to be done of the parameters' part. p.sums, and then p.chunk and p.segments, are
    set already, or NULL."""
    cdef Py_ssize_t s
    if p.rows * p.net.work < THREAD_WORK:
        p.threads = 1
    if p.sums == NULL:
        p.chunk = round_up(larger(1, smaller(TANGENT_ROWS, (p.rows + p.threads - 1) // p.threads)), LOSS_BLOCK)
        p.segments = (p.rows + p.chunk - 1) // p.chunk
    p.claimed = 0
    parallel(tangent_task, p, p.threads)
    if p.sums != NULL:
        for s in range(p.segments):
            add_block(p.net.n_block, p.t.grads, p.t.grads, 1, p.sums + s * p.net.n_block)
    elif p.second:
        p.claimed = 0
        parallel(weight_tangents_task, p, p.threads)


cdef class Derivatives:
    """Jacobian-, vector-Jacobian and Hessian-vector products of a Program. Private to the library.

    All in evaluation mode: dropout passes on what it gets, batch normalisation uses the running statistics. They use
    the training workspace, so that a `backward` needs another forward pass afterwards; gradients are left alone.
    """
    cdef Program program
    cdef Tangents t
    cdef Arena block            # theta' and the results
    cdef Arena sums             # those of segments
    cdef JetSpace* spaces       # of the jets, one for each of n_spaces threads
    cdef int n_spaces

    def __cinit__(self, Program program):
        cdef Py_ssize_t n = program.net.n_block
        self.program = program
        self.t.params = allocate(&self.block, 2 * n)
        self.t.grads = self.t.params + n

    def __dealloc__(self):
        self.release_spaces()
        release(&self.t.arena)
        free(self.t.value)
        release(&self.block)
        release(&self.sums)

    cdef void release_spaces(self) noexcept:
        cdef int thread
        for thread in range(self.n_spaces):
            release_jet_space(&self.spaces[thread])
        free(self.spaces)
        self.spaces, self.n_spaces = NULL, 0

    def jets(self, cnp.ndarray x, cnp.ndarray u, cnp.ndarray du, cnp.ndarray d2u, int threads, bint backward=False,
             bint overwrite=True):
        """Fill u (batch, out, 1), du (batch, out, in) and d2u (batch, out, in), or (batch, out, 1): the Laplacian, or
        (batch, out, 0), with the outputs and their derivatives by each input. x is as `Program.inputs` gives it, the
        others are C-contiguous.

        backward: the three are derivatives of a loss by those numbers, and its gradient in the parameters takes the
        place of the program's gradients, or with overwrite=False is added to them. Parameters that are not trained have
        a gradient of zero.
        """
        cdef Program program = self.program
        cdef const Network* net = &program.net
        cdef Py_ssize_t batch = cnp.PyArray_DIM(x, 0), s
        cdef Jets shape
        cdef JetPass p
        cdef Arena sums
        cdef int thread
        memset(&sums, 0, sizeof(sums))
        memset(&p, 0, sizeof(p))
        jet_shape(net, cnp.PyArray_DIM(d2u, 2), &shape)
        p.net, p.rows, p.x, p.x_row, p.backward = net, batch, data(x), row_stride(x), backward
        p.u, p.du, p.d2u = data(u), data(du), data(d2u)
        p.block = smaller(jet_block(net, &shape), larger(batch, 1))
        p.segments = smaller(most_segments(net) if backward else SEGMENTS, (batch + p.block - 1) // p.block)
        if batch * net.work * shape.parts < THREAD_WORK:
            threads = 1
        threads = <int>larger(1, smaller(threads, p.segments))
        program.enter()
        try:
            if threads > self.n_spaces:
                self.release_spaces()
                self.spaces = <JetSpace*>allocate_plain(threads * sizeof(JetSpace))
                self.n_spaces = threads
            try:
                for thread in range(threads):
                    reserve_jets(net, &self.spaces[thread], p.block, &shape)
                    use_running(net, &self.spaces[thread].ws)
                if backward:
                    p.grads = allocate(&sums, times(p.segments, net.n_block))
            except BaseException:
                self.release_spaces()
                raise
            p.spaces = self.spaces
            with nogil:
                parallel(jet_task, &p, threads)
                if backward:
                    if overwrite:
                        clear_blocks(net, net.grads)
                    for s in range(p.segments):
                        add_block(net.n_block, net.grads, net.grads, 1, p.grads + s * net.n_block)
                    clear_frozen(net, net.grads)
        finally:
            release(&sums)
            program.training_busy = False

    cdef int reserve(self, Py_ssize_t batch) except -1:
        """Room for the tangents of a batch."""
        cdef Network* net = &self.program.net
        cdef Arena arena
        cdef Py_ssize_t n
        cdef int b, part
        cdef real* at
        batch = larger(batch, 1)
        if batch <= self.t.capacity:
            return 0
        if self.t.value == NULL:
            self.t.value = <real**>allocate_plain(3 * net.n_buffers * sizeof(real*))
            self.t.before = self.t.value + net.n_buffers
            self.t.grad = self.t.before + net.n_buffers
        n = batch * net.widest
        for b in range(net.n_buffers):
            n += 3 * batch * net.buffers[b].row
        at = allocate(&arena, n)
        release(&self.t.arena)
        self.t.arena = arena
        self.t.capacity = batch
        self.t.scratch = at
        at += batch * net.widest
        for part in range(3):
            for b in range(net.n_buffers):
                self.t.value[part * net.n_buffers + b] = at
                at += batch * net.buffers[b].row
        return 0

    @property
    def widths(self):
        """Columns of the inputs and of the outputs."""
        return self.program.net.buffers[0].width, self.program.net.outputs

    @property
    def nbytes(self):
        """Bytes of the tangents, beside those of the program's workspace."""
        return self.t.arena.bytes + self.block.bytes + self.sums.bytes

    cdef cnp.ndarray tangent_rows(self, object x_t, Py_ssize_t batch, Py_ssize_t columns, str name, str where):
        cdef cnp.ndarray rows = as_matrix(x_t, columns, name, where)
        if cnp.PyArray_DIM(rows, 0) != batch:
            raise ValueError(f"{name}: expected {batch} rows, as many as x has, got {cnp.PyArray_DIM(rows, 0)}")
        return rows

    cdef cnp.ndarray start(self, TangentPass* pass_, cnp.ndarray x, object x_t, str x_name, object theta_t,
                           str theta_name, int threads, bint back, bint second):
        """Claim the training workspace and set a pass along (x', theta') up, None: zero, with all else zero. Returns
        what keeps x' alive. The names are the caller's, for error messages."""
        cdef Program p = self.program
        cdef Network* net = &p.net
        cdef Py_ssize_t batch = cnp.PyArray_DIM(x, 0), room = threads * <Py_ssize_t>TANGENT_ROWS
        cdef cnp.ndarray rows = None
        memset(pass_, 0, sizeof(TangentPass))
        pass_.net, pass_.ws, pass_.t, pass_.rows, pass_.threads = net, &p.train, &self.t, batch, threads
        pass_.x, pass_.x_row, pass_.back, pass_.second = data(x), row_stride(x), back, second
        if x_t is not None:
            rows = self.tangent_rows(x_t, batch, net.buffers[0].width, x_name, p.takes)
            pass_.x_t, pass_.x_t_row = data(rows), row_stride(rows)
        p.enter()
        try:
            if back:
                self.reserve_sums(pass_)
            pass_.passing = batch > room and (pass_.sums != NULL or not back)
            p.reserve(&p.train, room if pass_.passing else batch, True, threads)
            self.reserve(room if pass_.passing else batch)
            self.t.inputs, self.t.parameters = x_t is not None, theta_t is not None
            if theta_t is not None:
                unpack(net, theta_t, theta_name, self.t.params)
            p.train.training = False
            use_running(net, &p.train)
        except BaseException:
            p.training_busy = False
            raise
        if p.saved != SAVED_NOTHING:
            p.forget("a derivative product has run since")
        return rows

    def jvp(self, x, x_t, theta_t, int threads):
        """(outputs, J (x', theta')), both (batch, out_features). x_t (batch, in_features), theta_t a packed vector;
        None: zero."""
        cdef Program p = self.program
        cdef cnp.ndarray rows = p.inputs(x)
        cdef cnp.ndarray y = empty_matrix(cnp.PyArray_DIM(rows, 0), p.net.outputs)
        cdef cnp.ndarray y_t = empty_matrix(cnp.PyArray_DIM(rows, 0), p.net.outputs)
        cdef TangentPass pass_
        x_t = self.start(&pass_, rows, x_t, "t", theta_t, "parameters", threads, False, False)
        try:
            pass_.y, pass_.y_t = data(y), data(y_t)
            with nogil:
                run_tangents(&pass_)
            return y, y_t
        finally:
            p.training_busy = False

    cdef void back(self, Py_ssize_t batch, int threads, bint rows, bint weights) noexcept nogil:
        """rows: backward from the gradients of the outputs to the inputs; weights: then to the parameters, whose
        gradients go to the block of the results."""
        cdef Network into = self.program.net
        cdef Pass p
        cdef double weight = 0
        cdef Py_ssize_t correct = 0
        into.grads = self.t.grads
        p = self.program.training_pass(batch, threads)
        p.net = &into
        p.wants.gather = p.wants.overwrite = p.wants.frozen_too = True
        p.wants.backward = p.wants.input_grad = rows
        p.wants.weights = weights
        run_pass(&p, &weight, &correct)

    def vjp(self, x, v, int threads, bint parameters, bint outputs=False):
        """(v^T J with respect to the inputs (batch, in_features), to the parameters as a packed vector or None, the
        outputs or None)."""
        cdef Program p = self.program
        cdef cnp.ndarray rows = p.inputs(x), g
        cdef Py_ssize_t batch = cnp.PyArray_DIM(rows, 0), correct = 0
        cdef double weight = 0
        cdef int last = p.net.n_buffers - 1
        cdef Pass forward
        g = self.tangent_rows(v, batch, p.net.outputs, "v", p.gives)
        p.enter()
        try:
            p.reserve(&p.train, batch, True, threads)
            if p.saved != SAVED_NOTHING:
                p.forget("a derivative product has run since")
            p.train.training = False
            forward = p.training_pass(batch, threads)
            p.set_rows(&forward, rows, None)
            forward.wants.gather = forward.wants.forward = forward.wants.keep = True
            with nogil:
                run_pass(&forward, &weight, &correct)
            copy_rows(batch, p.net.outputs, data(g), row_stride(g), p.train.grad[last], p.net.buffers[last].row)
            y = p.rows_of(p.train.value, last, batch) if outputs else None
            with nogil:
                self.back(batch, threads, True, parameters)
            return p.rows_of(p.train.grad, 0, batch), packed(&p.net, self.t.grads) if parameters else None, y
        finally:
            p.training_busy = False

    cdef int reserve_sums(self, TangentPass* p) except -1:
        """Segments with a gradient each, where that is better than one for all rows."""
        cdef Py_ssize_t chunks = (p.rows + TANGENT_ROWS - 1) // TANGENT_ROWS, most = most_segments(p.net), n
        if p.second if sums_in_second(p.net) else chunks >= LEAST_SEGMENTS and most > LEAST_SEGMENTS:
            p.chunk, p.segments = TANGENT_ROWS, smaller(chunks, most)
            n = times(p.segments, p.net.n_block)
            if self.sums.bytes < n * sizeof(real):
                release(&self.sums)
                allocate(&self.sums, n)
            p.sums = self.sums.at
        return 0

    def second(self, x, y, v, x_t, theta_t, bint inputs, int threads, bint gauss_newton=False,
               cnp.ndarray w=None):
        """(derivative of the gradient of the inputs or None, of the parameters as a packed vector) along (x', theta').

        The gradient is that of the loss with targets y, penalties included, or, with v (batch, out_features), that of
        sum(v outputs). w: the rows' weights, or None. gauss_newton: without the second derivatives of the network,
        J^T (d2 loss / d outputs2) J.
        """
        cdef Program p = self.program
        cdef Network* net = &p.net
        cdef cnp.ndarray rows = p.inputs(x), t = None, g = None, dx_t = None
        cdef Py_ssize_t batch = cnp.PyArray_DIM(rows, 0), i
        cdef int o
        cdef Pass loss
        cdef Batch* b = &loss.batch
        cdef TangentPass pass_
        if batch == 0:
            raise ValueError("x: expected at least one row, got none")
        if y is not None:
            t = p.targets(y, batch, "y")
        else:
            g = self.tangent_rows(v, batch, net.outputs, "grad_output", p.gives)
        x_t = self.start(&pass_, rows, x_t, "v", theta_t, "v", threads, True, not gauss_newton)
        try:
            loss = p.training_pass(batch, threads)
            p.set_rows(&loss, rows, t, w)
            pass_.scale = 1
            if inputs:
                dx_t = empty_matrix(batch, net.buffers[0].width)
                pass_.dx_t = data(dx_t)
            if t is not None:
                pass_.batch = b
                pass_.scale = loss_scale(&b.loss, loss_weight(&b.loss, batch, b.target, b.target_bytes, b.weight))
            else:
                pass_.v, pass_.v_row = data(g), row_stride(g)
            memset(self.t.grads, 0, net.n_block * sizeof(real))
            with nogil:
                run_tangents(&pass_)
                if gauss_newton and pass_.sums == NULL:
                    self.back(batch, threads, False, True)
                if t is not None and self.t.parameters:
                    for o in range(net.n_ops):
                        for i in range(weight_size(&net.ops[o]) if net.ops[o].l2 != 0 else 0):
                            self.t.grads[net.ops[o].weight + i] += <real>(
                                2 * net.ops[o].l2 * self.t.params[net.ops[o].weight + i])
            return dx_t, packed(&p.net, self.t.grads)
        finally:
            p.training_busy = False
