# The optimiser's step on a whole network: the coefficients of each group of parameters, and what is done between the
# gradients and the step where somebody asks for it.
#
# Without that, training is fused: the gradient of a piece of W is used up before it leaves the registers, and nothing
# here but `prepare` runs. Clipping, penalties and accumulation need all gradients at once: these go to memory, and
# `finish` turns them into a step.

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


cdef void stepped(Stepper* s, const Network* net) noexcept nogil:
    """After a step: count it, and let it into the average."""
    s.steps += 1
    s.momentum_steps += s.updates[0].kind == UPDATE_MOMENTUM
    if s.average.at != NULL:
        if s.steps == 1:
            memcpy(s.average.at, net.params, net.n_block * sizeof(real))
        else:
            lerp_block(net.n_block, s.average.at, net.params, 1 - s.table[HYPER_EMA_DECAY])


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
