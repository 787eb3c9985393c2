# The Gauss-Newton matrix of the loss, G = sum over the rows of J^T H J, with J = d outputs / d parameters of a row and
# H the second derivative of its loss in the outputs; and what Levenberg-Marquardt and Newton's method ask of a program.
#
# With H = R R^T, G is the sum of j^T j over the rows j = r^T J, r a column of R. For JACOBIAN_ROWS rows of the data at
# a time, and each output k, the columns r_k go backward through the network, and the rows j are written from what that
# leaves: for a linear layer x_i dz_j. Then G = G + j^T j, its lower triangle, panel by panel (cholesky.pxi): the rows j
# lie in panels too, so that each product reads memory from end to end and packs nothing.
#
#     G        n outputs P**2 FLOPs, for n rows and P parameters; the rows j cost n outputs P multiplications
#     R        square roots where the outputs do not depend on each other in the loss, else outputs**3 / 3 a row
#
# The order of the parameters is that of `packed`. Those that are not trained have columns of zeros. Pieces of rows, and
# panels of G, are shared among threads; each number of G is one chain in the order of the rows.

cdef enum:
    JACOBIAN_ROWS = 256         # of the data, whose rows j go into G at once
    PIECE = 32                  # of them, that a thread takes at a time


cdef struct Jacobian:
    const Network* net
    Workspace* ws
    const Batch* batch          # all rows of the data
    double scale                # of their loss
    Py_ssize_t first            # rows of the data in this round: the first, how many, and the output
    Py_ssize_t rows
    Py_ssize_t output
    bint full                   # H is not diagonal
    Py_ssize_t root_row
    real* ones                  # (outputs, root_row), the unit matrix, or one row of ones
    real* roots                 # R of each row: (outputs, root_row), or its diagonal
    real* j                     # (JACOBIAN_ROWS, side) for each panel
    real* g
    Panels panels
    real* scratch               # of each thread
    Py_ssize_t scratch_size
    int64_t claimed


cdef void root_of(Py_ssize_t n, Py_ssize_t row, real* h) noexcept nogil:
    """Put R^T with R R^T = H, positive semi-definite, in place of H (n, n): row k is column k of R."""
    cdef Py_ssize_t i, k, l
    cdef double pivot, most = 0
    for i in range(n):
        most = fmax(most, h[i * row + i])
    for k in range(n):
        pivot = h[k * row + k]
        if pivot <= n * EPSILON * most:
            memset(h + k * row, 0, n * sizeof(real))
            continue
        pivot = 1 / sqrt(pivot)
        for i in range(n):
            h[k * row + i] = <real>(h[k * row + i] * pivot) if i >= k else 0
        for i in range(k + 1, n):
            for l in range(i, n):
                h[i * row + l] -= h[k * row + i] * h[k * row + l]


cdef void find_roots(const Jacobian* f, Py_ssize_t first, Py_ssize_t rows) noexcept nogil:
    """R of some rows whose outputs are known."""
    cdef const Network* net = f.net
    cdef const Batch* b = f.batch
    cdef Py_ssize_t at = f.first + first, k, i, size = f.root_row * (net.outputs if f.full else 1)
    cdef int last = net.n_buffers - 1
    cdef real* roots = f.roots + first * size
    for k in range(net.outputs if f.full else 1):
        loss_hessian_rows(&b.loss, rows, net.outputs, row_of(f.ws.value, net, last, first), net.buffers[last].row,
                          b.target + at * b.target_bytes, b.target_bytes, b.weight + at if b.weight != NULL else NULL,
                          f.scale, f.ones + k * f.root_row, 0, roots + k * f.root_row, size)
    for i in range(rows):
        if not counts(b, at + i):
            memset(roots + i * size, 0, size * sizeof(real))
        elif f.full:
            root_of(net.outputs, f.root_row, roots + i * size)
        else:
            for k in range(net.outputs):
                roots[i * size + k] = <real>sqrt(fmax(0, roots[i * size + k]))


cdef inline void copy_vectors(const real* a, Py_ssize_t n, real* b) noexcept nogil:
    """b = a, n numbers and the rest of the last vector."""
    cdef Py_ssize_t i
    for i from 0 <= i < n by VL:
        vf_store(b + i, vf_load(a + i))


cdef void products_of(const real* x, Py_ssize_t n, const real* dz, Py_ssize_t m, real* to) noexcept nogil:
    """to (n, m) = x dz^T. Writes whole vectors, the last beyond the end."""
    cdef Py_ssize_t i, j
    if m == 1:
        for i from 0 <= i < n by VL:
            vf_store(to + i, vf_load_first(x + i, smaller(VL, n - i)) * vf_set(dz[0]))
        return
    for i in range(n):
        for j from 0 <= j < m by VL:
            vf_store(to + i * m + j, vf_set(x[i]) * vf_load(dz + j))


cdef void gradient_of_row(const Jacobian* f, const Op* op, Py_ssize_t i, real* grads, real* sums) noexcept nogil:
    """The gradients of an op's parameters by row i of the workspace alone, into a block of that layout."""
    cdef Network net = f.net[0]
    cdef Workspace ws = f.ws[0]
    cdef Pass p
    cdef Py_ssize_t rows, unit
    cdef Py_ssize_t kept_by_row = op.does.extra_size(op, 1) - op.does.extra_size(op, 0)
    cdef real* grad = row_of(f.ws.grad, f.net, op.dst, i)
    cdef real* extra = f.ws.extra[op.index] + i * kept_by_row
    net.grads = grads
    ws.grad, ws.extra = &grad - op.dst, &extra - op.index
    memset(&p, 0, sizeof(p))
    p.net, p.ws, p.batch.rows = &net, &ws, 1
    p.wants.overwrite = p.wants.frozen_too = True
    op.does.pieces(op, 1, &rows, &unit)
    op.does.weight_gradient(&p, op, 0, rows, row_of(f.ws.value, f.net, op.src, i),
                            f.net.buffers[op.src].row, sums)


cdef void write_row(const Jacobian* f, Py_ssize_t i, real* to, real* grads, real* sums) noexcept nogil:
    """Row j of row i of the workspace, from the gradients that a walk backward has left there."""
    cdef const Network* net = f.net
    cdef const Op* op
    cdef const real* dz
    cdef Py_ssize_t size, q, side = f.panels.side
    cdef real* at = to
    cdef int o
    for o in range(net.n_ops):
        op = &net.ops[o]
        if not op.has_weight and not op.has_bias:
            continue
        if op.does != &LINEAR and (op.trains_weight or op.trains_bias):
            gradient_of_row(f, op, i, grads, sums)
        dz = row_of(f.ws.grad, net, op.dst, i)
        if op.has_weight:
            size = larger(op.rows, 1) * op.columns
            if not op.trains_weight:
                memset(at, 0, size * sizeof(real))
            elif op.does == &LINEAR:
                products_of(row_of(f.ws.value, net, op.src, i), op.n_in, dz, op.n_out, at)
            else:
                memcpy(at, grads + op.weight, size * sizeof(real))
            at += size
        if op.has_bias:
            if not op.trains_bias:
                memset(at, 0, op.n_out * sizeof(real))
            else:
                copy_vectors(dz if op.does == &LINEAR else grads + op.bias, op.n_out, at)
            at += op.n_out
    memset(at, 0, (f.panels.padded - f.panels.n) * sizeof(real))
    for q in range(f.panels.count):
        copy_vectors(to + q * side, side, f.j + (q * JACOBIAN_ROWS + i) * side)


cdef void jacobian_task(void* argument, int thread) noexcept nogil:
    """Pieces of rows: forward, before the first output, and backward, and their rows j."""
    cdef Jacobian* f = <Jacobian*>argument
    cdef const Network* net = f.net
    cdef Workspace* ws = f.ws
    cdef const Batch* b = f.batch
    cdef Py_ssize_t first, rows, i, size = f.root_row * (net.outputs if f.full else 1)
    cdef Py_ssize_t width = net.buffers[0].width
    cdef int last = net.n_buffers - 1
    cdef real* scratch = f.scratch + thread * f.scratch_size
    cdef real* x
    cdef real* seed
    cdef Chunk c
    c.net, c.ws, c.t, c.csr = net, ws, NULL, NULL
    c.all_rows, c.x_row = f.rows, net.buffers[0].row
    c.keep, c.input_grad, c.few = True, False, False
    c.panel = ws.panel + thread * ws.panel_size
    while True:
        first = atomic_add(&f.claimed, 1) * PIECE
        if first >= f.rows:
            break
        rows = smaller(PIECE, f.rows - first)
        c.first, c.batch, c.x = first, rows, row_of(ws.value, net, 0, first)
        if f.output == 0:
            for i in range(first, first + rows):
                x = row_of(ws.value, net, 0, i)
                if counts(b, f.first + i):
                    memcpy(x, b.x + (f.first + i) * b.x_row, width * sizeof(real))
                else:
                    memset(x, 0, width * sizeof(real))
            walk_forward(&c, 0, net.n_ops)
            find_roots(f, first, rows)
        for i in range(first, first + rows):
            seed = row_of(ws.grad, net, last, i)
            memset(seed, 0, net.buffers[last].row * sizeof(real))
            if f.full:
                memcpy(seed, f.roots + i * size + f.output * f.root_row, net.outputs * sizeof(real))
            else:
                seed[f.output] = f.roots[i * size + f.output]
        walk_backward(&c, net.n_ops, net.first_trained if net.frozen else 0)
        for i in range(first, first + rows):
            write_row(f, i, scratch, scratch + f.panels.padded + VL, scratch + f.panels.padded + VL + net.n_block)


cdef void square_task(void* argument, int thread) noexcept nogil:
    """Panels of G: G = G + j^T j, without what the padding would add; on the diagonal tile by tile, each up to it."""
    cdef Jacobian* f = <Jacobian*>argument
    cdef const Panels* n = &f.panels
    cdef Py_ssize_t q, block, i, rows, step
    cdef Product p
    memset(&p, 0, sizeof(p))
    p.k = f.rows
    p.a_row, p.a_col, p.b_row, p.c_row = 1, n.side, n.side, n.side
    p.epilogue = EPILOGUE_ADD
    p.act = IDENTITY
    p.panel = f.ws.panel + thread * f.ws.panel_size
    while True:
        q = atomic_add(&f.claimed, 1)
        if q >= n.count:
            break
        p.b = f.j + q * JACOBIAN_ROWS * n.side
        for block in range(q, n.count):
            rows = smaller(n.side, n.n - block * n.side)
            step = TILE_MR if block == q else n.side
            for i from 0 <= i < rows by step:
                p.m = smaller(step, rows - i)
                p.n = round_up(i + p.m, VL) if block == q else n.side
                p.a = f.j + block * JACOBIAN_ROWS * n.side + i
                p.c = f.g + panel_at(n, q, block) + i * n.side
                product(&p)


cdef class Curvature:
    """What methods of second order ask of a Program: its parameters and gradient at the iterate, steps from there, and
    G with its factor. Private to the library.

    Vectors are packed as `Program.parameters`; the optimiser's first blocks of state hold one number each.
    """
    cdef Program program
    cdef Arena work
    cdef real* before           # the parameters at the iterate, their gradient, and room
    cdef real* gradient
    cdef real* room
    cdef Arena matrices         # G, L, -U^-1, j, vectors and what threads need
    cdef Factor f
    cdef Jacobian jacobian
    cdef real* vector
    cdef real* diagonal
    cdef int threads
    cdef Py_ssize_t roots       # reals of R of a row that there is room for
    cdef bint moving            # an iteration has begun, and is not done
    cdef public object solver   # a note of the optimiser's

    def __cinit__(self, Program program):
        cdef Py_ssize_t n = program.net.n_block
        self.program = program
        self.before = allocate(&self.work, times(3, n))
        self.gradient, self.room = self.before + n, self.before + 2 * n

    def __dealloc__(self):
        release(&self.work)
        release(&self.matrices)
        free(self.f.traces)

    @property
    def nbytes(self):
        """Bytes beside those of the program."""
        return self.work.bytes + self.matrices.bytes

    # the iterate ------------------------------------------------------------------------------------------------------

    def begin(self, bint known):
        """Begin an iteration at the program's parameters. known: the gradient is that which the last one ended with."""
        cdef Program p = self.program
        memcpy(self.before, p.net.params, p.net.n_block * sizeof(real))
        if not known:
            self.keep_gradient()
        clear_frozen(&p.net, self.gradient)
        self.moving = True

    def keep_gradient(self):
        """Note the program's gradient as that at the iterate."""
        memcpy(self.gradient, self.program.net.grads, self.program.net.n_block * sizeof(real))

    def gradients(self):
        """The gradient at the iterate, (n_parameters,) float64; zeros for what is not trained."""
        return packed(&self.program.net, self.gradient).astype(np.float64)

    def move(self, step):
        """Put the parameters `step` (n_parameters,) from the iterate, but for those that are not trained."""
        cdef Program p = self.program
        unpack(&p.net, step, "step", self.room)
        clear_frozen(&p.net, self.room)
        p.enter()
        add_block(p.net.n_block, p.net.params, self.before, 1, self.room)
        p.training_busy = False
        p.forget("a step has changed the parameters since")

    def back(self):
        """End an iteration that is not done: the parameters are those before it. Whether there was one."""
        was, self.moving = self.moving, False
        if was:
            memcpy(self.program.net.params, self.before, self.program.net.n_block * sizeof(real))
            memcpy(self.program.net.grads, self.gradient, self.program.net.n_block * sizeof(real))
        return was

    def done(self):
        """End an iteration at the program's parameters, where its gradient has been computed."""
        self.keep_gradient()
        self.moving = False
        stepped(&self.program.stepper, &self.program.net)

    cdef Py_ssize_t place(self):
        """Of the first parameter in a block."""
        cdef int i
        for i in range(self.program.net.n_ops):
            if self.program.net.ops[i].has_weight:
                return self.program.net.ops[i].weight
            if self.program.net.ops[i].has_bias:
                return self.program.net.ops[i].bias
        return 0

    def number(self, int block):
        """The number that a block of the optimiser's state holds."""
        return float(self.program.net.state[block * self.program.net.n_block + self.place()])

    def set_number(self, int block, double value):
        """Fill a block of the optimiser's state with a number, rounded to the dtype; all of it, as a packed block shows
        it."""
        cdef Py_ssize_t i, n = self.program.net.n_block
        for i in range(n):
            self.program.net.state[block * n + i] = <real>value

    def diagonals(self):
        """Of each parameter, (n_parameters,) float64: 1 if it is trained, its l2, its weight decay."""
        cdef const Network* net = &self.program.net
        cdef const double* table = self.program.stepper.table
        cdef const Op* op
        cdef Py_ssize_t i
        cdef double weight, bias
        cdef int kind, o
        found = []
        for kind in range(3):
            for o in range(net.n_ops):
                op = &net.ops[o]
                weight = bias = 1
                if kind == 1:
                    weight, bias = op.l2, 0
                elif kind == 2 and table != NULL:
                    weight = table[op.weight_group * HYPER_COLUMNS + HYPER_WEIGHT_DECAY]
                    bias = table[op.bias_group * HYPER_COLUMNS + HYPER_WEIGHT_DECAY]
                for i in range(weight_size(op)):
                    self.room[op.weight + i] = <real>weight
                for i in range(bias_size(op)):
                    self.room[op.bias + i] = <real>bias
            clear_frozen(net, self.room)
            found.append(packed(net, self.room).astype(np.float64))
        return found

    # G and its factor -------------------------------------------------------------------------------------------------

    def bytes_of_matrix(self):
        """How much memory G and its factor take, or would take."""
        cdef Panels n = panels_of(self.program.net.n_parameters)
        return times(times(n.padded, n.padded + 2 * n.side + JACOBIAN_ROWS), sizeof(real))

    def begin_matrix(self, int threads):
        """Make room for G, if there is none, and set it to zero. MemoryError if there is not enough."""
        cdef Network* net = &self.program.net
        cdef Jacobian* j = &self.jacobian
        cdef Factor* f = &self.f
        cdef Panels n = panels_of(net.n_parameters)
        cdef Py_ssize_t square = n.side * n.side, triangle = square * (n.count * (n.count + 1) // 2)
        cdef Py_ssize_t of_thread = n.padded + 2 * VL + net.n_block + 2 * round_up(net.widest, 4 * VL)
        cdef Py_ssize_t roots, i
        cdef real* at
        threads = <int>larger(threads, 1)
        j.full = is_row_loss(net.loss.kind)
        j.root_row = round_up(net.outputs, VL)
        roots = j.root_row * (net.outputs if j.full else 1)
        if self.matrices.at == NULL or threads > self.threads or roots > self.roots:
            threads = <int>larger(threads, self.threads)
            release(&self.matrices)
            of_thread = round_up(larger(of_thread, (n.padded + n.side) * n.side), LINE)
            at = allocate(&self.matrices, plus(times(2, triangle), plus(
                n.padded * (n.side + JACOBIAN_ROWS + 3) + roots * (JACOBIAN_ROWS + 1), threads * of_thread)))
            free(f.traces)
            f.traces = NULL
            f.traces = <double*>allocate_plain(n.count * sizeof(double))
            self.threads, self.roots = threads, roots
            j.panels = f.panels = n
            j.g, f.a, f.l = at, at, at + triangle
            f.inverse = at + 2 * triangle
            j.j = f.inverse + n.padded * n.side
            self.vector = j.j + n.padded * JACOBIAN_ROWS
            self.diagonal, f.diagonal = self.vector + n.padded, self.vector + n.padded
            j.ones = self.diagonal + 2 * n.padded
            j.roots = j.ones + roots
            j.scratch = f.square = j.roots + roots * JACOBIAN_ROWS
            j.scratch_size = of_thread
        memset(j.g, 0, triangle * sizeof(real))
        memset(j.ones, 0, roots * sizeof(real))
        for i in range(net.outputs):
            j.ones[i * j.root_row + i if j.full else i] = 1

    def add_rows(self, cnp.ndarray x, cnp.ndarray y, cnp.ndarray w, Py_ssize_t start, Py_ssize_t stop, double whole,
                 int threads):
        """Add the part of rows start .. stop - 1 to G; the arguments are those of `Program.sweep`."""
        cdef Program p = self.program
        cdef Jacobian* j = &self.jacobian
        cdef Pass all_rows
        cdef Py_ssize_t first
        cdef int some
        threads = <int>smaller(larger(threads, 1), self.threads)
        p.enter()
        try:
            p.reserve(&p.train, smaller(JACOBIAN_ROWS, larger(1, stop - start)), True, threads)
            if p.saved != SAVED_NOTHING:
                p.forget("training has gone on since")
            all_rows = p.training_pass(cnp.PyArray_DIM(x, 0), threads)
            p.set_rows(&all_rows, x, y, w)
            p.train.training = True
            use_running(&p.net, &p.train)
            j.net, j.ws, j.batch = &p.net, &p.train, &all_rows.batch
            j.scale = loss_scale(&all_rows.batch.loss, whole)
            with nogil:
                for first from start <= first < stop by JACOBIAN_ROWS:
                    j.first, j.rows = first, smaller(JACOBIAN_ROWS, stop - first)
                    some = threads if j.rows * p.net.outputs * j.panels.n * j.panels.n > 2 * THREAD_WORK else 1
                    for j.output in range(p.net.outputs):
                        j.claimed = 0
                        parallel(jacobian_task, j, some)
                        j.claimed = 0
                        parallel(square_task, j, some)
        finally:
            p.training_busy = False

    @property
    def triangle(self):
        """The memory of G after `begin_matrix`, panel by panel."""
        cdef const Panels* panels = &self.f.panels
        cdef cnp.npy_intp n = panels.side * panels.side * (panels.count * (panels.count + 1) // 2)
        cdef cnp.ndarray a = cnp.PyArray_SimpleNewFromData(1, &n, REAL_TYPE, self.jacobian.g)
        cnp.set_array_base(a, self)
        return a

    def matrix(self):
        """A copy of G, (n_parameters, n_parameters)."""
        cdef Panels n = self.f.panels
        cdef cnp.ndarray g = empty_matrix(n.n, n.n)
        cdef real* to = data(g)
        cdef Py_ssize_t i, k
        for i in range(n.n):
            for k in range(i + 1):
                to[i * n.n + k] = to[k * n.n + i] = self.f.a[panel_at(&n, k // n.side, i // n.side)
                                                             + i % n.side * n.side + k % n.side]
        return g

    def factorize(self, diagonal, int threads):
        """Factor G with `diagonal` (n_parameters,) added to its own: whether it is positive definite then."""
        cdef cnp.ndarray d = as_vector(diagonal, self.f.panels.n, "diagonal")
        cdef Program p = self.program
        cdef Py_ssize_t i
        cdef bint done
        memcpy(self.diagonal, data(d), self.f.panels.n * sizeof(real))
        for i in range(self.f.panels.n, self.f.panels.padded):
            self.diagonal[i] = 1
        threads = <int>smaller(larger(threads, 1), self.threads)
        p.enter()
        try:
            p.reserve(&p.train, 1, True, threads)
            self.f.work, self.f.work_size = p.train.panel, p.train.panel_size
            with nogil:
                done = factorize(&self.f, threads)
        finally:
            p.training_busy = False
        return done

    def solve(self, b):
        """The inverse of what was factored times b (n_parameters,), float64."""
        cdef cnp.ndarray v = as_vector(np.array(b, DTYPE), self.f.panels.n, "b")
        cdef Py_ssize_t n = self.f.panels.n
        memcpy(self.vector, data(v), n * sizeof(real))
        memset(self.vector + n, 0, (self.f.panels.padded - n) * sizeof(real))
        solve(&self.f, self.vector, self.diagonal + self.f.panels.padded)
        memcpy(data(v), self.vector, n * sizeof(real))
        return v.astype(np.float64)

    def trace_of_inverse(self, int threads):
        """The trace of the inverse of what was factored."""
        cdef double trace
        self.program.enter()
        with nogil:
            trace = trace_of_inverse(&self.f, <int>smaller(larger(threads, 1), self.threads))
        self.program.training_busy = False
        return trace - (self.f.panels.padded - self.f.panels.n)
