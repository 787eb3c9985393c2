# The optimiser's step on a whole network: the coefficients of each group of parameters, and what is done between the
# gradients and the step where somebody asks for it.
#
# Without that, training is fused: the gradient of a piece of W is used up before it leaves the registers, and nothing
# here but `prepare` runs. Clipping, penalties and accumulation need all gradients at once: these go to memory, and
# `finish` turns them into a step. `train_rows` is the loop over the batches, of one model and of each of many.

cdef struct Stepper:
    const double* table     # the optimiser's table of hyper-parameters, a row for each group
    int groups
    Py_ssize_t rated        # numbers that a schedule gives for a step: see prepare
    Update* updates         # the coefficients of the next step, of each group
    bint unfused            # the step needs all gradients in memory first
    bint penalised
    Arena average           # EMA of the parameters, empty without one
    Py_ssize_t steps        # taken so far
    Py_ssize_t momentum_steps       # of them with SGD's momentum; L-BFGS: that have given a pair to its history


cdef void prepare(Stepper* s, const Network* net, const double* rates) noexcept nogil:
    """The coefficients of the next step; rates: NULL, or the schedule's lr of each row of the table, and momentum, or
    another table."""
    cdef const double* row = s.table
    cdef bint own = rates == NULL or s.rated != s.groups + 1
    cdef int g
    if rates != NULL and own:
        row = rates
    for g in range(s.groups):
        s.updates[g] = coefficients(row, row[HYPER_LR] if own else rates[g],
                                    row[HYPER_MOMENTUM] if own else rates[s.groups],
                                    s.steps, s.momentum_steps, net.state - net.params, net.n_block)
        row += HYPER_COLUMNS


cdef inline bint needs_gradients(const Stepper* s) noexcept nogil:
    """Whether a step needs all gradients in memory, as the table now is."""
    return s.penalised or s.table[HYPER_CLIP_NORM] > 0 or s.table[HYPER_CLIP_VALUE] > 0


cdef inline bint prepared_again(const Stepper* s, const double* rates) noexcept nogil:
    """Whether the step after this one needs other coefficients."""
    return rates != NULL or UPDATE_VARIABLE[s.updates[0].kind] or s.momentum_steps == 1


cdef double penalties(const Network* net, bint gradient) noexcept nogil:
    """The penalties on all weights; their gradients are added to the gradients."""
    cdef const Op* op
    cdef int i
    cdef double total = 0
    for i in range(net.n_ops):
        op = &net.ops[i]
        if op.l1 != 0 or op.l2 != 0:
            total += penalty(weight_size(op), net.params + op.weight,
                             net.grads + op.weight if gradient and op.trains_weight else NULL, op.l1, op.l2)
    return total


cdef double decayed(const Stepper* s, const Network* net) noexcept nogil:
    """What has the weight decay of the next step as its gradient: half of it times the squares of the parameters."""
    cdef const Op* op
    cdef int i
    cdef double total = 0
    for i in range(net.n_ops):
        op = &net.ops[i]
        if op.has_weight and op.trains_weight and s.updates[op.weight_group].weight_decay != 0:
            total += s.updates[op.weight_group].weight_decay * sum_of_squares(weight_size(op), net.params + op.weight)
        if op.has_bias and op.trains_bias and s.updates[op.bias_group].weight_decay != 0:
            total += s.updates[op.bias_group].weight_decay * sum_of_squares(bias_size(op), net.params + op.bias)
    return total / 2


cdef void sweep_updates(const Network* net, const Update* updates) noexcept nogil:
    """The step with the gradients in memory."""
    cdef const Op* op
    cdef int i
    for i in range(net.n_ops):
        op = &net.ops[i]
        if op.has_weight and op.trains_weight:
            update_rows(1, weight_size(op), net.params + op.weight, 0, net.grads + op.weight, 0,
                        updates + op.weight_group)
        if op.has_bias and op.trains_bias:
            update_rows(1, bias_size(op), net.params + op.bias, 0, net.grads + op.bias, 0, updates + op.bias_group)


cdef void average(Stepper* s, const Network* net, Py_ssize_t low, Py_ssize_t high) noexcept nogil:
    """Let numbers low .. high of the parameters, after a step that is not counted yet, into the average."""
    if s.average.at == NULL:
        return
    if s.steps == 0:
        memcpy(s.average.at + low, net.params + low, (high - low) * sizeof(real))
    else:
        lerp_block(high - low, s.average.at + low, net.params + low, 1 - s.table[HYPER_EMA_DECAY])


cdef void count_step(Stepper* s) noexcept nogil:
    s.steps += 1
    s.momentum_steps += s.updates[0].kind == UPDATE_MOMENTUM


cdef void stepped(Stepper* s, const Network* net) noexcept nogil:
    """After a step: count it, and let it into the average."""
    average(s, net, 0, net.n_block)
    count_step(s)


cdef void clip(const Stepper* s, const Network* net) noexcept nogil:
    """Clip the gradients: each number, then the norm of all of them."""
    cdef double factor
    if s.table[HYPER_CLIP_VALUE] > 0:
        clip_block(net.n_block, net.grads, <real>s.table[HYPER_CLIP_VALUE])
    if s.table[HYPER_CLIP_NORM] > 0:
        factor = clip_factor(sum_of_squares(net.n_block, net.grads), s.table[HYPER_CLIP_NORM])
        if factor != 1:
            scale_block(net.n_block, net.grads, <real>factor)


cdef double finish(Stepper* s, const Network* net) noexcept nogil:
    """The penalties, clipping and step with the gradients in memory; the penalties."""
    cdef double extra = penalties(net, True) if s.penalised else 0
    clip(s, net)
    sweep_updates(net, s.updates)
    return extra


cdef double train_batch(Pass* p, const Stepper* s, bint single, double* weight, Py_ssize_t* correct) noexcept nogil:
    """Forward, loss and backward of a batch, and the step if it is fused; the sum of the loss over the rows.

    single: batch-1 fast path allowed (see online.pxi). That row's place is order[0], or 0.
    """
    cdef Batch* batch = &p.batch
    cdef Py_ssize_t row
    cdef double loss = 0
    p.wants.update = NULL if s.unfused else s.updates
    if batch.rows > 1 or not single:
        return run_pass(p, weight, correct)
    row = batch.order[0] if batch.order != NULL else 0
    weight[0] += loss_weight(&batch.loss, 1, batch.target + row * batch.target_bytes, 0, NULL)
    train_samples(p, 1, &loss, correct)
    if batch.out != NULL:
        memcpy(batch.out, p.ws.value[p.net.n_buffers - 1], p.net.outputs * sizeof(real))
    return loss


cdef Py_ssize_t train_rest(Pass* p, Stepper* s, Py_ssize_t n, double* total, Py_ssize_t* correct) noexcept nogil:
    """n batches of one row each in one call, all with the same coefficients: how many losses were finite.

    Adds to the sums of the loss, of the weights and (total[3]) of the rows.
    """
    cdef Batch* batch = &p.batch
    cdef Py_ssize_t i, row, done = train_samples(p, n, total, correct)
    if batch.loss.labels:
        for i in range(done):
            row = batch.order[i] if batch.order != NULL else i
            total[1] += loss_weight(&batch.loss, 1, batch.target + row * batch.target_bytes, 0, NULL)
    else:
        total[1] += done
    total[3] += done
    s.steps += done
    s.momentum_steps += done if s.updates[0].kind == UPDATE_MOMENTUM else 0
    return done


cdef enum:
    CLOCK_WORK = 1 << 18        # multiply-adds between two looks at the clock: some 10 microseconds
    CLOCK_ROWS = 4096           # of batches of one row, likewise

# Batches that are trained on one after the other, and how far that is.
cdef struct Run:
    Pass rows                   # what is wanted of a batch, and where all rows are, in their order
    Stepper* stepper
    int64_t* rows_seen          # the program's
    bint single                 # see train_batch
    Py_ssize_t batch_size
    Py_ssize_t accumulate       # batches that make a step
    Py_ssize_t at               # rows done
    Py_ssize_t stop             # rows to do: whole steps, or n
    Py_ssize_t n                # rows of all batches
    Py_ssize_t bad              # first row of the batch whose loss was not finite, or -1
    const double* rates         # NULL, or the schedule's for the coming steps
    Py_ssize_t rates_step       # numbers from one step to the next
    int64_t deadline            # 0: none
    bint decayed                # total[4] is wanted
    double* total               # as `Program.train_batches` has them


cdef void train_rows(Run* r) noexcept nogil:
    """Train until `stop`, the deadline or a loss that is not finite."""
    cdef Pass p = r.rows
    cdef Stepper* s = r.stepper
    cdef const Network* net = p.net
    cdef Workspace* ws = p.ws
    cdef const Batch* all_rows = &r.rows.batch
    cdef double* total = r.total
    cdef Py_ssize_t at = r.at, correct = 0, group = 0, left = 0, done, rows, work = 0
    cdef bint gather = p.wants.gather or all_rows.order != NULL, ready = False
    cdef double loss, weight, group_weight = 0, extra, squares
    # row after row without checks between steps: nothing is to be done there
    cdef bint many = (r.single and r.batch_size == 1 and r.rates == NULL and all_rows.out == NULL
                      and s.average.at == NULL and not r.decayed)
    ws.training = True
    r.bad = -1
    while at < r.stop:
        if left == 0:
            if work > CLOCK_WORK and r.deadline > 0:
                if nanoseconds() > r.deadline:
                    break
                work = 0
            left = group = smaller(r.accumulate, (r.n - at + r.batch_size - 1) // r.batch_size)
            if not ready:
                prepare(s, net, r.rates)
        p.batch.rows = smaller(r.batch_size, r.n - at)
        p.wants.threads = r.rows.wants.threads      # run_pass lowers it where a batch is small
        p.wants.gather = gather
        p.wants.scale = 1.0 / group
        p.wants.overwrite = left == group
        from_row(&p.batch, all_rows, at)
        if many and ready:
            rows = r.stop - at if r.deadline == 0 else smaller(r.stop - at, CLOCK_ROWS)
            done = train_rest(&p, s, rows, total, &correct)
            r.rows_seen[0] += done
            at += done
            if done < rows:
                r.bad = at
                break
            work = CLOCK_WORK + 1
            continue
        ws.row0 = r.rows_seen[0]
        r.rows_seen[0] += p.batch.rows
        weight = extra = 0
        squares = decayed(s, net) if r.decayed else 0
        loss = train_batch(&p, s, r.single, &weight, &correct)
        work += larger(p.batch.rows * net.work, 1000)
        if not isfinite(loss):
            r.bad = at
            break
        left -= 1
        group_weight = weight if p.wants.overwrite else group_weight + weight
        if left == 0:
            if s.unfused:
                extra = finish(s, net)
            stepped(s, net)
            if r.rates != NULL:
                r.rates += r.rates_step
            ready = not prepared_again(s, r.rates)
        total[0] += loss + extra * (group_weight if net.loss.mean else 1)
        total[1] += weight
        total[3] += p.batch.rows
        if r.decayed:
            total[4] += weight * squares
        at += p.batch.rows
    total[2] += correct
    r.at = at
