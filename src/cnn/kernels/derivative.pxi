# Derivative products of a compiled network, as Python sees them: checks and memory here, the walks in tangent.pxi.

cdef enum:
    TANGENT_ROWS = 128          # of a chunk: values, gradients and their tangents of a layer stay in L2


cdef class Derivatives:
    """Jacobian-, vector-Jacobian and Hessian-vector products of a Program. Private to the library.

    All in evaluation mode: dropout passes on what it gets, batch normalisation uses the running statistics. They use
    the training workspace, so that a `backward` needs another forward pass afterwards; gradients are left alone.
    """
    cdef Program program
    cdef Tangents t
    cdef void* block_memory

    def __cinit__(self, Program program):
        cdef Py_ssize_t n = program.net.n_block
        self.program = program
        self.t.params = allocate(2 * n, &self.block_memory)
        self.t.grads = self.t.params + n

    def __dealloc__(self):
        release_arena(self.t.memory, self.t.scratch)
        free(self.t.value)
        release_arena(self.block_memory, self.t.params)

    cdef int reserve(self, Py_ssize_t batch) except -1:
        """Room for the tangents of a batch."""
        cdef Network* net = &self.program.net
        cdef Py_ssize_t n
        cdef int b, part
        cdef real* at
        cdef void* memory
        batch = larger(batch, 1)
        if batch <= self.t.capacity:
            return 0
        n = batch * net.widest
        if self.t.value == NULL:
            self.t.value = <real**>calloc(3 * net.n_buffers, sizeof(real*))
            if self.t.value == NULL:
                raise MemoryError()
            self.t.before = self.t.value + net.n_buffers
            self.t.grad = self.t.before + net.n_buffers
        for b in range(net.n_buffers):
            n += 3 * batch * net.buffers[b].row
        at = allocate(n, &memory)
        release_arena(self.t.memory, self.t.scratch)
        self.t.memory = memory
        self.t.capacity = batch
        self.t.scratch = at
        at += batch * net.widest
        for part in range(3):
            for b in range(net.n_buffers):
                self.t.value[part * net.n_buffers + b] = at
                at += batch * net.buffers[b].row
        return 0

    @property
    def nbytes(self):
        """Bytes of the tangents, beside those of the program's workspace."""
        cdef Network* net = &self.program.net
        cdef Py_ssize_t n = net.widest
        cdef int b
        for b in range(net.n_buffers):
            n += 3 * net.buffers[b].row
        return (self.t.capacity * n + 2 * net.n_block) * sizeof(real)

    cdef cnp.ndarray tangent_rows(self, object x_t, Py_ssize_t batch, Py_ssize_t columns, str name, str where):
        cdef cnp.ndarray rows = as_matrix(x_t, columns, name, where)
        if cnp.PyArray_DIM(rows, 0) != batch:
            raise ValueError(f"{name}: expected {batch} rows, as many as x has, got {cnp.PyArray_DIM(rows, 0)}")
        return rows

    cdef int start(self, cnp.ndarray x, object x_t, str x_name, object theta_t, str theta_name) except -1:
        """Claim the training workspace and put x, x' and theta' (None: zero) where the walks read them. The names are
        the caller's, for error messages."""
        cdef Program p = self.program
        cdef Network* net = &p.net
        cdef Py_ssize_t batch = cnp.PyArray_DIM(x, 0)
        cdef cnp.ndarray rows = None
        if x_t is not None:
            rows = self.tangent_rows(x_t, batch, net.buffers[0].width, x_name, p.takes)
        p.enter()
        try:
            p.reserve(&p.train, batch, True, 1)
            self.reserve(batch)
            self.t.parameters = theta_t is not None
            if theta_t is not None:
                p.unpack(theta_t, theta_name, self.t.params)
            self.t.inputs = x_t is not None
            if rows is not None:
                copy_rows(batch, net.buffers[0].width, data(rows), row_stride(rows), self.t.value[0],
                          net.buffers[0].row)
            else:
                memset(self.t.value[0], 0, batch * net.buffers[0].row * sizeof(real))
            copy_rows(batch, net.buffers[0].width, data(x), row_stride(x), p.train.value[0], net.buffers[0].row)
            p.train.training = False
            use_running(net, &p.train)
        except BaseException:
            p.training_busy = False
            raise
        if p.saved != SAVED_NOTHING:
            p.forget("a derivative product has run since")
        return 0

    cdef void run(self, Py_ssize_t first, Py_ssize_t batch) noexcept nogil:
        """Forward with tangents, for some rows."""
        cdef Network* net = &self.program.net
        cdef Workspace* ws = &self.program.train
        walk_forward(net, ws, first, batch, ws.value[0] + first * net.buffers[0].row, net.buffers[0].row, True,
                     ws.panel, 0, net.n_ops)
        walk_tangent(net, ws, &self.t, first, batch, ws.panel)

    def jvp(self, x, x_t, theta_t):
        """(outputs, J (x', theta')), both (batch, out_features). x_t (batch, in_features), theta_t a packed vector; None:
        zero."""
        cdef Program p = self.program
        cdef cnp.ndarray rows = p.inputs(x)
        cdef Py_ssize_t batch = cnp.PyArray_DIM(rows, 0), first
        cdef int last = p.net.n_buffers - 1
        self.start(rows, x_t, "t", theta_t, "parameters")
        try:
            with nogil:
                for first from 0 <= first < batch by TANGENT_ROWS:
                    self.run(first, smaller(TANGENT_ROWS, batch - first))
            return p.rows_of(p.train.value, last, batch), p.rows_of(self.t.value, last, batch)
        finally:
            p.training_busy = False

    cdef void back(self, Py_ssize_t batch, int threads, bint input_grad, bint weights) noexcept nogil:
        """Backward from the gradients of the outputs; those of the parameters go to the block of the results."""
        cdef Network into = self.program.net
        cdef Pass p
        cdef double weight = 0
        cdef Py_ssize_t correct = 0
        into.grads = self.t.grads
        p = self.program.training_pass(batch)
        p.net = &into
        p.gather = p.backward = p.overwrite = True
        p.input_grad = input_grad
        p.weights = weights
        run_pass(&p, threads, &weight, &correct)

    def vjp(self, x, v, int threads, bint parameters):
        """(v^T J with respect to the inputs (batch, in_features), to the parameters as a packed vector or None)."""
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
            forward = p.training_pass(batch)
            p.set_rows(&forward, rows, None)
            forward.gather = forward.forward = forward.keep = True
            with nogil:
                run_pass(&forward, threads, &weight, &correct)
            copy_rows(batch, p.net.outputs, data(g), row_stride(g), p.train.grad[last], p.net.buffers[last].row)
            with nogil:
                self.back(batch, threads, True, parameters)
            return p.rows_of(p.train.grad, 0, batch), p.packed(self.t.grads) if parameters else None
        finally:
            p.training_busy = False

    def second(self, x, y, v, x_t, theta_t, bint inputs, bint gauss_newton=False):
        """(derivative of the gradient of the inputs or None, of the parameters as a packed vector) along (x', theta').

        The gradient is that of the loss with targets y, penalties included, or, with v (batch, out_features), that of
        sum(v outputs). gauss_newton: without the second derivatives of the network, J^T (d2 loss / d outputs2) J.
        """
        cdef Program p = self.program
        cdef Network* net = &p.net
        cdef Workspace* ws = &p.train
        cdef cnp.ndarray rows = p.inputs(x), t = None, g = None, result
        cdef Py_ssize_t batch = cnp.PyArray_DIM(rows, 0), first, n, correct = 0, row, i
        cdef int last = net.n_buffers - 1, o
        cdef double scale = 1
        cdef const real* v_first = NULL
        cdef Pass pass_
        if batch == 0:
            raise ValueError("x: expected at least one row, got none")
        if y is not None:
            t = p.targets(y, batch, "y")
        else:
            g = self.tangent_rows(v, batch, net.outputs, "grad_output", p.gives)
        self.start(rows, x_t, "v", theta_t, "v")
        try:
            row = net.buffers[last].row
            pass_ = p.training_pass(batch)
            p.set_rows(&pass_, rows, t)
            if t is not None:
                scale = loss_scale(&pass_.loss, loss_weight(&pass_.loss, batch, pass_.target, pass_.target_bytes, NULL))
            else:
                v_first = data(g)
            memset(self.t.grads, 0, net.n_block * sizeof(real))
            with nogil:
                for first from 0 <= first < batch by TANGENT_ROWS:
                    n = smaller(TANGENT_ROWS, batch - first)
                    self.run(first, n)
                    if t is not None:
                        loss_hessian_rows(&pass_.loss, n, net.outputs, row_of(ws.value, net, last, first), row,
                                          pass_.target + first * pass_.target_bytes, pass_.target_bytes, NULL, scale,
                                          row_of(self.t.value, net, last, first), row,
                                          row_of(self.t.grad, net, last, first), row)
                        batch_loss(net, &pass_.loss, ws, first, n, pass_.target + first * pass_.target_bytes,
                                   pass_.target_bytes, NULL, scale, True, &correct)
                    else:
                        memset(row_of(self.t.grad, net, last, first), 0, n * row * sizeof(real))
                        copy_rows(n, net.outputs, v_first + first * row_stride(g), row_stride(g),
                                  row_of(ws.grad, net, last, first), row)
                    if not gauss_newton:
                        walk_second(net, ws, &self.t, first, n, inputs, ws.panel)
                if gauss_newton:
                    memcpy(ws.grad[last], self.t.grad[last], batch * row * sizeof(real))
                    self.back(batch, 1, False, True)
                else:
                    for o in range(net.n_ops):
                        if net.ops[o].kind == OP_LINEAR:
                            linear_weight_tangent(net, ws, &self.t, &net.ops[o], batch, ws.panel)
                if t is not None and self.t.parameters:
                    for o in range(net.n_ops):
                        for i in range(weight_size(&net.ops[o]) if net.ops[o].l2 != 0 else 0):
                            self.t.grads[net.ops[o].weight + i] += <real>(
                                2 * net.ops[o].l2 * self.t.params[net.ops[o].weight + i])
            result = p.packed(self.t.grads)
            return p.rows_of(self.t.grad, 0, batch) if inputs else None, result
        finally:
            p.training_busy = False
