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
    net.n_segments = 1
    net.single = True
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
        op.fused_into = -1
        op.n_in = net.buffers[op.src].width
        op.n_out = net.buffers[op.dst].width
        op.l1 = spec.get("l1", 0.0)
        op.l2 = spec.get("l2", 0.0)
        op.key = random_bits(seed, i)
        op.does.place(net, op, spec)
        net.work += op.work
        net.n_parameters += (larger(op.rows, 1) * op.has_weight + op.has_bias) * op.n_out
        net.single = net.single and op.does.single and op.src == op.dst - 1
        net.random = net.random or op.does.random
        if op.does.batch != NULL:
            net.segments[net.n_segments] = i
            net.n_segments += 1
    share_gradients(net)
    fuse_derivatives(net)
    return 0


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
