# Many models at once: each trains, predicts or is evaluated on one thread, beside the others on other threads.
#
# A Crew has the programs of some models, of one shape or of many. Each has rows of its own, or all share them, and an
# order of the rows, which is made here. A call runs whole epochs; it returns when all are done or a deadline has
# passed, and the next call goes on where it ended. Models do not wait for one another, and share no sum: neither the
# number of threads nor the deadline changes a number. What a model does here is what `Program.train_batches` does.
#
# Models of one shape share a workspace for each thread, so that activations stay in cache from one to the next.

cdef enum:
    CLOCK_WORK = 1 << 18        # multiply-adds between two looks at the clock: some 10 microseconds
    CLOCK_ROWS = 4096           # of batches of one row, likewise

cdef enum:                      # slots: copies of what training changes
    BEFORE                      # the epoch
    BEST                        # of all epochs
    SLOTS

cdef struct Member:
    Network* net
    Stepper* stepper
    int64_t* rows_seen          # the program's
    int shape                   # its number
    Pass rows                   # what is wanted of a batch, and where all rows are
    int64_t* bag                # the rows that it takes, NULL: all
    Py_ssize_t batch_size
    Py_ssize_t accumulate       # batches that make a step
    bint single                 # see online.pxi
    bint active
    bint fresh                  # the epoch has not begun
    bint guarded                # where numbers are not finite, it is put back
    bint shuffled
    uint64_t seed               # of the order
    int64_t epoch
    int64_t* at                 # rows done in this epoch
    Py_ssize_t stop             # rows to do before Python is asked for more rates
    Py_ssize_t n                # rows of an epoch
    int64_t* bad                # first row of the batch whose loss was not finite, or -1
    double* totals              # as those of `Program.train_batches`
    const double* rates         # NULL, or the schedule's for the coming steps
    Py_ssize_t rates_step       # numbers from one step to the next
    int states                  # blocks of optimiser state in use
    Py_ssize_t kept             # where its copies lie in the slots

# An order of rows, which a thread makes for one model and keeps for the next that has the same.
cdef struct Turn:
    int64_t* order
    Py_ssize_t n                # rows there is room for
    Py_ssize_t rows             # ... of which these are in order; 0: none
    uint64_t seed
    int64_t epoch
    const int64_t* bag
    Py_ssize_t of               # rows that are drawn from

cdef struct Crowd:
    Member* members
    Py_ssize_t n
    Workspace* spaces           # of each shape, for each thread
    int shapes
    int threads                 # that there is room for
    int inner                   # threads of one model: several, if it is alone
    Turn* turns
    double** sums               # of each thread: room for the losses of an evaluation
    Arena[SLOTS] slots
    Py_ssize_t slot_size
    int64_t claimed
    int64_t deadline
    int64_t left                # members that are not done
    Py_ssize_t piece            # rows of an evaluation at a time


cdef void copy_state(Member* m, real* slot, bint out) noexcept nogil:
    """Copy all that training changes in a model to its place in a slot, or back."""
    cdef Network* net = m.net
    cdef real* at = slot + m.kept
    cdef Py_ssize_t running = net.n_running * sizeof(double) // sizeof(real)
    cdef int64_t* counts
    cdef int i
    at = copied(net.params, at, net.n_block, out)
    at = copied(net.state, at, m.states * net.n_block, out)
    if m.stepper.average.at != NULL:
        at = copied(m.stepper.average.at, at, net.n_block, out)
    at = copied(net.running, at, net.n_running, out)
    at = copied(<real*>net.running_exact, at, running, out)
    counts = <int64_t*>at
    if out:
        counts[0], counts[1], counts[2] = m.stepper.steps, m.stepper.momentum_steps, m.rows_seen[0]
    else:
        m.stepper.steps, m.stepper.momentum_steps, m.rows_seen[0] = counts[0], counts[1], counts[2]
    for i in range(net.n_ops):
        if net.ops[i].has_running:
            if out:
                counts[3 + i] = net.ops[i].tracked[0]
            else:
                net.ops[i].tracked[0] = counts[3 + i]


cdef real* copied(real* model, real* slot, Py_ssize_t n, bint out) noexcept nogil:
    """Copy n numbers to a slot or back; the place behind them there."""
    if n > 0:
        memcpy(slot if out else model, model if out else slot, n * sizeof(real))
    return slot + n


cdef Py_ssize_t state_size(const Member* m) noexcept nogil:
    """Reals that copy_state copies, in whole cache lines."""
    cdef const Network* net = m.net
    cdef Py_ssize_t n = (1 + m.states + (m.stepper.average.at != NULL)) * net.n_block + net.n_running
    n += (net.n_running * sizeof(double) + (3 + net.n_ops) * sizeof(int64_t)) // sizeof(real)
    return round_up(n, LINE // sizeof(real))


cdef const int64_t* order_of(const Member* m, Turn* turn, Py_ssize_t rows) noexcept nogil:
    """The rows of an epoch in the order in which a model takes them; NULL: as they lie. rows: of its data."""
    cdef Py_ssize_t i
    if not m.shuffled:
        return m.bag
    if turn.rows != rows or turn.seed != m.seed or turn.epoch != m.epoch or turn.bag != m.bag:
        shuffle(turn.order, rows, m.seed, m.epoch)
        if m.bag != NULL:
            for i in range(rows):
                turn.order[i] = m.bag[turn.order[i]]
        turn.rows, turn.seed, turn.epoch, turn.bag = rows, m.seed, m.epoch, m.bag
    return turn.order


# Training -------------------------------------------------------------------------------------------------------------

cdef bint train_member(Crowd* crowd, Member* m, int thread) noexcept nogil:
    """Train a model until `stop`, or the deadline; whether it got there."""
    cdef Stepper* s = m.stepper
    cdef Network* net = m.net
    cdef Workspace* ws = &crowd.spaces[m.shape * crowd.threads + thread]
    cdef const int64_t* order = order_of(m, &crowd.turns[thread], m.rows.batch.rows)
    cdef Pass p = m.rows
    cdef const double* rate = m.rates
    cdef Py_ssize_t at = m.at[0], correct = 0, group = 0, left = 0, done, rows, work = 0
    cdef bint ready = False
    cdef double loss, weight, group_weight = 0, extra
    # row after row without a look back: nothing to be done between two steps
    cdef bint many = m.single and m.batch_size == 1 and rate == NULL and p.batch.out == NULL and s.average.at == NULL
    if m.fresh and m.guarded:
        copy_state(m, crowd.slots[BEFORE].at, True)
    m.fresh = False
    p.ws = ws
    p.batch.losses, p.batch.correct = ws.losses, ws.correct
    ws.training = True
    while at < m.stop:
        if left == 0:
            if work > CLOCK_WORK:
                if nanoseconds() > crowd.deadline:
                    break
                work = 0
            left = group = smaller(m.accumulate, (m.n - at + m.batch_size - 1) // m.batch_size)
            if not ready:
                prepare(s, net, rate)
        p.batch.rows = smaller(m.batch_size, m.n - at)
        p.wants.threads = crowd.inner
        p.wants.gather = m.rows.wants.gather or order != NULL
        p.wants.scale = 1.0 / group
        p.wants.overwrite = left == group
        place_batch(&p.batch, &m.rows.batch, order, at)
        if many and ready:
            rows = smaller(m.stop - at, CLOCK_ROWS)
            done = train_rest(&p, s, rows, m.totals, &correct)
            m.rows_seen[0] += done
            at += done
            if done < rows:
                m.bad[0] = at
                break
            work = CLOCK_WORK + 1
            continue
        ws.row0 = m.rows_seen[0]
        m.rows_seen[0] += p.batch.rows
        weight = extra = 0
        loss = train_batch(&p, s, m.single, &weight, &correct)
        work += larger(p.batch.rows * net.work, 1000)
        if not isfinite(loss):
            m.bad[0] = at
            break
        left -= 1
        group_weight = weight if p.wants.overwrite else group_weight + weight
        if left == 0:
            if s.unfused:
                extra = finish(s, net)
            stepped(s, net)
            if rate != NULL:
                rate += m.rates_step
            ready = not prepared_again(s, rate)
        m.totals[0] += loss + extra * (group_weight if net.loss.mean else 1)
        m.totals[1] += weight
        m.totals[3] += p.batch.rows
        at += p.batch.rows
    m.totals[2] += correct
    if m.guarded and m.bad[0] < 0 and at >= m.n and not all_finite(net.params, net.n_block):
        m.bad[0] = at           # the last step made numbers that no loss has seen
    if m.bad[0] >= 0:
        if m.guarded:
            copy_state(m, crowd.slots[BEFORE].at, False)
        memset(ws.arena.at, 0, ws.arena.bytes)      # for the next model, padding is to be zero and not NaN
        m.active = False
    m.rates = rate
    m.at[0] = at
    return m.bad[0] >= 0 or at >= m.stop


cdef void place_batch(Batch* batch, const Batch* rows, const int64_t* order, Py_ssize_t at) noexcept nogil:
    """Let a batch begin at a row of all rows, in their order if they have one."""
    batch.target, batch.target_bytes, batch.weight = rows.target, rows.target_bytes, rows.weight
    if order != NULL:
        batch.order = order + at
    else:
        batch.x = rows.x + at * rows.x_row
        batch.target += at * rows.target_bytes
        if rows.weight != NULL:
            batch.weight += at
    if rows.out != NULL:
        batch.out = rows.out + at * rows.out_row


cdef void train_task(void* argument, int thread) noexcept nogil:
    cdef Crowd* crowd = <Crowd*>argument
    cdef Member* m
    cdef Py_ssize_t i, done = 0         # the first member gets somewhere, whatever the clock says
    while True:
        i = atomic_add(&crowd.claimed, 1)
        if i >= crowd.n:
            break
        m = &crowd.members[i]
        if m.active and m.at[0] < m.stop:
            if done > 0 and nanoseconds() > crowd.deadline or not train_member(crowd, m, thread):
                atomic_add(&crowd.left, 1)
            done += 1


# Prediction and evaluation --------------------------------------------------------------------------------------------

cdef void infer_member(Crowd* crowd, Member* m, int thread) noexcept nogil:
    """Outputs of all rows, and with targets the sums of the loss, in pieces as `evaluate` has them."""
    cdef Pass p
    cdef Py_ssize_t at = 0, n = m.rows.batch.rows, correct = 0
    cdef double weight = 0
    while at < n:
        p = m.rows
        p.ws = &crowd.spaces[m.shape * crowd.threads + thread]
        p.ws.training = False
        p.wants.threads = crowd.inner
        p.phase.chunk = smaller(p.ws.capacity // crowd.inner, n)
        p.batch.rows = smaller(crowd.piece, n - at)
        place_batch(&p.batch, &m.rows.batch, NULL, at)
        p.batch.losses = crowd.sums[thread]
        p.batch.correct = <Py_ssize_t*>(p.batch.losses + crowd.piece // LOSS_BLOCK + 1)
        m.totals[0] += run_pass(&p, &weight, &correct)
        at += crowd.piece
    m.totals[1] += weight
    m.totals[2] += correct


cdef void infer_task(void* argument, int thread) noexcept nogil:
    cdef Crowd* crowd = <Crowd*>argument
    cdef Py_ssize_t i, done = 0
    while True:
        i = atomic_add(&crowd.claimed, 1)
        if i >= crowd.n:
            break
        if crowd.members[i].active:
            done += 1
            if done > 1 and nanoseconds() > crowd.deadline:
                atomic_add(&crowd.left, 1)
                continue
            infer_member(crowd, &crowd.members[i], thread)
            crowd.members[i].active = False


# What Python calls ----------------------------------------------------------------------------------------------------

cdef bint same_shape(const Network* net, const Network* other) noexcept nogil:
    """Whether two networks can share a workspace."""
    cdef int b
    if not alike(net, other) or net.n_buffers != other.n_buffers or net.widest != other.widest:
        return False
    for b in range(net.n_buffers):
        if net.buffers[b].row != other.buffers[b].row or net.buffers[b].preactivation != other.buffers[b].preactivation:
            return False
    for b in range(net.n_ops):
        if net.ops[b].n_src != other.ops[b].n_src or net.ops[b].src != other.ops[b].src:
            return False
    return net.outputs == other.outputs and net.scratch == other.scratch


cdef class Crew:
    """Programs that train, predict or are evaluated together. Private to the library.

    Parameters
    ----------
    programs : list of Program
        Different ones.
    training : bool
        Whether it is to train, or to predict and evaluate.

    Attributes
    ----------
    totals : ndarray of shape (members, 4), float64
        Of each: the sum of the loss over the rows, of the rows' weights, of rows classified right, of rows.
    at : ndarray of shape (members,), int64
        Rows done in the epoch.
    bad : ndarray of shape (members,), int64
        First row of the batch whose loss was not finite, or the number of rows, if the parameters are not finite after
        them; -1: all is well. Such a member is as it was before the epoch, and not active any more.
    """
    cdef list programs
    cdef bint training
    cdef Crowd crowd
    cdef object held            # arrays that members point into
    cdef object rates
    cdef readonly object totals
    cdef readonly object at
    cdef readonly object bad

    def __cinit__(self, list programs, bint training):
        cdef Crowd* c = &self.crowd
        cdef Py_ssize_t i, shape, n = len(programs)
        cdef Program program
        cdef Member* m
        self.programs, self.training = programs, training
        self.totals, self.at, self.bad = np.zeros((n, 4)), np.zeros(n, np.int64), np.full(n, -1, np.int64)
        c.members = <Member*>allocate_plain(n * sizeof(Member))
        c.n = n
        firsts = []
        for i in range(n):
            program = programs[i]
            m = &c.members[i]
            m.net, m.stepper, m.rows_seen = &program.net, &program.stepper, &program.rows_seen
            m.at = <int64_t*>cnp.PyArray_DATA(<cnp.ndarray>self.at) + i
            m.bad = <int64_t*>cnp.PyArray_DATA(<cnp.ndarray>self.bad) + i
            m.totals = <double*>cnp.PyArray_DATA(<cnp.ndarray>self.totals) + 4 * i
            for shape in range(len(firsts)):
                if same_shape(m.net, &(<Program>programs[firsts[shape]]).net):
                    break
            else:
                shape = len(firsts)
                firsts.append(i)
            m.shape = <int>shape
        c.shapes = <int>len(firsts)

    def __dealloc__(self):
        cdef int slot
        self.release_spaces()
        for slot in range(SLOTS):
            release(&self.crowd.slots[slot])
        free(self.crowd.members)

    cdef void release_spaces(self) noexcept:
        cdef Crowd* c = &self.crowd
        cdef Py_ssize_t i
        for i in range(c.shapes * c.threads):
            release_workspace(&c.spaces[i])
        for i in range(c.threads):
            free(c.turns[i].order)
            free(c.sums[i])
        free(c.spaces)
        free(c.turns)
        free(c.sums)
        c.spaces, c.turns, c.sums, c.threads = NULL, NULL, NULL, 0

    cdef int make_room(self, int threads) except -1:
        """Workspaces, and room for orders or sums, for this call of so many threads."""
        cdef Crowd* c = &self.crowd
        cdef Py_ssize_t i, rows, most = 0, active = 0
        cdef Member* m
        cdef int t
        for i in range(c.n):
            active += c.members[i].active
        c.inner = 1 if active > 1 else threads
        threads = <int>smaller(threads, active) if active > 1 else 1
        if threads > c.threads:
            self.release_spaces()
            c.spaces = <Workspace*>allocate_plain(c.shapes * threads * sizeof(Workspace))
            c.turns = <Turn*>allocate_plain(threads * sizeof(Turn))
            c.sums = <double**>allocate_plain(threads * sizeof(double*))
            c.threads = threads
        for i in range(c.n):
            m = &c.members[i]
            if not m.active:
                continue
            rows = smaller(m.batch_size, m.n) if self.training else infer_rows(m.net, m.rows.batch.rows) * c.inner
            for t in range(threads):
                reserve(m.net, &c.spaces[m.shape * c.threads + t], rows, self.training, c.inner)
            most = larger(most, m.rows.batch.rows)
        for t in range(threads):
            if not self.training and c.sums[t] == NULL:
                c.sums[t] = <double*>allocate_plain((c.piece // LOSS_BLOCK + 1) * (sizeof(double) + sizeof(Py_ssize_t)))
            if self.training and c.turns[t].of < most:
                free(c.turns[t].order)
                memset(&c.turns[t], 0, sizeof(Turn))
                c.turns[t].order = <int64_t*>allocate_plain(most * sizeof(int64_t))
                c.turns[t].of = most
            c.turns[t].rows = 0         # another call may have other rows at the same place
        return threads

    cdef int run(self, task_function task, int threads, int64_t deadline) except -1:
        cdef Crowd* c = &self.crowd
        c.claimed = c.left = 0
        c.deadline = deadline
        with nogil:
            parallel(task, c, threads)
        return 0

    def set_rows(self, xs, ys, ws=None, bags=None, outs=None):
        """The rows of each member, as `Program.inputs`, `targets` and `weights` give them: lists of arrays, or of one
        that all share. bags: int64, the rows that a member takes; outs: where its outputs go, in the order in which the
        rows are taken."""
        cdef Py_ssize_t i
        cdef Member* m
        cdef Program program
        cdef cnp.ndarray x, out
        self.held = xs, ys, ws, bags, outs
        for i in range(self.crowd.n):
            m = &self.crowd.members[i]
            program = self.programs[i]
            x, y, w, bag = (None if a is None else a[i if len(a) > 1 else 0] for a in (xs, ys, ws, bags))
            memset(&m.rows, 0, sizeof(Pass))
            m.rows.net = m.net
            m.rows.wants.scale = 1
            m.rows.wants.forward = True
            program.set_rows(&m.rows, x, y, w)
            m.rows.batch.rows = cnp.PyArray_DIM(x, 0)
            m.bag = NULL if bag is None else <int64_t*>cnp.PyArray_DATA(<cnp.ndarray>bag)
            if outs is not None:
                out = outs[i]
                m.rows.batch.out, m.rows.batch.out_row = data(out), row_stride(out)

    def begin(self, cnp.ndarray active, cnp.ndarray seeds, cnp.ndarray epochs, cnp.ndarray rows, Py_ssize_t batch_size,
              Py_ssize_t accumulate, bint shuffled, states,
              bint guarded=True):
        """Before an epoch of the active members (bool); seeds (uint64) and epochs (int64) of the order of the rows, and
        how many of the rows (int64) an epoch takes. states: blocks of optimiser state of each. guarded: a member whose
        loss or parameters are not finite becomes what it was before."""
        cdef Py_ssize_t i
        cdef Member* m
        cdef Program program
        self.totals[active] = 0
        self.at[active] = 0
        self.bad[active] = -1
        for i in range(self.crowd.n):
            m = &self.crowd.members[i]
            m.active = (<const char*>cnp.PyArray_DATA(active))[i]
            m.fresh = True
            m.seed = (<const uint64_t*>cnp.PyArray_DATA(seeds))[i]
            m.epoch = (<const int64_t*>cnp.PyArray_DATA(epochs))[i]
            m.n = (<const int64_t*>cnp.PyArray_DATA(rows))[i]
            m.batch_size, m.accumulate, m.shuffled, m.states = batch_size, accumulate, shuffled, states[i]
            m.guarded = guarded
        if guarded:
            self.slot(BEFORE)

    def train(self, cnp.ndarray stops, rates, int threads, double seconds):
        """Train the active members to these rows of the epoch (int64), for about so many seconds at most; how many have
        not got there. rates: None, or for each member None or as `rates_of` has them, and how many rows of them are
        left after a step: 1, or 0 where one row holds for all steps."""
        cdef Py_ssize_t i
        cdef Member* m
        cdef Program program
        cdef cnp.ndarray table
        for i in range(self.crowd.n):
            m = &self.crowd.members[i]
            program = self.programs[i]
            if not m.active:
                continue
            program.has_optimizer()
            m.stop = (<const int64_t*>cnp.PyArray_DATA(stops))[i]
            m.stepper.unfused = m.accumulate > 1 or needs_gradients(m.stepper)
            m.single = m.rows.batch.weight == NULL and program.single(None)
            m.rows.wants.keep = m.rows.wants.backward = m.rows.wants.weights = True
            program.forget("fit has run since")
            if rates is not None and rates[i] is not None:
                table = rates[i][0]
                m.rates = <const double*>cnp.PyArray_DATA(table)
                m.rates_step = (m.stepper.groups + 1) * <Py_ssize_t>rates[i][1]
            elif m.fresh:
                m.rates = NULL
        if rates is not None:
            self.rates = rates          # kept alive
        threads = self.make_room(threads)
        self.claim(True)
        try:
            self.run(train_task, threads, nanoseconds() + <int64_t>(1e9 * seconds))
        finally:
            self.claim(False)
        return self.crowd.left

    cdef int claim(self, bint busy) except -1:
        """Take all programs for training, or let go of them."""
        cdef Program program
        for program in self.programs:
            if busy and program.training_busy:
                raise RuntimeError("another thread is training one of these models, or running it forward")
        for program in self.programs:
            program.training_busy = busy
        return 0

    cdef int slot(self, int slot) except -1:
        """Make room in a slot."""
        cdef Crowd* c = &self.crowd
        cdef Py_ssize_t i, n = 0
        for i in range(c.n):
            c.members[i].kept = n
            n += state_size(&c.members[i])
        if c.slots[slot].bytes != <size_t>n * sizeof(real):
            release(&c.slots[slot])
            allocate(&c.slots[slot], n)
        return 0

    def keep(self, cnp.ndarray which, bint before):
        """Keep these members (bool) as the best: as they are, or as they were before the epoch."""
        cdef Crowd* c = &self.crowd
        cdef Member* m
        cdef Py_ssize_t i
        self.slot(BEST)
        for i in range(c.n):
            m = &c.members[i]
            if (<const char*>cnp.PyArray_DATA(which))[i]:
                if before:
                    memcpy(c.slots[BEST].at + m.kept, c.slots[BEFORE].at + m.kept, state_size(m) * sizeof(real))
                else:
                    copy_state(m, c.slots[BEST].at, True)

    def restore(self, cnp.ndarray which, bint before):
        """Make these members what they were at their best, or before the epoch."""
        cdef Py_ssize_t i
        for i in range(self.crowd.n):
            if (<const char*>cnp.PyArray_DATA(which))[i]:
                copy_state(&self.crowd.members[i], self.crowd.slots[BEFORE if before else BEST].at, False)
                (<Program>self.programs[i]).forget("fit has set the parameters back since")

    def infer(self, cnp.ndarray active, int threads, Py_ssize_t piece, double seconds):
        """Run these members (bool) forward on their rows, `piece` rows at a time, for about so many seconds: outputs go
        to `outs`, sums to `totals`. How many are left; with active None, the next call does these."""
        cdef Py_ssize_t i
        if active is not None:
            self.totals[active] = 0
            for i in range(self.crowd.n):
                self.crowd.members[i].active = (<const char*>cnp.PyArray_DATA(active))[i]
        self.crowd.piece = piece
        self.run(infer_task, self.make_room(threads), nanoseconds() + <int64_t>(1e9 * seconds))
        return self.crowd.left


cdef Py_ssize_t infer_rows(const Network* net, Py_ssize_t rows) noexcept nogil:
    """Rows of a chunk whose activations stay in cache."""
    cdef Py_ssize_t bytes = 0
    cdef int b
    for b in range(net.n_buffers):
        bytes += net.buffers[b].row * sizeof(real)
    return smaller(larger(CHUNK_BYTES // bytes // LOSS_BLOCK, 1) * LOSS_BLOCK, larger(rows, 1))
