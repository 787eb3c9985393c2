# Values of a model with their derivatives by its inputs, and the gradient in the parameters of a loss of them, block of
# rows after block: a block's jets (see jet.pxi) fit in L2 on their way forward and back. Back, they are computed anew:
# what a forward pass would have to keep is more than memory gives in the time that computing takes.
#
# Rows are cut into blocks, and blocks into segments, by numbers that depend on the model and the rows alone. Threads
# take segments; each has a gradient of its own, and these are added up in order: so results do not depend on threads.

cdef enum:
    JET_BYTES = 3 << 18         # of a block: three quarters of an L2 cache of 1 MiB
    JET_ROWS = 64               # of a block, at most
    SEGMENTS = 32               # at most, and LEAST_SEGMENTS where their gradients together are more than
    LEAST_SEGMENTS = 8          # ... SEGMENT_BYTES
    SEGMENT_BYTES = 32 << 20

# What a thread works in.
cdef struct JetSpace:
    Workspace ws
    Tangents t
    Jets jets
    Arena arena
    void* pointers

cdef struct JetPass:
    const Network* net
    JetSpace* spaces
    Py_ssize_t rows
    Py_ssize_t block
    Py_ssize_t segments
    int64_t claimed
    const real* x
    Py_ssize_t x_row
    bint backward
    real* u                     # (rows, outputs), their derivatives (rows, outputs, inputs), and the second ones
    real* du                    # (rows, outputs, seconds); or with `backward` the gradients of a loss by them
    real* d2u
    real* grads                 # (segments, n_block)


cdef Py_ssize_t most_segments(const Network* net) noexcept nogil:
    """Of rows, each with a gradient of its own."""
    cdef Py_ssize_t fit = SEGMENT_BYTES // (larger(1, net.n_block) * <Py_ssize_t>sizeof(real))
    return larger(LEAST_SEGMENTS, smaller(SEGMENTS, fit))


cdef void release_jet_space(JetSpace* space) noexcept nogil:
    release_workspace(&space.ws)
    release(&space.arena)
    free(space.pointers)
    memset(space, 0, sizeof(JetSpace))


cdef void jet_shape(const Network* net, Py_ssize_t seconds, Jets* q) noexcept nogil:
    memset(q, 0, sizeof(Jets))
    q.inputs, q.seconds = net.buffers[0].width, seconds
    q.each = q.inputs // q.seconds if q.seconds else q.inputs
    q.parts = 1 + q.inputs + q.seconds


cdef Py_ssize_t jet_block(const Network* net, const Jets* q) noexcept nogil:
    """Rows of a block."""
    cdef Py_ssize_t row = 0
    cdef int b
    for b in range(net.n_buffers):
        row += 3 * net.buffers[b].row * sizeof(real)
    return larger(1, smaller(JET_ROWS, JET_BYTES // (row * q.parts) // 4 * 4))


cdef int reserve_jets(const Network* net, JetSpace* space, Py_ssize_t block, const Jets* shape) except -1:
    """Room for the jets of a block. An error leaves what `release_jet_space` frees."""
    cdef Py_ssize_t n = times(3, net.widest), b, size
    cdef bint scratch = False
    cdef real** at
    cdef int i
    if space.ws.capacity >= block * shape.parts and space.jets.parts == shape.parts:
        space.jets.seconds, space.jets.each = shape.seconds, shape.each     # one input: Laplacian and second derivative
        return 0
    release_jet_space(space)
    reserve(net, &space.ws, times(block, shape.parts), True, 1)
    space.jets = shape[0]
    at = <real**>allocate_plain(5 * net.n_buffers * sizeof(real*))
    space.pointers = at
    space.t.value, space.t.before, space.jets.part_grad = at, at + net.n_buffers, at + 2 * net.n_buffers
    space.jets.zero, space.jets.before = at + 3 * net.n_buffers, at + 4 * net.n_buffers
    for i in range(net.n_ops):
        scratch = scratch or net.ops[i].does.jet_scratch
    n += times(4 * shape.parts, net.widest) if scratch else 0
    for b in range(net.n_buffers):
        n += block * net.buffers[b].row * (1 + shape.parts)
    space.jets.slopes = allocate(&space.arena, n)
    space.jets.scratch = space.jets.slopes + 3 * net.widest
    n = 3 * net.widest + (4 * shape.parts * net.widest if scratch else 0)
    for b in range(net.n_buffers):
        size = block * net.buffers[b].row
        space.jets.zero[b], space.jets.before[b] = space.arena.at + n, space.arena.at + n + size
        n += size * (1 + shape.parts)
    space.t.inputs = True
    return 0


cdef inline void move_parts(const Chunk* c, const JetPass* p, Py_ssize_t first, bint out) noexcept nogil:
    """The parts of the outputs into the caller's arrays, or the gradients by them out of these."""
    cdef const Jets* q = c.jets
    cdef Py_ssize_t row = c.net.buffers[c.net.n_buffers - 1].row, n = c.net.outputs, i, o, part, at
    cdef real* jet = (c.ws.value if out else c.ws.grad)[c.net.n_buffers - 1]
    cdef real* there
    for part in range(q.parts):
        for i in range(first, first + c.batch):
            for o in range(n):
                at = i * n + o
                if part == 0:
                    there = p.u + at
                elif part <= q.inputs:
                    there = p.du + at * q.inputs + part - 1
                else:
                    there = p.d2u + at * q.seconds + part - 1 - q.inputs
                if out:
                    there[0] = jet[o]
                else:
                    jet[o] = there[0]
            jet += row


cdef void jet_rows(const JetPass* p, JetSpace* space, Py_ssize_t first, Py_ssize_t rows) noexcept nogil:
    """A block, forward and, asked for, back."""
    cdef const Network* net = p.net
    cdef Py_ssize_t row = net.buffers[0].row, i, k
    cdef real* x = space.ws.value[0]
    cdef Chunk c
    memset(&c, 0, sizeof(c))
    c.net, c.ws, c.t, c.jets, c.panel = net, &space.ws, &space.t, &space.jets, space.ws.panel
    c.batch, c.all_rows, c.x, c.x_row, c.keep = rows, rows, x, row, True
    memset(x, 0, space.jets.parts * rows * row * sizeof(real))
    copy_rows(rows, net.buffers[0].width, p.x + first * p.x_row, p.x_row, x, row)
    for k in range(space.jets.inputs):
        for i in range(rows):
            x[((1 + k) * rows + i) * row + k] = 1
    walk_jet(&c)
    if p.backward:
        memset(space.ws.grad[net.n_buffers - 1], 0, space.jets.parts * rows * net.buffers[net.n_buffers - 1].row
               * sizeof(real))
        move_parts(&c, p, first, False)
        walk_jet_backward(&c)
    else:
        move_parts(&c, p, first, True)


cdef void jet_task(void* argument, int thread) noexcept nogil:
    cdef JetPass* p = <JetPass*>argument
    cdef JetSpace* space = &p.spaces[thread]
    cdef Py_ssize_t blocks = (p.rows + p.block - 1) // p.block, segment, b
    while True:
        segment = atomic_add(&p.claimed, 1)
        if segment >= p.segments:
            break
        space.t.grads = p.grads + segment * p.net.n_block
        for b in range(blocks * segment // p.segments, blocks * (segment + 1) // p.segments):
            jet_rows(p, space, b * p.block, smaller(p.block, p.rows - b * p.block))
