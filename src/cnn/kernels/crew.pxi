# Crews: teams of models on threads, prediction and evaluation, and what Python calls. See members.pxi.

cdef void choose_lanes(Crowd* crowd, bint allowed) noexcept nogil:
    """Let members be in lanes where enough neighbours of the same shape, and with as many rows, can be. It does not
    depend on which of them are still trained: the numbers of a member do not change where others stop."""
    cdef Py_ssize_t i, first = 0
    cdef Member* m
    for i in range(crowd.n + 1):
        if i < crowd.n:
            m = &crowd.members[i]
            m.lanes = allowed and lanes_fit(m)
            if i == first or m.lanes and crowd.members[first].lanes and lanes_alike(&crowd.members[first], m):
                continue
        if i - first < LANE_LEAST:
            while first < i:
                crowd.members[first].lanes = False
                first += 1
        first = i


cdef void team_up(Crowd* crowd, int threads) noexcept nogil:
    """Put the members that are left to train in teams: neighbours that share vectors, or one alone."""
    cdef Py_ssize_t i, n = 0, size = 0, most = 1
    cdef Member* m
    cdef Member* first = NULL
    crowd.n_teams = 0
    for i in range(crowd.n):
        m = &crowd.members[i]
        if not left_to_train(m):
            continue
        if size == 0 or size == most or not first.lanes or not m.lanes or not lanes_alike(first, m) \
                or first.at[0] != m.at[0] or first.stop != m.stop:
            crowd.firsts[crowd.n_teams] = n
            crowd.n_teams += 1
            size, first = 0, m
            most = VL if crowd.n < 3 * VL * threads else lanes_of(m)
        crowd.teams[n] = i
        n += 1
        size += 1
    crowd.firsts[crowd.n_teams] = n


cdef void train_task(void* argument, int thread) noexcept nogil:
    cdef Crowd* crowd = <Crowd*>argument
    cdef Member* team[MOST_ABREAST]
    cdef const Py_ssize_t* first
    cdef Py_ssize_t i, done = 0         # at least one team runs, even after the deadline
    cdef int l, count
    cdef bint all_done
    while True:
        i = atomic_add(&crowd.claimed, 1)
        if i >= crowd.n_teams:
            break
        first, count = crowd.teams + crowd.firsts[i], <int>(crowd.firsts[i + 1] - crowd.firsts[i])
        for l in range(MOST_ABREAST):       # a lane without a model has the first one's numbers
            team[l] = &crowd.members[first[l if l < count else 0]]
        if done > 0 and nanoseconds() > crowd.deadline:
            all_done = False
        elif team[0].lanes:
            all_done = train_lanes(crowd, team, count, thread)
        else:
            all_done = train_member(crowd, team[0], thread)
        if not all_done:
            atomic_add(&crowd.left, 1)
        done += 1


# Prediction and evaluation --------------------------------------------------------------------------------------------

cdef void infer_member(Crowd* crowd, Member* m, int thread) noexcept nogil:
    """Outputs of all rows, and with targets the sums of the loss, in pieces as `evaluate` has them."""
    cdef Pass p
    cdef Py_ssize_t at = 0, n = m.rows.batch.rows, correct = 0, piece = crowd.pieces[m - crowd.members]
    cdef double weight = 0
    while at < n:
        p = m.rows
        p.ws = &crowd.spaces[m.shape * crowd.threads + thread]
        p.ws.training = False
        p.wants.threads = crowd.inner
        p.phase.chunk = smaller(p.ws.capacity // crowd.inner, n)
        p.batch.rows = smaller(piece, n - at)
        from_row(&p.batch, &m.rows.batch, at)
        p.batch.losses = crowd.sums[thread]
        p.batch.correct = <Py_ssize_t*>(p.batch.losses + crowd.piece // LOSS_BLOCK + 1)
        m.totals[0] += run_pass(&p, &weight, &correct)
        at += piece
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
    cdef public bint lanes      # whether models may share vectors
    cdef readonly object totals
    cdef readonly object at
    cdef readonly object bad

    def __cinit__(self, list programs, bint training):
        cdef Crowd* c = &self.crowd
        cdef Py_ssize_t i, shape, n = len(programs)
        cdef Program program
        cdef Member* m
        self.programs, self.training, self.lanes = programs, training, True
        self.totals, self.at, self.bad = np.zeros((n, 4)), np.zeros(n, np.int64), np.full(n, -1, np.int64)
        c.members = <Member*>allocate_plain(n * sizeof(Member))
        c.teams = <Py_ssize_t*>allocate_plain(n * sizeof(Py_ssize_t))
        c.firsts = <Py_ssize_t*>allocate_plain((n + 1) * sizeof(Py_ssize_t))
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
        free(self.crowd.teams)
        free(self.crowd.firsts)

    cdef void release_spaces(self) noexcept:
        cdef Crowd* c = &self.crowd
        cdef Py_ssize_t i
        for i in range(c.shapes * c.threads):
            release_workspace(&c.spaces[i])
        for i in range(c.threads * MOST_ABREAST):
            free(c.turns[i].order)
        for i in range(c.threads):
            free(c.sums[i])
            release(&c.rooms[i])
        free(c.spaces)
        free(c.turns)
        free(c.sums)
        free(c.rooms)
        c.spaces, c.turns, c.sums, c.rooms, c.threads = NULL, NULL, NULL, NULL, 0

    cdef int make_room(self, int threads) except -1:
        """Workspaces, and room for orders or sums, for this call of so many threads."""
        cdef Crowd* c = &self.crowd
        cdef Py_ssize_t i, rows, lanes = 0, most = 0, orders = 1, active = 0
        cdef Member* m
        cdef LaneRoom room
        cdef int t
        for i in range(c.n):
            active += c.members[i].active
        c.inner = 1 if active > 1 else threads
        threads = <int>smaller(threads, active) if active > 1 else 1
        if threads > c.threads:
            self.release_spaces()
            c.spaces = <Workspace*>allocate_plain(c.shapes * threads * sizeof(Workspace))
            c.turns = <Turn*>allocate_plain(threads * MOST_ABREAST * sizeof(Turn))
            c.sums = <double**>allocate_plain(threads * sizeof(double*))
            c.rooms = <Arena*>allocate_plain(threads * sizeof(Arena))
            c.threads = threads
        for i in range(c.n):
            m = &c.members[i]
            if not m.active:
                continue
            if self.training:
                rows = smaller(m.batch_size, m.n)
            else:
                rows = smaller(chunk_rows(m.net, False), larger(m.rows.batch.rows, 1)) * c.inner
            for t in range(threads):
                reserve(m.net, &c.spaces[m.shape * c.threads + t], rows, self.training, c.inner)
            if m.shuffled:
                most = larger(most, m.rows.batch.rows)
            if self.training and m.lanes:
                orders = larger(orders, lanes_of(m))
                lanes = larger(lanes, lane_room(m, lanes_of(m), rows, NULL, &room))
        for t in range(threads):
            if not self.training and c.sums[t] == NULL:
                c.sums[t] = <double*>allocate_plain((c.piece // LOSS_BLOCK + 1) * (sizeof(double) + sizeof(Py_ssize_t)))
            if c.rooms[t].bytes < <size_t>lanes * sizeof(real):
                release(&c.rooms[t])
                allocate(&c.rooms[t], lanes)
        for t in range(threads * MOST_ABREAST if self.training else 0):
            if t % MOST_ABREAST < orders:
                if c.turns[t].of < most:
                    free(c.turns[t].order)
                    memset(&c.turns[t], 0, sizeof(Turn))
                    c.turns[t].order = <int64_t*>allocate_plain(most * sizeof(int64_t))
                    c.turns[t].of = most
                c.turns[t].rows = 0     # another call may have other rows at the same place
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
        cdef bint finite = True
        self.held = xs, ys, ws, bags, outs
        for i in range(self.crowd.n):
            m = &self.crowd.members[i]
            program = self.programs[i]
            x, y, w, bag = [None if a is None else a[i if len(a) > 1 else 0] for a in (xs, ys, ws, bags)]
            memset(&m.rows, 0, sizeof(Pass))
            m.rows.net = m.net
            m.rows.wants.scale = 1
            m.rows.wants.forward = True
            program.set_rows(&m.rows, x, y, w)
            m.rows.batch.rows = cnp.PyArray_DIM(x, 0)
            if self.training and (i == 0 or len(xs) > 1):
                finite = not m.rows.batch.loss.labels or bool(np.isfinite(x).all())
            m.rows_finite = self.training and finite
            m.bag = NULL if bag is None else <int64_t*>cnp.PyArray_DATA(<cnp.ndarray>bag)
            if outs is not None:
                out = outs[i]
                m.rows.batch.out, m.rows.batch.out_row = data(out), row_stride(out)

    def begin(self, cnp.ndarray active, cnp.ndarray seeds, cnp.ndarray epochs, cnp.ndarray rows, Py_ssize_t batch_size,
              Py_ssize_t accumulate, bint shuffled, cycled=None, bint guarded=True):
        """Before an epoch of the active members (bool); seeds (uint64) and epochs (int64) of the order of the rows, and
        how many of the rows (int64) an epoch takes. cycled: None, or whether each one's schedule cycles the momentum.
        guarded: a member whose loss or parameters are not finite becomes what it was before."""
        cdef Py_ssize_t i
        cdef Member* m
        cdef const double* row
        self.totals[active] = 0
        self.at[active] = 0
        self.bad[active] = -1
        for i in range(self.crowd.n):
            m = &self.crowd.members[i]
            m.active = (<const char*>cnp.PyArray_DATA(active))[i]
            m.fresh = True
            m.rates = NULL
            m.seed = (<const uint64_t*>cnp.PyArray_DATA(seeds))[i]
            m.epoch = (<const int64_t*>cnp.PyArray_DATA(epochs))[i]
            m.n = (<const int64_t*>cnp.PyArray_DATA(rows))[i]
            m.batch_size, m.accumulate, m.shuffled = batch_size, accumulate, shuffled and batch_size < m.rows.batch.rows
            (<Program>self.programs[i]).has_optimizer()
            row = m.stepper.table
            m.states = optimizer_states(<int>row[HYPER_OPTIMIZER],
                                        row[HYPER_MOMENTUM] != 0 or cycled is not None and cycled[i], row + HYPER_OWN)
            m.guarded = guarded
        if guarded:
            self.slot(BEFORE)

    def train(self, cnp.ndarray stops, rates, int threads, double seconds):
        """Train the active members to these rows of the epoch (int64), for about so many seconds at most; how many have
        not got there. rates: None where they stay those of the last call, or for each member None or as `rates_of` has
        them, and how many rows of them are left after a step: 1, or 0 where one row holds for all steps."""
        cdef Py_ssize_t i
        cdef Member* m
        cdef Program program
        cdef cnp.ndarray table
        self.claim(True)
        try:
            for i in range(self.crowd.n):
                m = &self.crowd.members[i]
                program = self.programs[i]
                program.has_optimizer()
                m.stepper.unfused = m.accumulate > 1 or needs_gradients(m.stepper)
                if not m.active:
                    continue
                m.stop = (<const int64_t*>cnp.PyArray_DATA(stops))[i]
                m.single = m.rows.batch.weight == NULL and program.single(&m.rows, None)
                m.rows.wants.keep = m.rows.wants.backward = m.rows.wants.weights = True
                program.forget("fit has run since")
                if rates is not None and rates[i] is not None:
                    table = rates[i][0]
                    m.rates = rates_of(table, m.stepper, table.shape[0])
                    m.rates_step = m.stepper.rated * <Py_ssize_t>rates[i][1]
            if rates is not None:
                self.rates = rates          # kept alive
            choose_lanes(&self.crowd, self.lanes)
            team_up(&self.crowd, threads)
            threads = self.make_room(threads)
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

    def infer(self, cnp.ndarray active, int threads, cnp.ndarray pieces, double seconds):
        """Run these members (bool) forward on their rows, each on so many (int64) at a time, for about so many seconds:
        outputs go to `outs`, sums to `totals`. How many are left; with active None, the next call does these."""
        cdef Py_ssize_t i
        if active is not None:
            self.totals[active] = 0
            for i in range(self.crowd.n):
                self.crowd.members[i].active = (<const char*>cnp.PyArray_DATA(active))[i]
        self.crowd.pieces = <const int64_t*>cnp.PyArray_DATA(pieces)
        self.crowd.piece = pieces.max()
        self.run(infer_task, self.make_room(threads), nanoseconds() + <int64_t>(1e9 * seconds))
        return self.crowd.left
