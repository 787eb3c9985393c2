# A pass over a batch has two parts, each shared among threads and done when all have finished:
#
#     rows      chunk by chunk of the batch: forward, the loss and its gradient, backward to all buffers' gradients
#     weights   piece by piece of the weight matrices: gradient, added up or used at once for the optimiser's step
#
# An op that needs all rows of its input before it gives one of its output (batch normalisation) cuts the ops into
# segments, and the part `rows` into one phase for each segment and direction, with sums over the batch between them.
#
# No sum runs across chunks or pieces, except that of the loss, which is kept for each block of LOSS_BLOCK rows and
# added up in order: so results do not depend on threads or chunks.

cdef enum:
    FEW_ROWS = 4                # up to this batch, dX is dot products with the rows of W as they lie
    CHUNK_BYTES = 1 << 19       # activations of one chunk of `predict`: half of L2
    MOST_ROWS = 512             # of a chunk, in training; its activations stay in L2 on the way back
    GATHER_AHEAD = 6            # rows of a shuffled batch that are fetched from memory while others are copied
    THREAD_WORK = 1 << 20       # multiply-adds below which a second thread is not called: about 20 microseconds


cdef inline const real* pass_input(const Pass* p, int b, Py_ssize_t* row) noexcept nogil:
    """The first row of a buffer of the whole batch, and the elements from a row to the next."""
    if b == 0 and not p.wants.gather:
        row[0] = p.batch.x_row
        return p.batch.x
    row[0] = p.net.buffers[b].row
    return p.ws.value[b]


# Rows: forward, loss, backward ----------------------------------------------------------------------------------------

cdef double batch_loss(const Network* net, const LossSpec* loss, Workspace* ws, Py_ssize_t first, Py_ssize_t batch,
                       const char* target, Py_ssize_t target_bytes, const real* weight, double scale, bint gradient,
                       Py_ssize_t* correct) noexcept nogil:
    """Sum of the loss over some rows; with gradient, that of the outputs goes to their buffer, times scale."""
    cdef int last = net.n_buffers - 1
    cdef Py_ssize_t row = net.buffers[last].row
    return loss_rows(loss, batch, net.outputs, row_of(ws.value, net, last, first), row, target, target_bytes,
                     weight, scale, row_of(ws.grad, net, last, first) if gradient else NULL, row, correct)


cdef void pass_rows(const Pass* p, Py_ssize_t first, Py_ssize_t rows, int thread) noexcept nogil:
    """One phase of the part `rows` of a pass, for one chunk."""
    cdef const Network* net = p.net
    cdef const Batch* batch = &p.batch
    cdef const Phase* phase = &p.phase
    cdef Workspace* ws = p.ws
    cdef int last = net.n_buffers - 1
    cdef Py_ssize_t i, at, block, width = net.buffers[0].width * sizeof(real)
    cdef Py_ssize_t unit = LOSS_BLOCK if p.shards == NULL else 1
    cdef const char* target = batch.target + first * batch.target_bytes
    cdef Chunk c
    c.net, c.ws, c.t = net, ws, NULL
    # rows that nobody comes back to share the room of their thread
    c.first = first if p.wants.keep or p.wants.backward else thread * phase.chunk
    c.batch, c.all_rows = rows, batch.rows if p.shards == NULL else p.shards.whole
    c.x, c.x_row, c.csr = batch.x + first * batch.x_row, batch.x_row, NULL
    c.keep, c.input_grad, c.few = p.wants.keep, p.wants.input_grad, c.all_rows <= FEW_ROWS
    c.panel = ws.panel + thread * ws.panel_size
    if batch.csr.start != NULL:
        c.csr = &batch.csr
        if p.wants.forward and phase.start == 0:
            take_spans(batch, ws.spans + c.first, first, rows, p.wants.leave_out)
    elif p.wants.gather and not phase.lanes:
        if p.wants.forward and phase.start == 0:
            for i in range(rows):
                if batch.order != NULL and i + GATHER_AHEAD < rows:
                    for at from 0 <= at < net.buffers[0].width by VL:
                        prefetch_ahead(batch.x + batch.order[first + i + GATHER_AHEAD] * batch.x_row + at)
                memcpy(row_of(ws.value, net, 0, c.first + i),
                       batch.x + (batch.order[first + i] if batch.order != NULL else first + i) * batch.x_row, width)
                if p.wants.leave_out and not counts(batch, first + i):
                    memset(row_of(ws.value, net, 0, c.first + i), 0, width)
        c.x, c.x_row = row_of(ws.value, net, 0, c.first), net.buffers[0].row
    if p.wants.forward:
        if phase.lanes:
            samples_outputs(p, &c, first)
        else:
            walk_forward(&c, phase.start, phase.stop)
    if p.wants.forward and phase.stop == net.n_ops:
        if batch.out != NULL:
            copy_rows(rows, net.outputs, row_of(ws.value, net, last, c.first), net.buffers[last].row,
                      batch.out + first * batch.out_row, batch.out_row)
        if batch.target != NULL:
            for i from 0 <= i < rows by unit:
                block = (first + i) // unit
                batch.correct[block] = 0
                batch.losses[block] = batch_loss(net, &batch.loss, ws, c.first + i, smaller(unit, rows - i),
                                                 target + i * batch.target_bytes, batch.target_bytes,
                                                 batch.weight + first + i if batch.weight != NULL else NULL,
                                                 p.wants.scale, p.wants.keep, &batch.correct[block])
    if phase.back_start > phase.back_stop:
        walk_backward(&c, phase.back_start, phase.back_stop)


cdef void rows_task(void* argument, int thread) noexcept nogil:
    cdef Pass* p = <Pass*>argument
    cdef Py_ssize_t first
    while True:
        first = atomic_add(&p.phase.claimed, 1) * p.phase.chunk
        if first >= p.batch.rows:
            break
        pass_rows(p, first, smaller(p.phase.chunk, p.batch.rows - first), thread)


# Sums over the batch, between two phases ------------------------------------------------------------------------------

cdef void sums_task(void* argument, int thread) noexcept nogil:
    """Statistics of the columns that an op reads, or, going back, the sums of its gradients."""
    cdef Pass* p = <Pass*>argument
    cdef const Op* op = p.phase.summed
    cdef Py_ssize_t column, columns
    while True:
        column = atomic_add(&p.phase.claimed, 1) * COLUMNS
        if column >= op.n_out:
            break
        columns = smaller(COLUMNS, op.row - column)
        if p.phase.summed_backward:
            op.does.batch.backward_sums(p, op, column, columns)
        else:
            op.does.batch.sums(p, op, column, columns)


cdef void use_running(const Network* net, Workspace* ws) noexcept nogil:
    """In evaluation mode, running statistics take the place of those of the batch."""
    cdef int i
    cdef const Op* op
    for i in range(net.n_ops):
        op = &net.ops[i]
        if op.has_running and not in_training(ws, op):
            op.does.batch.use_running(net, op, ws.extra[i])


# Weights --------------------------------------------------------------------------------------------------------------

cdef void weights_task(void* argument, int thread) noexcept nogil:
    cdef Pass* p = <Pass*>argument
    cdef const Op* op
    cdef const real* x
    cdef real* panel = p.ws.panel + thread * p.ws.panel_size
    cdef Py_ssize_t x_row, rows, unit, units, piece, pieces, begin, first, end, at = 0
    cdef Py_ssize_t claimed = atomic_add(&p.phase.claimed, 1)
    cdef int i
    for i in range(p.net.n_ops - 1, -1, -1):
        op = &p.net.ops[i]
        pieces = op.does.pieces(op, p.wants.threads, &rows, &unit)
        if pieces == 0 and not op.has_weight and not op.has_bias:
            continue
        begin, units = 0, (rows + unit - 1) // unit
        if p.shards != NULL and p.shards.window != NULL:
            begin, units = p.shards.window[2 * i], p.shards.window[2 * i + 1]
            if units == 0:
                continue
        pieces = larger(1, smaller(pieces, units))
        for piece in range(pieces):
            if at == claimed:
                first = (begin + units * piece // pieces) * unit
                end = smaller(rows, (begin + units * (piece + 1) // pieces) * unit)
                x = pass_input(p, op.src, &x_row)
                if not wants_weight(p, op) and not wants_bias(p, op):
                    pass
                elif p.shards != NULL and p.shards.count > 1 and not (op.does.shards
                                                                      and (p.batch.csr.start == NULL or op.src != 0)):
                    if first == 0:
                        p.shards.gradient(p, op, thread)
                else:
                    op.does.weight_gradient(p, op, first, end - first, x, x_row, panel)
                claimed = atomic_add(&p.phase.claimed, 1)
            at += 1


# A batch --------------------------------------------------------------------------------------------------------------

cdef bint all_finite(const real* x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    cdef vf zeros = vf_set(0)
    for i from 0 <= i < n by VL:        # 0 x is NaN for infinity and NaN
        zeros = vf_fma(vf_load(x + i) if i + VL <= n else vf_load_first(x + i, n - i), vf_set(0), zeros)
    return vf_sum(zeros, VL) == 0


cdef bint finite_row(const Batch* batch, Py_ssize_t row, Py_ssize_t width) noexcept nogil:
    cdef const int64_t* start = batch.csr.start
    if start != NULL:
        return all_finite(batch.csr.value + start[row], start[row + 1] - start[row])
    return all_finite(batch.x + row * batch.x_row, width)


cdef bint leave_out_rows(Pass* p) noexcept nogil:
    """Whether rows of x that do not count have NaN or infinity, which times their gradient of zero is NaN in that of
    the weights: `pass_rows` puts zeros in their place, if it is told so."""
    cdef const Batch* batch = &p.batch
    cdef Py_ssize_t i, row
    if batch.weight == NULL and not batch.loss.labels and not batch.loss.ignore_nan:
        return False
    for i in range(batch.rows):
        row = batch.order[i] if batch.order != NULL else i
        if not counts(batch, i) and not finite_row(batch, row, p.net.buffers[0].width):
            return True
    return False


cdef void gather_targets(Pass* p) noexcept nogil:
    """Targets and weights of the rows of an order, one after the other."""
    cdef Batch* batch = &p.batch
    cdef Py_ssize_t i, bytes = sizeof(int64_t) if batch.loss.labels else batch.loss.targets * sizeof(real)
    for i in range(batch.rows):
        memcpy(p.ws.targets + i * bytes, batch.target + batch.order[i] * batch.target_bytes, bytes)
    batch.target, batch.target_bytes = p.ws.targets, bytes
    if batch.weight != NULL:
        for i in range(batch.rows):
            p.ws.weights[i] = batch.weight[batch.order[i]]
        batch.weight = p.ws.weights


cdef void from_row(Batch* batch, const Batch* all_rows, Py_ssize_t at) noexcept nogil:
    """Let a batch begin at a row of those that it is taken from, in their order, if they have one."""
    batch.target, batch.target_bytes, batch.weight = all_rows.target, all_rows.target_bytes, all_rows.weight
    if all_rows.order != NULL:
        batch.order = all_rows.order + at
    else:
        batch.target += at * all_rows.target_bytes
        if all_rows.weight != NULL:
            batch.weight += at
        if all_rows.csr.start != NULL:
            batch.csr.start = all_rows.csr.start + at
        else:
            batch.x = all_rows.x + at * all_rows.x_row
    if all_rows.out != NULL:
        batch.out = all_rows.out + at * all_rows.out_row


cdef inline Py_ssize_t pass_work(const Pass* p) noexcept nogil:
    """Multiply-adds of a pass, forward alone; at least one for each parameter that is trained."""
    return larger(p.batch.rows * p.batch.work, p.net.n_parameters if p.wants.weights else 0)


cdef void run_rows(Pass* p) noexcept nogil:
    """One phase of the part `rows`."""
    p.phase.claimed = 0
    parallel(rows_task, p, p.wants.threads if p.phase.chunk < p.batch.rows else 1)


cdef void run_sums(Pass* p, const Op* op, bint backward) noexcept nogil:
    p.phase.summed = op
    p.phase.summed_backward = backward
    p.phase.claimed = 0
    parallel(sums_task, p, p.wants.threads if op.row > COLUMNS else 1)


cdef double run_pass(Pass* p, double* weight, Py_ssize_t* correct) noexcept nogil:
    """Do what p asks for; the sum of the loss over the rows. Adds the sum of their weights, and the number of rows
    classified right, to weight and correct."""
    cdef Network* net = <Network*>p.net
    cdef Op* op
    cdef Batch* batch = &p.batch
    cdef Request* wants = &p.wants
    cdef Phase* phase = &p.phase
    cdef int s, segments = net.n_segments if p.ws.training else 1
    cdef int lowest = 0 if wants.input_grad or wants.frozen_too or not net.frozen else net.first_trained
    cdef double rows_weight
    if pass_work(p) < THREAD_WORK:
        wants.threads = 1
    if wants.keep or wants.backward:
        # one for each thread: each packs W^T anew, which costs as much as some rows
        phase.chunk = round_up(smaller(MOST_ROWS, (batch.rows + wants.threads - 1) // wants.threads), LOSS_BLOCK)
        if wants.threads == 1 and batch.rows <= 2 * MOST_ROWS:
            phase.chunk = batch.rows
    if batch.target != NULL:
        if batch.order != NULL:
            gather_targets(p)
        if p.shards == NULL:
            rows_weight = loss_weight(&batch.loss, batch.rows, batch.target, batch.target_bytes, batch.weight)
            weight[0] += rows_weight
            wants.scale *= loss_scale(&batch.loss, rows_weight)
        wants.leave_out = wants.keep and leave_out_rows(p)
        wants.gather = wants.gather or wants.leave_out
    phase.claimed = 0
    phase.lanes = p.shards == NULL and samples_serve(p)
    if phase.lanes and wants.weights:
        parallel(samples_task, p, wants.threads)
        samples_finish(p)
        return batch_sums(p, correct)
    if wants.forward:
        use_running(net, p.ws)
    if wants.weights and wants.overwrite and wants.update == NULL and net.frozen and not wants.frozen_too:
        clear_blocks(net, net.grads)        # those that nobody computes are zero
        wants.overwrite = False
    phase.back_start = phase.back_stop = 0
    if wants.forward:
        for s in range(segments):
            if s > 0:
                op = &net.ops[net.segments[s]]
                if p.shards == NULL:
                    run_sums(p, op, False)
                    op.does.batch.track(net, op, p.ws.extra[op.index], batch.rows)
                elif p.shards.sum(p, op, False):
                    op.does.batch.track(net, op, p.ws.extra[op.index], p.shards.whole)
                else:
                    p.shards.failed = True
                    return 0
            phase.start = net.segments[s]
            phase.stop = net.segments[s + 1] if s + 1 < segments else net.n_ops
            if wants.backward and s + 1 == segments:
                phase.back_start, phase.back_stop = net.n_ops, <int>larger(lowest, net.segments[s] + (s > 0))
            run_rows(p)
    if wants.backward:
        for s in range(segments - 1, -1, -1):
            if s + 1 < segments or not wants.forward:
                phase.start = phase.stop = -1
                phase.back_start = net.segments[s + 1] + 1 if s + 1 < segments else net.n_ops
                phase.back_stop = <int>larger(lowest, net.segments[s] + (s > 0))
                run_rows(p)
            if s > 0:
                if p.shards == NULL:
                    run_sums(p, &net.ops[net.segments[s]], True)
                elif not p.shards.sum(p, &net.ops[net.segments[s]], True):
                    p.shards.failed = True
                    return 0
    phase.claimed = 0
    if wants.weights:
        if batch.csr.start != NULL:
            sort_by_columns(&batch.csr, p.ws.spans, batch.rows, &p.ws.columns)
        parallel(weights_task, p, wants.threads)
    return batch_sums(p, correct)


cdef double batch_sums(const Pass* p, Py_ssize_t* correct) noexcept nogil:
    """The sum of the loss over the rows; adds to correct."""
    cdef Py_ssize_t block
    cdef double total = 0
    if p.batch.target != NULL and p.shards == NULL:
        for block in range((p.batch.rows + LOSS_BLOCK - 1) // LOSS_BLOCK):
            total += p.batch.losses[block]
            correct[0] += p.batch.correct[block]
    check_guards(p.net.params)
    check_guards(p.net.running)
    if p.ws.arena.memory != NULL:       # not the caller's own
        check_guards(p.ws.arena.at)
    return total
