# Linear: z = x W + b, y = act(z). x (batch, in), W (in, out), y (batch, out).
#
# Weights lie as the products like them. Normally W is (in, out), its rows padded to VL and the bias one more row below.
# A layer much narrower than a vector is kept transposed, (out, in), or most of each vector would be padding; its
# forward pass is `dot_rows`. Long rows are an odd number of cache lines apart, so that a panel's lines spread over all
# sets of the cache.

cdef enum:
    PIECE_ROWS = 128            # of W, at least; a piece packs dZ anew


cdef int linear_op_place(Network* net, Op* op, dict spec) except -1:
    """Choose the layout of W and give it its place in the parameter block."""
    cdef Py_ssize_t normal = times(op.n_in, round_up(op.n_out, VL)), turned = times(op.n_out, round_up(op.n_in, VL))
    op.transposed = 2 * turned <= normal
    if plus(normal, net.n_block) >= CNN_MOST:
        raise MemoryError("the network is too large for this machine's addresses")
    op.work = op.n_in * op.n_out
    op.rows, op.columns = op.n_in, op.n_out
    op.has_weight, op.has_bias = True, spec["bias"]
    op.weight = net.n_block
    if op.transposed:
        op.row = padded_row(op.n_in, op.n_out)
        net.n_block += op.n_out * op.row
        net.pad_input = net.pad_input or op.src == 0
    else:
        op.row = padded_row(op.n_out, op.n_in)
        net.n_block += op.n_in * op.row
    op.bias = net.n_block
    net.n_block += round_up(op.n_out, VL) if op.transposed else op.row
    net.buffers[op.dst].preactivation = op.keeps_input
    return 0


# Products -------------------------------------------------------------------------------------------------------------

cdef void affine(const Op* op, Py_ssize_t batch, const real* x, Py_ssize_t x_row, const real* params, real* y,
                 Py_ssize_t y_row, real* z, real* panel, bint in_order) noexcept nogil:
    """y = act(x W + b); z, where not NULL, keeps x W + b. 2 batch in out FLOPs.

    in_order: the sums of a row are the same alone as in a batch; training on one row at a time does without.
    """
    cdef Product p
    cdef bint relu = op.act == RELU
    cdef real* sums = y if z == NULL else z
    cdef const real* bias = params + op.bias
    cdef real floor = <real>(0 if relu else -INFINITY)
    if op.transposed or batch == 1:
        if op.transposed:
            dot_rows(batch, op.n_in, op.n_out, x, x_row, params + op.weight, op.row, bias, floor, sums, y_row)
        else:
            row_forward(in_order, op.n_in, round_up(op.n_out, VL) // VL, x, params + op.weight, op.row, bias, floor,
                        sums)
        if not relu and op.act != IDENTITY:
            activate_rows(op.act, op.param, batch, op.n_out, sums, y_row, y, y_row)
        return
    memset(&p, 0, sizeof(p))
    p.m = batch
    p.n = round_up(op.n_out, VL)
    p.k = op.n_in
    p.a = x
    p.a_row = x_row
    p.a_col = 1
    p.b = params + op.weight
    p.b_row = op.row
    p.c = sums
    p.c_row = y_row
    p.start = bias
    p.epilogue = EPILOGUE_STORE
    p.floor = floor
    p.act = IDENTITY if relu else op.act
    p.act_param = op.param
    p.act_out = y
    p.act_width = op.n_out
    p.panel = panel
    product(&p)


cdef void input_gradient(const Op* op, const Op* before, const real* saved, Py_ssize_t batch, const real* dz,
                         Py_ssize_t dz_row, const real* params, real* dx, Py_ssize_t dx_row,
                         bint few, real* panel) noexcept nogil:
    """dX = dZ W^T, times act'(z) of the op `before` that made x (NULL: none). 2 batch in out FLOPs.

    few: as dot products with the rows of W where they lie, which packs nothing. The sums run in another order then, so
    this is to be the same for all rows of a batch.
    """
    cdef Product p
    cdef bint derivative = before != NULL and before.act != IDENTITY
    cdef bint mask = derivative and before.act == RELU
    if few and not op.transposed:
        dot_rows(batch, op.n_out, op.n_in, dz, dz_row, params + op.weight, op.row, NULL, <real>-INFINITY, dx, dx_row)
        if derivative:
            activate_backward_rows(before.act, before.param, before.keeps_input, batch, op.n_in, dx, dx_row,
                                   saved, dx_row, dx, dx_row)
        return
    memset(&p, 0, sizeof(p))
    p.m = batch
    p.n = round_up(op.n_in, VL)
    p.k = op.n_out
    p.a = dz
    p.a_row = dz_row
    p.a_col = 1
    p.b = params + op.weight
    p.b_row = op.row
    p.b_transposed = not op.transposed
    p.b_valid = op.n_in
    p.c = dx
    p.c_row = dx_row
    p.floor = <real>-INFINITY
    p.epilogue = EPILOGUE_MASK if mask else EPILOGUE_STORE
    p.saved = saved
    p.saved_row = dx_row
    p.act = before.act if derivative and not mask else IDENTITY
    p.act_param = before.param if derivative else 0
    p.act_backward = True
    p.act_saved_is_input = derivative and before.keeps_input
    p.act_width = op.n_in
    p.panel = panel
    product(&p)


cdef inline void take_runs(Product* p, const ShardList* shards, real* panel) noexcept nogil:
    """Let a product sum shard by shard, if there are some (NULL: none), and give it its room."""
    p.panel = panel
    if shards != NULL and shards.count > 1:
        p.cuts, p.runs, p.partial = shards.cuts, shards.count, panel
        p.panel += LEVELS * TILE_SIZE


cdef void bias_product(const Op* op, Py_ssize_t batch, const real* dz, Py_ssize_t dz_row, real* params, real* grads,
                       const Update* update, bint overwrite, const ShardList* shards, real* panel) noexcept nogil:
    """db = sum of dZ over the batch, as `weight_product` has it."""
    cdef Product p
    memset(&p, 0, sizeof(p))
    p.n = round_up(op.n_out, VL)
    p.k = batch
    p.a_row = 1
    p.b = dz
    p.b_row = dz_row
    p.ones_row = True
    p.epilogue = EPILOGUE_UPDATE if update != NULL else EPILOGUE_STORE if overwrite else EPILOGUE_ADD
    p.floor = <real>-INFINITY
    p.update = update + op.bias_group if update != NULL else NULL
    p.act = IDENTITY
    p.c = grads + op.bias
    p.param = params + op.bias
    take_runs(&p, shards, panel)
    product(&p)


cdef void weight_product(const Op* op, bint weight, bint bias, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t batch,
                         const real* x, Py_ssize_t x_row, const real* dz, Py_ssize_t dz_row, real* params, real* grads,
                         const Update* update, bint overwrite, const ShardList* shards,
                         real* panel) noexcept nogil:
    """With `weight` dW = X^T dZ and with `bias` db = sum of dZ over the batch, for `rows` rows of W from `first` on:
    added to the gradients, or stored there, or, with an update, used for the optimiser's step and not kept.
    2 batch in out FLOPs for all rows.

    The bias goes with the last row. A transposed layer reads x in vectors: its rows must be padded.
    """
    cdef Product p
    cdef bint last = first + rows == (op.n_out if op.transposed else op.n_in)
    cdef bint together = weight and not op.transposed and op.bias_group == op.weight_group
    if bias and last and not together:
        bias_product(op, batch, dz, dz_row, params, grads, update, overwrite, shards, panel)
    if not weight:
        return
    memset(&p, 0, sizeof(p))
    p.m = rows
    p.k = batch
    p.epilogue = EPILOGUE_UPDATE if update != NULL else EPILOGUE_STORE if overwrite else EPILOGUE_ADD
    p.floor = <real>-INFINITY
    p.update = update + op.weight_group if update != NULL else NULL
    p.act = IDENTITY
    take_runs(&p, shards, panel)
    p.a_row = 1
    if op.transposed:
        p.n = round_up(op.n_in, VL)
        p.a = dz + first
        p.a_col = dz_row
        p.b = x
        p.b_row = x_row
    else:
        p.n = round_up(op.n_out, VL)
        p.a = x + first
        p.a_col = x_row
        p.b = dz
        p.b_row = dz_row
        p.ones_row = bias and last and together
    p.c = grads + op.weight + first * op.row
    p.c_row = op.row
    p.param = params + op.weight + first * op.row
    product(&p)


cdef void times_weights(const Op* op, Py_ssize_t batch, const real* a, Py_ssize_t a_row, const real* params, bint bias,
                        real* y, Py_ssize_t y_row, real* panel) noexcept nogil:
    """y = a W, plus b if `bias`, with the op's W and b in a block like that of the parameters."""
    cdef Product p
    cdef const real* start = params + op.bias if bias else NULL
    if op.transposed:
        dot_rows(batch, op.n_in, op.n_out, a, a_row, params + op.weight, op.row, start, <real>-INFINITY, y, y_row)
        return
    memset(&p, 0, sizeof(p))
    p.m = batch
    p.n = round_up(op.n_out, VL)
    p.k = op.n_in
    p.a = a
    p.a_row = a_row
    p.a_col = 1
    p.b = params + op.weight
    p.b_row = op.row
    p.c = y
    p.c_row = y_row
    p.start = start
    p.epilogue = EPILOGUE_STORE
    p.floor = <real>-INFINITY
    p.act = IDENTITY
    p.panel = panel
    product(&p)


# The same with sparse rows of x ---------------------------------------------------------------------------------------

cdef void sparse_affine(const Op* op, Py_ssize_t batch, const Csr* x, const Span* spans, const real* params, real* y,
                        Py_ssize_t y_row, real* z) noexcept nogil:
    """`affine` of sparse rows."""
    cdef bint relu = op.act == RELU
    cdef real* sums = y if z == NULL else z
    cdef const real* w = params + op.weight
    cdef const real* bias = params + op.bias
    cdef real floor = <real>(0 if relu else -INFINITY), sum
    cdef Py_ssize_t i, o, k
    cdef const int32_t* column
    cdef const real* value
    for i in range(batch):
        k, column, value = spans[i].end - spans[i].begin, x.column + spans[i].begin, x.value + spans[i].begin
        if not op.transposed:
            gather_sum(k, column, value, w, op.row, round_up(op.n_out, VL), bias, floor, sums + i * y_row)
        for o in range(op.n_out if op.transposed else 0):
            sum = bias[o] + gather_dot(k, column, value, w + o * op.row, 1)
            sums[i * y_row + o] = floor if sum < floor else sum
    if not relu and op.act != IDENTITY:
        activate_rows(op.act, op.param, batch, op.n_out, sums, y_row, y, y_row)


cdef void finish_gradient(Py_ssize_t rows, Py_ssize_t n, const real* g, real* param, real* grad, Py_ssize_t row,
                          const Update* update, bint overwrite) noexcept nogil:
    """What `weight_product` does with a gradient: here of `rows` rows that have the same one, g."""
    cdef Py_ssize_t i
    if update != NULL:
        update_rows(rows, n, param, row, g, 0, update)
    else:
        for i in range(rows):
            add_rows(1, n, g, 0, not overwrite, grad + i * row, 0)


cdef inline bint visits_all(const Update* update, bint overwrite) noexcept nogil:
    """Whether a gradient of zero changes anything."""
    return overwrite if update == NULL else update.kind != UPDATE_PLAIN


cdef void sparse_weight_product(const Op* op, const Columns* x, Py_ssize_t first, Py_ssize_t rows, const real* dz,
                                Py_ssize_t dz_row, real* params, real* grads, const Update* update, bint overwrite,
                                real* panel) noexcept nogil:
    """`weight_product` of sparse rows, without the bias.

    Rows of W whose column has no entries have a gradient of zero. Where that changes nothing they are not visited, and
    the work does not depend on how many columns x has.
    """
    cdef Py_ssize_t stop = first + rows, n = round_up(op.n_out, VL), i = 0, j = first, end, at, block, width
    cdef bint all_rows = visits_all(update, overwrite)
    cdef real* g = panel
    cdef real* zeros = panel + SPARSE_BLOCK
    cdef int32_t place
    memset(zeros, 0, SPARSE_BLOCK * sizeof(real))
    while True:
        if not all_rows:            # the next column that has entries
            while i < x.n and not first <= x.column[i] < stop:
                i += 1
            if i == x.n:
                break
            if i + SPARSE_AHEAD < x.n:
                for at from 0 <= at < n by LINE // <Py_ssize_t>sizeof(real):
                    prefetch(params + op.weight + x.column[i + SPARSE_AHEAD] * op.row + at)
            j = x.column[i]
            i += 1
        elif j == stop:
            break
        end, place = j + 1, x.place[j]
        while place == 0 and end < stop and x.place[end] == 0:
            end += 1
        for block from 0 <= block < n by SPARSE_BLOCK:
            at, width = op.weight + j * op.row + block, smaller(SPARSE_BLOCK, n - block)
            if place:
                gather_column(x, place, dz + block, dz_row, width, g)
            finish_gradient(end - j, width, g if place else zeros, params + at, grads + at, op.row, update, overwrite)
        j = end


cdef void sparse_transposed_product(const Op* op, const Columns* x, Py_ssize_t first, Py_ssize_t rows, const real* dz,
                                    Py_ssize_t dz_row, real* params, real* grads, const Update* update,
                                    bint overwrite, real* panel) noexcept nogil:
    """The same for W^T (out, in), by blocks of columns. A layer so narrow has no more outputs than fit a vector."""
    cdef Py_ssize_t stop = first + rows, block, width, i, j, o, at
    cdef real[64] g
    cdef int32_t place
    if not visits_all(update, overwrite):
        for i in range(1, x.n + 1):
            gather_column(x, i, dz, dz_row, VL, g)
            for o in range(first, stop):
                at = op.weight + o * op.row + x.column[i - 1]
                if update != NULL:
                    params[at] -= update.lr * g[o]
                else:
                    grads[at] += g[o]
        return
    for block from 0 <= block < op.n_in by SPARSE_BLOCK:
        width = smaller(SPARSE_BLOCK, op.n_in - block)
        memset(panel, 0, rows * SPARSE_BLOCK * sizeof(real))
        for j in range(width):
            place = x.place[block + j]
            if place:
                gather_column(x, place, dz, dz_row, VL, g)
                for o in range(first, stop):
                    panel[(o - first) * SPARSE_BLOCK + j] = g[o]
        for o in range(first, stop):
            at = op.weight + o * op.row + block
            finish_gradient(1, round_up(width, VL), panel + (o - first) * SPARSE_BLOCK, params + at, grads + at, 0,
                            update, overwrite)


# The op's row of the table --------------------------------------------------------------------------------------------

cdef void linear_op_forward(const Chunk* c, const Op* op) noexcept nogil:
    cdef real* z = row_of(c.ws.before, c.net, op.dst, c.first) if c.keep and op.keeps_input else NULL
    if c.csr != NULL and op.src == 0:
        sparse_affine(op, c.batch, c.csr, c.ws.spans + c.first, c.net.params, output(c, op), row_size(c, op), z)
        return
    affine(op, c.batch, source(c, op.src), source_row(c, op.src), c.net.params, output(c, op), row_size(c, op), z,
           c.panel, True)


cdef void derivative_in_place(const Chunk* c, const Op* op) noexcept nogil:
    """Turn the gradient of a linear op's result into that of x W + b.

    ReLU's whole vectors at a time: in the padding the gradient is zero and stays so. Others could make 0 * inf of it.
    """
    cdef real* dz = output_gradient(c, op)
    if op.act != IDENTITY:
        activate_backward_rows(op.act, op.param, op.keeps_input, c.batch,
                               round_up(op.n_out, VL) if op.act == RELU else op.n_out, dz, row_size(c, op),
                               kept(c, op), kept_row(c, op), dz, row_size(c, op))


cdef void linear_op_backward(const Chunk* c, const Op* op) noexcept nogil:
    cdef const Op* before = &c.net.ops[op.fused_into] if op.fused_into >= 0 else NULL
    if op.own_derivative:
        derivative_in_place(c, op)
    if wants_gradient(c, op.src):
        input_gradient(op, before, kept(c, before) if before != NULL else NULL, c.batch, output_gradient(c, op),
                       row_size(c, op), c.net.params, gradient_room(c, op), c.net.buffers[op.src].row, c.few, c.panel)
        gradient_done(c, op)


cdef void linear_op_tangent(const Chunk* c, const Op* op) noexcept nogil:
    """z' = x' W + x W' + b', y' = f'(z) z'."""
    cdef Py_ssize_t x_row = c.net.buffers[op.src].row, row = row_size(c, op)
    cdef real* y_t = row_of(c.t.value, c.net, op.dst, c.first)
    cdef real* z_t = y_t if op.act == IDENTITY else row_of(c.t.before, c.net, op.dst, c.first)
    cdef real* part = c.t.scratch + c.first * c.net.widest
    cdef bint moves = op.src != 0 or c.t.inputs         # else x' is zero
    if moves:
        times_weights(op, c.batch, row_of(c.t.value, c.net, op.src, c.first), x_row, c.net.params, False, z_t, row,
                      c.panel)
    if c.t.parameters:
        times_weights(op, c.batch, source(c, op.src), source_row(c, op.src), c.t.params, op.has_bias,
                      part if moves else z_t, row, c.panel)
        if moves:
            add_rows(c.batch, round_up(op.n_out, VL), part, row, True, z_t, row)
    if op.act != IDENTITY:
        activate_backward_rows(op.act, op.param, op.keeps_input, c.batch, op.n_out, z_t, row, kept(c, op),
                               kept_row(c, op), y_t, row)


cdef void linear_op_second(const Chunk* c, const Op* op) noexcept nogil:
    """dz = dy f', dz' = dy' f' + dy f'' z'; dx = dz W^T, dx' = dz' W^T + dz W'^T."""
    cdef Py_ssize_t x_row = c.net.buffers[op.src].row, row = row_size(c, op), n = round_up(op.n_in, VL)
    cdef real* dz = output_gradient(c, op)
    cdef real* dz_t = row_of(c.t.grad, c.net, op.dst, c.first)
    cdef real* dx = row_of(c.ws.grad, c.net, op.src, c.first)
    cdef real* dx_t = row_of(c.t.grad, c.net, op.src, c.first)
    cdef real* part = c.t.scratch + c.first * c.net.widest
    cdef bint add = op.adds[0]
    if op.act != IDENTITY:
        activate_second_rows(op.act, op.param, op.keeps_input, c.batch, op.n_out, dz, dz_t, row, kept(c, op),
                             kept_row(c, op), row_of(c.t.before, c.net, op.dst, c.first), row)
    if not wants_gradient(c, op.src):
        return
    input_gradient(op, NULL, NULL, c.batch, dz, row, c.net.params, part if add else dx, x_row, False, c.panel)
    if add:
        add_rows(c.batch, n, part, x_row, True, dx, x_row)
    input_gradient(op, NULL, NULL, c.batch, dz_t, row, c.net.params, part if add else dx_t, x_row, False, c.panel)
    if add:
        add_rows(c.batch, n, part, x_row, True, dx_t, x_row)
    if c.t.parameters:
        input_gradient(op, NULL, NULL, c.batch, dz, row, c.t.params, part, x_row, False, c.panel)
        add_rows(c.batch, n, part, x_row, True, dx_t, x_row)


cdef Py_ssize_t linear_op_pieces(const Op* op, int threads, Py_ssize_t* rows, Py_ssize_t* unit) noexcept nogil:
    """As many for each thread, and equal but for one tile: the last to finish is not far behind."""
    rows[0], unit[0] = (op.n_out if op.transposed else op.n_in), TILE_MR
    return smaller(4, rows[0] // (PIECE_ROWS * threads)) * threads if threads > 1 else 1


cdef void linear_op_weight_gradient(const Pass* p, const Op* op, Py_ssize_t first, Py_ssize_t rows, const real* x,
                                    Py_ssize_t x_row, real* panel) noexcept nogil:
    cdef const real* dz = p.ws.grad[op.dst]
    cdef Py_ssize_t dz_row = p.net.buffers[op.dst].row
    cdef const Update* update = p.wants.update
    cdef bint weight = wants_weight(p, op)
    if weight and p.batch.csr.start != NULL and op.src == 0:
        if op.transposed:
            sparse_transposed_product(op, &p.ws.columns, first, rows, dz, dz_row, p.net.params, p.net.grads,
                                      update + op.weight_group if update != NULL else NULL, p.wants.overwrite, panel)
        else:
            sparse_weight_product(op, &p.ws.columns, first, rows, dz, dz_row, p.net.params, p.net.grads,
                                  update + op.weight_group if update != NULL else NULL, p.wants.overwrite, panel)
        weight = False
    weight_product(op, weight, wants_bias(p, op), first, rows, p.batch.rows, x, x_row, dz, dz_row, p.net.params,
                   p.net.grads, update, p.wants.overwrite, p.shards, panel)


cdef void linear_op_weight_tangent(const Chunk* c, const Op* op, Py_ssize_t first, Py_ssize_t rows) noexcept nogil:
    """dW' = x^T dz' + x'^T dz and db' = sum of dz', of the rows of the chunk: added to what is there."""
    cdef Py_ssize_t x_row = c.net.buffers[op.src].row, row = row_size(c, op)
    weight_product(op, True, op.has_bias, first, rows, c.batch, row_of(c.ws.value, c.net, op.src, c.first), x_row,
                   row_of(c.t.grad, c.net, op.dst, c.first), row, c.net.params, c.t.grads, NULL, False, NULL, c.panel)
    if op.src != 0 or c.t.inputs:
        weight_product(op, True, False, first, rows, c.batch, row_of(c.t.value, c.net, op.src, c.first), x_row,
                       row_of(c.ws.grad, c.net, op.dst, c.first), row, c.net.params, c.t.grads, NULL, False, NULL,
                       c.panel)


cdef void linear_op_jet(const Chunk* c, const Op* op) noexcept nogil:
    cdef Py_ssize_t rows = c.jets.parts * c.batch, x_row = c.net.buffers[op.src].row, row = row_size(c, op)
    cdef const real* x = c.ws.value[op.src]
    cdef real* y = c.ws.value[op.dst]
    cdef real* z = y if op.act == IDENTITY else c.jets.before[op.dst]
    times_weights(op, c.batch, x, x_row, c.net.params, op.has_bias, z, row, c.panel)
    times_weights(op, rows - c.batch, x + c.batch * x_row, x_row, c.net.params, False, z + c.batch * row, row, c.panel)
    if op.act != IDENTITY:
        activate_jet(c, op, z, y)


cdef void linear_op_jet_backward(const Chunk* c, const Op* op) noexcept nogil:
    cdef Py_ssize_t rows = c.jets.parts * c.batch, x_row = c.net.buffers[op.src].row, row = row_size(c, op)
    cdef real* dz = c.ws.grad[op.dst]
    cdef real* dx = gradient_room(c, op)
    if op.act != IDENTITY:
        activate_jet_backward(c, op, c.jets.before[op.dst], c.ws.value[op.dst], dz)
    weight_product(op, True, False, 0, op.n_out if op.transposed else op.n_in, rows, c.ws.value[op.src], x_row, dz, row,
                   c.net.params, c.t.grads, NULL, False, NULL, c.panel)
    if op.has_bias:
        bias_product(op, c.batch, dz, row, c.net.params, c.t.grads, NULL, False, NULL, c.panel)
    if wants_gradient(c, op.src):
        input_gradient(op, NULL, NULL, rows, dz, row, c.net.params, dx, x_row, False, c.panel)
        if op.adds[0]:
            add_columns(rows, op.n_in, dx, x_row, True, c.ws.grad[op.src], x_row)


cdef OpMethods LINEAR = plain_op("linear")
LINEAR.place = linear_op_place
LINEAR.forward = linear_op_forward
LINEAR.backward = linear_op_backward
LINEAR.tangent = linear_op_tangent
LINEAR.second = linear_op_second
LINEAR.jet = linear_op_jet
LINEAR.jet_backward = linear_op_jet_backward
LINEAR.pieces = linear_op_pieces
LINEAR.weight_gradient = linear_op_weight_gradient
LINEAR.weight_tangent = linear_op_weight_tangent
LINEAR.single = LINEAR.sparse = LINEAR.shards = True
define(&LINEAR)
