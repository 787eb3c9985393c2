# L-BFGS (Nocedal, 1980; Nocedal and Wright, Numerical Optimization, algorithms 7.4 and 7.5), one iteration at a time.
#
# With the parameters w, the gradient g, and pairs s = w' - w, y = g' - g of the last `size` iterations, the two-loop
# recursion gives the direction d = -H g, where H starts from s^T y / y^T y of the newest pair. Then w' = w + t d by the
# line search of line_search.pxi. First trial: t = 1, without pairs 1 / |d|, as in L-BFGS-B, times the learning rate.
#
# The pairs are the optimiser's state in the program, blocks 0 .. size - 1 s and the next `size` y, in turn: pair
# k is in block k % size, and stepper.momentum_steps counts them. All else is of one iteration. Products are sums in
# double in one order. 5 size + 10 sweeps over the parameters an iteration, beside the evaluations.

cdef enum Iteration:
    EVALUATE                # the parameters have been moved: the loss and its gradient there, then `advance`
    MOVED                   # the iteration is done
    FLAT                    # the gradient is as good as zero
    STUCK                   # nothing lower can be found

ITERATION = {"evaluate": EVALUATE, "moved": MOVED, "flat": FLAT, "stuck": STUCK}


cdef double EPSILON = CNN_PICK(1.1920928955078125e-07, 2.220446049250313e-16)


cdef class LBFGS:
    """L-BFGS on a Program whose optimiser has 2 size blocks of state. Private to the library.

    The gradient of the loss is read where `Program.sweep` leaves it. The loss of NaN or infinity, or such a gradient,
    at a trial step makes it a tenth as long.
    """
    cdef Program program
    cdef Arena work
    cdef real* before           # the parameters before the iteration
    cdef real* gradient         # ... and their gradient; after it, that of the new ones
    cdef real* d
    cdef double* alpha          # of each pair: what the first loop has subtracted, and s^T y
    cdef double* curvature
    cdef int size
    cdef LineSearch search
    cdef double rate
    cdef int evaluations        # of this line search
    cdef int most
    cdef bint moving            # an iteration has begun, and is not done

    def __cinit__(self, Program program, int size):
        cdef Py_ssize_t n = program.net.n_block
        self.program, self.size = program, size
        self.before = allocate(&self.work, times(3, n))
        self.gradient, self.d = self.before + n, self.before + 2 * n
        self.alpha = <double*>allocate_plain(2 * size * sizeof(double))
        self.curvature = self.alpha + size

    def __dealloc__(self):
        release(&self.work)
        free(self.alpha)

    @property
    def nbytes(self):
        """Bytes beside those of the program."""
        return self.work.bytes

    cdef inline real* pair(self, Py_ssize_t k, bint y) noexcept nogil:
        """The block of s, or y, of pair k."""
        return self.program.net.state + (k % self.size + (self.size if y else 0)) * self.program.net.n_block

    cdef double aim(self) noexcept nogil:
        """d = -H g with the g in `gradient`; its slope."""
        cdef const Network* net = &self.program.net
        cdef Py_ssize_t n = net.n_block, pairs = self.program.stepper.momentum_steps
        cdef Py_ssize_t k, first = larger(0, pairs - self.size)
        cdef real* s
        cdef real* y
        cdef double beta
        memcpy(self.d, self.gradient, n * sizeof(real))
        scale_block(n, self.d, -1)
        for k in range(pairs - 1, first - 1, -1):
            s, y = self.pair(k, False), self.pair(k, True)
            self.curvature[k % self.size] = dot_block(n, s, y)
            self.alpha[k % self.size] = dot_block(n, s, self.d) / self.curvature[k % self.size]
            add_block(n, self.d, self.d, -self.alpha[k % self.size], y)
        if pairs > 0:
            y = self.pair(pairs - 1, True)
            scale_block(n, self.d, <real>(self.curvature[(pairs - 1) % self.size] / dot_block(n, y, y)))
        for k in range(first, pairs):
            s, y = self.pair(k, False), self.pair(k, True)
            beta = dot_block(n, y, self.d) / self.curvature[k % self.size]
            add_block(n, self.d, self.d, self.alpha[k % self.size] - beta, s)
        clear_frozen(net, self.d)           # pairs may be older than their freezing
        return dot_block(n, self.d, self.gradient)

    cdef void move(self) noexcept nogil:
        add_block(self.program.net.n_block, self.program.net.params, self.before, self.search.t, self.d)

    cdef Iteration start(self, double loss) noexcept nogil:
        """Choose a direction from `before`, and move to the first trial step."""
        cdef Stepper* stepper = &self.program.stepper
        cdef double slope = self.aim(), t = self.rate
        if not (slope < 0 and isfinite(slope)) and stepper.momentum_steps > 0:
            stepper.momentum_steps = 0
            slope = self.aim()
        if not (slope < 0 and isfinite(slope)):
            return STUCK
        if stepper.momentum_steps == 0:
            t = fmin(t / sqrt(-slope), MOST_STEP)
        self.evaluations = 0
        search_begin(&self.search, loss, slope, t, MOST_STEP)
        self.move()
        return EVALUATE

    cdef Iteration take(self, double loss) noexcept nogil:
        cdef Network* net = &self.program.net
        cdef Stepper* stepper = &self.program.stepper
        cdef LineSearch* search = &self.search
        cdef Py_ssize_t n = net.n_block
        cdef double slope = dot_block(n, self.d, net.grads)
        cdef Found found = FOUND_NOTHING
        self.evaluations += 1
        if isfinite(loss) and isfinite(slope):
            found = search_next(search, loss, slope)
        else:
            search_begin(search, search.phi_0, search.slope_0, search.t / 10, search.t / 2)
        if found == FOUND_STEP:
            self.keep(loss, slope)
            memcpy(self.gradient, net.grads, n * sizeof(real))
            stepped(stepper, net)
            return MOVED
        if found == FOUND_NOTHING and self.evaluations < self.most and search.t > 0:
            self.move()
            return EVALUATE
        self.return_to_start()
        if stepper.momentum_steps == 0:
            return STUCK
        stepper.momentum_steps = 0         # once more, along the gradient
        return self.start(search.phi_0)

    cdef void keep(self, double loss, double slope) noexcept nogil:
        """The pair of this step, unless rounding has taken its curvature."""
        cdef Network* net = &self.program.net
        cdef Stepper* stepper = &self.program.stepper
        cdef Py_ssize_t n = net.n_block, k = stepper.momentum_steps
        cdef real* s = self.pair(k, False)
        cdef real* y = self.pair(k, True)
        cdef double curved
        if slope - self.search.slope_0 <= -EPSILON * self.search.slope_0:
            return
        add_block(n, s, net.params, -1, self.before)
        add_block(n, y, net.grads, -1, self.gradient)
        curved = dot_block(n, s, y)
        stepper.momentum_steps = k + 1 if curved > 0 and isfinite(curved) else 0

    cdef void return_to_start(self) noexcept nogil:
        memcpy(self.program.net.params, self.before, self.program.net.n_block * sizeof(real))
        memcpy(self.program.net.grads, self.gradient, self.program.net.n_block * sizeof(real))

    def begin(self, double loss, bint known, double rate, double tolerance, int most):
        """Begin an iteration where the loss is `loss`: what to do next, one of ITERATION. known: the gradient is that
        which the last iteration ended with; rate: the learning rate, above 0; tolerance: the largest number of a
        gradient that is as good as zero; most: evaluations of a line search."""
        cdef Program p = self.program
        cdef Py_ssize_t n = p.net.n_block
        cdef Iteration next = FLAT
        p.enter()
        with nogil:
            memcpy(self.before, p.net.params, n * sizeof(real))
            if not known:
                memcpy(self.gradient, p.net.grads, n * sizeof(real))
            self.rate, self.most = rate, most
            if largest_block(n, self.gradient) > tolerance:
                next = self.start(loss)
            self.moving = next == EVALUATE
        p.training_busy = False
        p.forget("a step has changed the parameters since")
        return next

    def advance(self, double loss):
        """Take the loss at the parameters to which the last call has moved: what to do next, one of ITERATION."""
        cdef Iteration next
        self.program.enter()
        with nogil:
            next = self.take(loss)
            self.moving = next == EVALUATE
        self.program.training_busy = False
        return next

    def back(self):
        """End an iteration that is not done: the parameters are those before it. Whether there was one."""
        was, self.moving = self.moving, False
        if was:
            self.return_to_start()
        return was
