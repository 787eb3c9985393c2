# From Python's description of a network to the structs that the walks read; and its release.

cdef int compile_network(Network* net, list shapes, list ops, uint64_t seed) except -1:
    """Fill in an empty network, to be cleared with clear_network, but for its loss; parameters are zero.

    shapes: of each buffer without the batch, the first the input's. ops: dicts in order, with kind (a key of OPS), src
    (list of buffers) and dst; further, by kind: act (from ACTIVATIONS) and param, weight, bias, momentum, l1, l2.
    """
    cdef Op* op
    cdef int i, s, sources = 0
    net.n_ops = len(ops)
    net.n_buffers = len(shapes)
    net.ops = <Op*>calloc(net.n_ops, sizeof(Op))
    net.buffers = <Buffer*>calloc(net.n_buffers, sizeof(Buffer))
    for spec in ops:
        sources += len(spec["src"])
    net.sources = <int*>calloc(sources, sizeof(int))
    net.adds = <char*>calloc(sources, 1)
    net.segments = <int*>calloc(net.n_ops + 1, sizeof(int))
    if (net.ops == NULL or net.sources == NULL or net.adds == NULL or net.segments == NULL
            or net.buffers == NULL):
        raise MemoryError()
    for i, shape in enumerate(shapes):
        shape_buffer(&net.buffers[i], shape)
        net.widest = larger(net.widest, net.buffers[i].row)
    net.outputs = net.buffers[net.n_buffers - 1].width
    net.single = net.sparse = True
    sources = 0
    for i, spec in enumerate(ops):
        op = &net.ops[i]
        if spec["kind"] not in OPS:
            raise ValueError(f"op {i}: no kernel for {spec['kind']!r}; there are {', '.join(OPS)}")
        op.does = OP_TABLE[<int>OPS[spec["kind"]]]
        op.index = i
        op.n_src = len(spec["src"])
        if op.n_src > (MOST_SOURCES if op.does.merges else 1):
            raise ValueError(f"op {i}, {spec['kind']}: too many sources, {op.n_src}")
        op.srcs = net.sources + sources
        op.adds = net.adds + sources
        for s in range(op.n_src):
            op.srcs[s] = spec["src"][s]
        sources += op.n_src
        op.src = op.srcs[0]
        op.dst = spec["dst"]
        op.act = spec.get("act", IDENTITY)
        op.param = <double>spec.get("param", 0.0)       # not `real`: to Cython that is a float
        op.keeps_input = op.act != IDENTITY and keeps_input(op.act, op.param)
        op.own_derivative = True
        op.training = op.trains_weight = op.trains_bias = True
        op.tracked = &op.own_tracked
        op.fused_into = -1
        op.n_in = net.buffers[op.src].width
        op.n_out = net.buffers[op.dst].width
        op.l1 = spec.get("l1", 0.0)
        op.l2 = spec.get("l2", 0.0)
        op.key = random_bits(seed, i)
        op.does.place(net, op, spec)
        net.work += op.work
        net.n_parameters += larger(op.rows, 1) * op.columns * op.has_weight + op.n_out * op.has_bias
        net.single = net.single and op.does.single and op.src == op.dst - 1
        net.random = net.random or op.does.random
        for s in range(op.n_src):
            net.sparse = net.sparse and (op.does.sparse or op.srcs[s] != 0)
    share_gradients(net)
    fuse_derivatives(net)
    note_modes(net)
    net.lanes_infer, net.lanes_train = samples_fit(net, False), samples_fit(net, True)
    return 0


cdef void note_modes(Network* net) noexcept nogil:
    """What follows for the network from the modes of its ops and from what they train."""
    cdef int i
    cdef const Op* op
    cdef bint differ = False, on = False
    net.n_segments = 1
    net.frozen = False
    net.first_trained = net.n_ops
    for i in range(net.n_ops):
        op = &net.ops[i]
        if op.does.batch != NULL and op.training:
            net.segments[net.n_segments] = i
            net.n_segments += 1
        if op.does.random or op.does.batch != NULL:
            differ = True
            on = on or op.training
        net.frozen = net.frozen or op.has_weight and not op.trains_weight or op.has_bias and not op.trains_bias
        if op.has_weight and op.trains_weight or op.has_bias and op.trains_bias:
            net.first_trained = smaller(net.first_trained, i)
    net.all_off = differ and not on


cdef int shape_buffer(Buffer* buffer, tuple shape) except -1:
    """The padding rule: a row of a buffer is its numbers one after another, and then whole vectors."""
    cdef int axis
    if not 1 <= len(shape) <= MOST_AXES:
        raise ValueError(f"a buffer's shape: expected from 1 to {MOST_AXES} axes, got {shape}")
    buffer.axes = len(shape)
    buffer.width = 1
    for axis in range(buffer.axes):
        if shape[axis] >= CNN_MOST >> 10:
            raise MemoryError(f"a width of {shape[axis]} is too large for this machine's addresses")
        buffer.shape[axis] = shape[axis]
        buffer.width = times(buffer.width, buffer.shape[axis])
    if buffer.width >= CNN_MOST >> 10:
        raise MemoryError(f"a buffer of shape {shape} is too large for this machine's addresses")
    buffer.row = padded_row(buffer.width, 64)
    return 0


cdef void share_gradients(Network* net):
    """Mark, going back as walk_backward does, who adds to a gradient that a later reader has stored."""
    cdef int i, s
    cdef const Op* op
    seen = set()
    for i in range(net.n_ops - 1, -1, -1):
        op = &net.ops[i]
        for s in range(op.n_src):
            op.adds[s] = op.srcs[s] in seen
            net.scratch = net.scratch or op.adds[s]
            seen.add(op.srcs[s])


cdef void fuse_derivatives(Network* net) noexcept:
    """Where the only reader of a linear op's result is a linear op, that one multiplies by act' as it makes dX."""
    cdef int i, j, s, readers, reader = 0
    for i in range(net.n_ops):
        readers = 0
        for j in range(net.n_ops):
            for s in range(net.ops[j].n_src):
                if net.ops[j].srcs[s] == net.ops[i].dst:
                    readers += 1
                    reader = j
        if readers == 1 and net.ops[i].does == &LINEAR and net.ops[reader].does == &LINEAR:
            net.ops[reader].fused_into = i
            net.ops[i].own_derivative = False


cdef void clear_network(Network* net) noexcept:
    """Free what compile_network took."""
    free(net.ops)
    free(net.sources)
    free(net.adds)
    free(net.segments)
    free(net.buffers)
    memset(net, 0, sizeof(Network))


cdef int share_memory(Network* net, const Network* of, list places) except -1:
    """Let the ops of a network have their parameters and statistics where those of another one are; places: for each
    op the other's number, or -1 for an op without parameters. Both must have been compiled from the same layers."""
    cdef int i
    cdef Op* op
    cdef const Op* other
    if net.n_ops != len(places):
        raise ValueError(f"expected {net.n_ops} places, got {len(places)}")
    for i in range(net.n_ops):
        op = &net.ops[i]
        if not (op.has_weight or op.has_bias or op.has_running):
            continue
        if not 0 <= places[i] < of.n_ops:
            raise ValueError(f"op {i}: expected the number of an op with parameters, got {places[i]}")
        other = &of.ops[<int>places[i]]
        if op.does != other.does or op.n_in != other.n_in or op.n_out != other.n_out or op.row != other.row:
            raise ValueError(f"op {i}: op {places[i]} is another one")
        op.weight, op.bias, op.running, op.tracked = other.weight, other.bias, other.running, other.tracked
        op.weight_group, op.bias_group = other.weight_group, other.bias_group
        op.trains_weight, op.trains_bias = other.trains_weight, other.trains_bias
    net.params, net.grads, net.state, net.n_block = of.params, of.grads, of.state, of.n_block
    net.running, net.running_exact, net.n_running = of.running, of.running_exact, of.n_running
    note_modes(net)
    return 0
