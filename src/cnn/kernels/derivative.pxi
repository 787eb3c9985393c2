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

cdef enum:
    TANGENT_ROWS = 128          # of a chunk: values, gradients and their tangents of a layer stay in L2


cdef class Derivatives:
    """Jacobian-, vector-Jacobian and Hessian-vector products of a Program. Private to the library.

    All in evaluation mode: dropout passes on what it gets, batch normalisation uses the running statistics. They use
    the training workspace, so that a `backward` needs another forward pass afterwards; gradients are left alone.
    """
    cdef Program program
    cdef Tangents t
    cdef Arena block            # theta' and the results

    def __cinit__(self, Program program):
        cdef Py_ssize_t n = program.net.n_block
        self.program = program
        self.t.params = allocate(&self.block, 2 * n)
        self.t.grads = self.t.params + n

    def __dealloc__(self):
        release(&self.t.arena)
        free(self.t.value)
        release(&self.block)

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
    def nbytes(self):
        """Bytes of the tangents, beside those of the program's workspace."""
        return self.t.arena.bytes + self.block.bytes

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
                unpack(net, theta_t, theta_name, self.t.params)
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

    cdef Chunk rows(self, Py_ssize_t first, Py_ssize_t batch, bint input_grad) noexcept nogil:
        """Some rows of those that `start` has put into the workspace."""
        cdef Network* net = &self.program.net
        cdef Workspace* ws = &self.program.train
        cdef Chunk c
        c.net, c.ws, c.t = net, ws, &self.t
        c.first, c.batch, c.all_rows = first, batch, batch
        c.x, c.x_row, c.csr = row_of(ws.value, net, 0, first), net.buffers[0].row, NULL
        c.keep, c.input_grad, c.few, c.panel = True, input_grad, False, ws.panel
        return c

    cdef void run(self, const Chunk* c) noexcept nogil:
        """Forward with tangents."""
        walk_forward(c, 0, c.net.n_ops)
        walk_tangent(c)

    def jvp(self, x, x_t, theta_t):
        """(outputs, J (x', theta')), both (batch, out_features). x_t (batch, in_features), theta_t a packed vector;
        None: zero."""
        cdef Program p = self.program
        cdef cnp.ndarray rows = p.inputs(x)
        cdef Py_ssize_t batch = cnp.PyArray_DIM(rows, 0), first
        cdef int last = p.net.n_buffers - 1
        cdef Chunk c
        self.start(rows, x_t, "t", theta_t, "parameters")
        try:
            with nogil:
                for first from 0 <= first < batch by TANGENT_ROWS:
                    c = self.rows(first, smaller(TANGENT_ROWS, batch - first), False)
                    self.run(&c)
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
        p = self.program.training_pass(batch, threads)
        p.net = &into
        p.wants.gather = p.wants.backward = p.wants.overwrite = p.wants.frozen_too = True
        p.wants.input_grad = input_grad
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

    def second(self, x, y, v, x_t, theta_t, bint inputs, bint gauss_newton=False, cnp.ndarray w=None):
        """(derivative of the gradient of the inputs or None, of the parameters as a packed vector) along (x', theta').

        The gradient is that of the loss with targets y, penalties included, or, with v (batch, out_features), that of
        sum(v outputs). w: the rows' weights, or None. gauss_newton: without the second derivatives of the network,
        J^T (d2 loss / d outputs2) J.
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
        cdef Batch* b = &pass_.batch
        cdef Chunk c
        if batch == 0:
            raise ValueError("x: expected at least one row, got none")
        if y is not None:
            t = p.targets(y, batch, "y")
        else:
            g = self.tangent_rows(v, batch, net.outputs, "grad_output", p.gives)
        self.start(rows, x_t, "v", theta_t, "v")
        try:
            row = net.buffers[last].row
            pass_ = p.training_pass(batch, 1)
            p.set_rows(&pass_, rows, t, w)
            if t is not None:
                scale = loss_scale(&b.loss, loss_weight(&b.loss, batch, b.target, b.target_bytes, b.weight))
            else:
                v_first = data(g)
            memset(self.t.grads, 0, net.n_block * sizeof(real))
            with nogil:
                for first from 0 <= first < batch by TANGENT_ROWS:
                    n = smaller(TANGENT_ROWS, batch - first)
                    c = self.rows(first, n, inputs)
                    self.run(&c)
                    if t is not None:
                        loss_hessian_rows(&b.loss, n, net.outputs, row_of(ws.value, net, last, first), row,
                                          b.target + first * b.target_bytes, b.target_bytes,
                                          b.weight + first if b.weight != NULL else NULL, scale,
                                          row_of(self.t.value, net, last, first), row,
                                          row_of(self.t.grad, net, last, first), row)
                        batch_loss(net, &b.loss, ws, first, n, b.target + first * b.target_bytes, b.target_bytes,
                                   b.weight + first if b.weight != NULL else NULL,
                                   scale, True, &correct)
                    else:
                        memset(row_of(self.t.grad, net, last, first), 0, n * row * sizeof(real))
                        copy_rows(n, net.outputs, v_first + first * row_stride(g), row_stride(g),
                                  row_of(ws.grad, net, last, first), row)
                    if not gauss_newton:
                        walk_second(&c)
                if gauss_newton:
                    memcpy(ws.grad[last], self.t.grad[last], batch * row * sizeof(real))
                    self.back(batch, 1, False, True)
                else:
                    c = self.rows(0, batch, inputs)
                    for o in range(net.n_ops):
                        net.ops[o].does.weight_tangent(&c, &net.ops[o])
                if t is not None and self.t.parameters:
                    for o in range(net.n_ops):
                        for i in range(weight_size(&net.ops[o]) if net.ops[o].l2 != 0 else 0):
                            self.t.grads[net.ops[o].weight + i] += <real>(
                                2 * net.ops[o].l2 * self.t.params[net.ops[o].weight + i])
            result = packed(&p.net, self.t.grads)
            return p.rows_of(self.t.grad, 0, batch) if inputs else None, result
        finally:
            p.training_busy = False
