# Many models at once: each trains, predicts or is evaluated on one thread, beside the others on other threads.
#
# A Crew has the programs of some models, of one shape or of many. Each has rows of its own, or all share them, and an
# order of the rows, which is made here. A call runs whole epochs; it returns when all are done or a deadline has
# passed, and the next call goes on where it ended. Models do not wait for one another, and share no sum: neither the
# number of threads nor the deadline changes a number. A model trains as in `Program.train_batches`: by `train_rows`.
#
# Models of one shape share a workspace for each thread, so that activations stay in cache from one to the next.

cdef enum:
    ABREAST = 4                 # vectors of models in lanes whose steps of one row go side by side
    MOST_ABREAST = 16 * ABREAST  # models in them

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
    bint lanes                  # see lanes.pxi
    bint rows_finite            # x is
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
    Turn* turns                 # of each thread MOST_ABREAST
    double** sums               # of each thread: room for the losses of an evaluation
    Arena[SLOTS] slots
    Py_ssize_t slot_size
    Arena* rooms                # of each thread: memory of the lanes
    Py_ssize_t* teams           # members that are trained together, team after team
    Py_ssize_t* firsts          # where each team begins, and where the last one ends
    Py_ssize_t n_teams
    int64_t claimed
    int64_t deadline
    int64_t left                # members that are not done
    const int64_t* pieces       # rows of an evaluation at a time, of each member
    Py_ssize_t piece            # ... at most


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
    cdef Workspace* ws = &crowd.spaces[m.shape * crowd.threads + thread]
    cdef Run r
    if m.fresh and m.guarded:
        copy_state(m, crowd.slots[BEFORE].at, True)
    m.fresh = False
    r.rows, r.stepper, r.rows_seen, r.single = m.rows, m.stepper, m.rows_seen, m.single
    r.rows.ws, r.rows.batch.losses, r.rows.batch.correct = ws, ws.losses, ws.correct
    r.rows.batch.order = order_of(m, &crowd.turns[thread * MOST_ABREAST], m.rows.batch.rows)
    r.rows.wants.threads = crowd.inner
    r.batch_size, r.accumulate, r.at, r.stop, r.n = m.batch_size, m.accumulate, m.at[0], m.stop, m.n
    r.rates, r.rates_step, r.deadline, r.decayed, r.total = m.rates, m.rates_step, crowd.deadline, False, m.totals
    train_rows(&r)
    m.rates, m.at[0], m.bad[0] = r.rates, r.at, r.bad
    if m.guarded and m.bad[0] < 0 and r.at >= m.n and not all_finite(m.net.params, m.net.n_block):
        m.bad[0] = r.at           # the last step made numbers that no loss has seen
    if m.bad[0] >= 0:
        if m.guarded:
            copy_state(m, crowd.slots[BEFORE].at, False)
        memset(ws.arena.at, 0, ws.arena.bytes)      # for the next model, padding is to be zero and not NaN
        m.active = False
    return m.bad[0] >= 0 or r.at >= m.stop


cdef inline bint left_to_train(const Member* m) noexcept nogil:
    return m.active and m.at[0] < m.stop
