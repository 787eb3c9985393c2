# Workspaces: room for the values, and in training the gradients, of a batch. The only place that knows their layout.

cdef Py_ssize_t lay_out(const Network* net, Workspace* ws, Py_ssize_t rows, bint training, bint dense,
                        real* at) noexcept nogil:
    """Reals that a workspace for so many rows takes, without the panels. With at, let its pointers lead there. Buffer 0
    has room if `dense`.

    The pointers' own room, `pointers_of`, must be there then.
    """
    cdef Py_ssize_t n = 0, size
    cdef const Buffer* buffer
    cdef int b, part
    for part in range(3 if training else 1):
        for b in range(0 if dense else 1, net.n_buffers):
            buffer = &net.buffers[b]
            if part != 1 or buffer.preactivation:
                if at != NULL:
                    ws.value[part * net.n_buffers + b] = at + n
                n += rows * buffer.row
    if training and net.scratch:
        if at != NULL:
            ws.scratch = at + n
        n += rows * net.widest
    if training:
        if at != NULL:
            ws.lanes = at + n
        n += round_up(sample_sums(net, rows), VL)
    for b in range(net.n_ops):
        size = net.ops[b].does.extra_size(&net.ops[b], rows)
        if at != NULL:
            ws.extra[b] = at + n
        n += round_up(size, VL)
    if at != NULL:
        ws.capacity, ws.dense = rows, dense
        ws.panel = at + n
    return n


cdef Py_ssize_t pointers_of(const Network* net, Workspace* ws, real** at, bint training) noexcept nogil:
    """How many pointers a workspace has. With at, they lie from there on."""
    cdef Py_ssize_t buffers = net.n_buffers * (3 if training else 1)
    if at != NULL:
        ws.value = at
        if training:
            ws.before, ws.grad = at + net.n_buffers, at + 2 * net.n_buffers
        ws.extra = at + buffers
    return buffers + net.n_ops


cdef void release_columns(Columns* columns) noexcept nogil:
    free(columns.place)
    free(columns.column)
    free(columns.start)
    free(columns.row)
    free(columns.value)
    memset(columns, 0, sizeof(Columns))


cdef void release_workspace(Workspace* ws) noexcept nogil:
    release(&ws.arena)
    free(ws.value)
    free(ws.sums)
    free(ws.spans)
    release_columns(&ws.columns)
    memset(ws, 0, sizeof(Workspace))


cdef Py_ssize_t chunk_rows(const Network* net, bint sparse) noexcept nogil:
    """Rows of a chunk of `predict` whose activations stay in cache; sparse: x is."""
    cdef Py_ssize_t bytes = 0
    cdef int b
    for b in range(sparse, net.n_buffers):
        bytes += net.buffers[b].row * sizeof(real)
    return larger(CHUNK_BYTES // bytes // LOSS_BLOCK, 1) * LOSS_BLOCK


cdef size_t workspace_bytes(const Workspace* ws) noexcept nogil:
    cdef const Columns* columns = &ws.columns
    cdef size_t entry = 2 * sizeof(int32_t) + sizeof(int64_t) + sizeof(real)
    return (ws.arena.bytes + ws.sums_bytes + (ws.capacity * sizeof(Span) if ws.spans != NULL else 0)
            + columns.entries * entry + columns.columns * sizeof(int32_t))


cdef int reserve(const Network* net, Workspace* ws, Py_ssize_t batch, bint training, int threads,
                 bint dense=True) except -1:
    """Make room for a batch: whether a new workspace was needed. The old one stays if memory is short.

    dense: for the rows of x as well; sparse rows need `reserve_entries` afterwards.
    """
    cdef Workspace grown
    cdef Py_ssize_t blocks, target
    if batch <= ws.capacity and threads <= ws.threads and (ws.dense or not dense):
        return 0
    memset(&grown, 0, sizeof(grown))
    batch = larger(batch, larger(ws.capacity, 1))
    grown.threads = <int>larger(threads, ws.threads)
    if times(times(batch, net.widest + TILE_NV * VL), 4 * (net.n_buffers + net.n_ops + grown.threads)) >= CNN_MOST:
        raise MemoryError(f"a batch of {batch} rows is too large for this machine's addresses")
    grown.training = ws.training
    grown.row0 = ws.row0
    grown.panel_size = panel_size(batch, net.widest) + LEVELS * TILE_SIZE if training else panel_size(0, 0)
    try:
        pointers_of(net, &grown, <real**>allocate_plain(pointers_of(net, NULL, NULL, training) * sizeof(real*)),
                    training)
        if training:        # losses, correct, targets and weights lie in one piece
            blocks = batch // LOSS_BLOCK + 1
            target = larger(net.outputs * sizeof(real), sizeof(int64_t))
            grown.sums_bytes = 16 * blocks + batch * (target + sizeof(real))
            grown.sums = allocate_plain(grown.sums_bytes)
            grown.losses = <double*>grown.sums
            grown.correct = <Py_ssize_t*>(grown.losses + blocks)
            grown.targets = <char*>(grown.correct + blocks)
            grown.weights = <real*>(grown.targets + batch * target)
        allocate(&grown.arena, lay_out(net, NULL, batch, training, dense, NULL) + grown.threads * grown.panel_size)
    except MemoryError:
        release_workspace(&grown)
        raise
    lay_out(net, &grown, batch, training, dense, grown.arena.at)
    release_workspace(ws)
    ws[0] = grown
    return 1


cdef int reserve_entries(const Network* net, Workspace* ws, bint training, Py_ssize_t entries) except -1:
    """Make room for the entries of sparse rows, as many rows as there is room for: whether memory was needed."""
    cdef Columns* columns = &ws.columns
    cdef bint grown = ws.spans == NULL
    if grown:
        ws.spans = <Span*>allocate_plain(ws.capacity * sizeof(Span))
    if training and (columns.place == NULL or entries > columns.entries):
        grown = True
        entries = larger(entries, columns.entries)
        release_columns(columns)
        try:
            columns.place = <int32_t*>allocate_plain(net.buffers[0].width * sizeof(int32_t))
            columns.column = <int32_t*>allocate_plain(entries * sizeof(int32_t))
            columns.start = <int64_t*>allocate_plain((entries + 1) * sizeof(int64_t))
            columns.row = <int32_t*>allocate_plain(entries * sizeof(int32_t))
            columns.value = <real*>allocate_plain(entries * sizeof(real))
        except MemoryError:
            release_columns(columns)
            raise
        columns.entries, columns.columns = entries, net.buffers[0].width
    return grown


cdef void* allocate_plain(size_t bytes) except NULL:
    """Zeroed memory that `free` frees."""
    cdef void* memory = calloc(larger(bytes, 1), 1)
    if memory == NULL:
        raise MemoryError(f"cannot allocate {bytes} bytes")
    return memory
