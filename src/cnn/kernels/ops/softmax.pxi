# Softmax and log-softmax along rows, and their gradients. No Jacobian is formed: the product with it is one sum and one
# pass (Goodfellow, Bengio and Courville, Deep Learning, 2016, section 6.2.2.3, for the stable form).
#
# All (batch, n); x may end at n; y, dy and dx are padded to VL, and the padding of y and dx is written with zeros.


cdef void softmax_rows(bint logarithm, Py_ssize_t rows, Py_ssize_t n, const real* x, Py_ssize_t x_row, real* y,
                       Py_ssize_t y_row) noexcept nogil:
    """y = exp(x - t) / sum(exp(x - t)), or its logarithm y = x - t - log(sum(exp(x - t))), t the largest x of the row.

    x, y (rows, n); y may be x. One exponential an element, three passes over the row: two reads of x, one write of y
    and for softmax one more read and write of it. A row with NaN or inf, or with -inf alone, gives NaN.
    """
    cdef Py_ssize_t i, j, last = (n - 1) // VL * VL, rest = n - last
    cdef vf e, top, sums, shift
    cdef double total
    for i in range(rows):
        top = vf_first(vf_load_first(x + last, rest), rest, vf_set(<real>-INFINITY))
        for j from 0 <= j < last by VL:
            top = vf_max(top, vf_load(x + j))
        shift = vf_set(vf_largest(top))
        sums = vf_set(0)
        for j from 0 <= j < last by VL:
            e = v_exp(vf_load(x + j) - shift)
            sums = sums + e
            if not logarithm:
                vf_store(y + j, e)
        e = vf_first(v_exp(vf_load_first(x + last, rest) - shift), rest, vf_set(0))
        total = vf_sum(sums + e, VL)
        if logarithm:
            sums = vf_set(<real>log(total))
            e = vf_load_first(x + last, rest)
            for j from 0 <= j < last by VL:
                vf_store(y + j, vf_load(x + j) - shift - sums)
            vf_store(y + last, vf_first(e - shift - sums, rest, vf_set(0)))
        else:
            sums = vf_set(<real>(1 / total))
            for j from 0 <= j < last by VL:
                vf_store(y + j, vf_load(y + j) * sums)
            vf_store(y + last, vf_first(e * sums, rest, vf_set(0)))
        x += x_row
        y += y_row


cdef void softmax_backward_rows(bint logarithm, Py_ssize_t rows, Py_ssize_t n, const real* y, Py_ssize_t y_row,
                                const real* dy, Py_ssize_t dy_row, real* dx, Py_ssize_t dx_row) noexcept nogil:
    """dx = y (dy - sum(y dy)) for softmax, dx = dy - exp(y) sum(dy) for log-softmax; the sums are the row's.

    y, dy, dx (rows, n); dx may be dy. 4 FLOPs an element, or an exponential and 3; y and dy are read twice.
    """
    cdef Py_ssize_t i, j, last = (n - 1) // VL * VL, rest = n - last
    cdef vf sums, end
    for i in range(rows):
        if logarithm:
            sums = vf_load_first(dy + last, rest)
            for j from 0 <= j < last by VL:
                sums = sums + vf_load(dy + j)
            sums = vf_set(vf_sum(sums, VL))
            for j from 0 <= j < last by VL:
                vf_store(dx + j, vf_fma(-sums, v_exp(vf_load(y + j)), vf_load(dy + j)))
            end = vf_fma(-sums, v_exp(vf_load(y + last)), vf_load(dy + last))
        else:
            sums = vf_load_first(y + last, rest) * vf_load_first(dy + last, rest)
            for j from 0 <= j < last by VL:
                sums = vf_fma(vf_load(y + j), vf_load(dy + j), sums)
            sums = vf_set(vf_sum(sums, VL))
            for j from 0 <= j < last by VL:
                vf_store(dx + j, vf_load(y + j) * (vf_load(dy + j) - sums))
            end = vf_load(y + last) * (vf_load(dy + last) - sums)
        vf_store(dx + last, vf_first(end, rest, vf_set(0)))
        y += y_row
        dy += dy_row
        dx += dx_row


# A row with tangents. All rows lie in the workspaces, padded with zeros, and what is written keeps the padding zero.

cdef void log_softmax_tangent_row(Py_ssize_t n, const real* y, const real* x_t, real* y_t) noexcept nogil:
    """y' = x' - sum(p x'), p = exp(y)."""
    cdef vf sums = vf_set(0)
    cdef Py_ssize_t j
    for j from 0 <= j < n by VL:
        sums = vf_fma(v_exp(vf_load(y + j)), vf_load(x_t + j), sums)
    sums = vf_set(vf_sum(sums, VL))
    for j from 0 <= j < n by VL:
        vf_store(y_t + j, inside(vf_load(x_t + j) - sums, j, n))


cdef void softmax_second_row(bint logarithm, Py_ssize_t n, const real* y, const real* y_t, const real* dy,
                             const real* dy_t, bint add, real* dx, real* dx_t) noexcept nogil:
    """Softmax: dx = y (dy - q), q = sum(y dy); dx' = y' (dy - q) + y (dy' - q').
    Logarithm: dx = dy - p q, p = exp(y), q = sum(dy); dx' = dy' - p (y' q + q')."""
    cdef vf q = vf_set(0), q_t = vf_set(0), p, g, d, d_t
    cdef Py_ssize_t j
    for j from 0 <= j < n by VL:
        p = vf_load(y + j)
        g = vf_load(dy + j)
        if logarithm:
            q = q + g
            q_t = q_t + vf_load(dy_t + j)
        else:
            q = vf_fma(p, g, q)
            q_t = vf_fma(vf_load(y_t + j), g, vf_fma(p, vf_load(dy_t + j), q_t))
    q = vf_set(vf_sum(q, VL))
    q_t = vf_set(vf_sum(q_t, VL))
    for j from 0 <= j < n by VL:
        p = vf_load(y + j)
        if logarithm:
            p = inside(v_exp(p), j, n)
            d = vf_load(dy + j) - p * q
            d_t = vf_load(dy_t + j) - p * vf_fma(vf_load(y_t + j), q, q_t)
        else:
            g = vf_load(dy + j) - q
            d = p * g
            d_t = vf_fma(vf_load(y_t + j), g, p * (vf_load(dy_t + j) - q_t))
        vf_store(dx + j, joined(add, dx + j, d))
        vf_store(dx_t + j, joined(add, dx_t + j, d_t))


cdef void softmax_second_rows(bint logarithm, const Chunk* c, const Op* op) noexcept nogil:
    """`softmax_second_row` for the rows of a chunk."""
    cdef Py_ssize_t i
    for i in range(c.first, c.first + c.batch):
        softmax_second_row(logarithm, op.n_out, row_of(c.ws.value, c.net, op.dst, i),
                           row_of(c.t.value, c.net, op.dst, i), row_of(c.ws.grad, c.net, op.dst, i),
                           row_of(c.t.grad, c.net, op.dst, i), op.adds[0], row_of(c.ws.grad, c.net, op.src, i),
                           row_of(c.t.grad, c.net, op.src, i))


# Jets of a row; the parts are `part` elements apart. With p the softmax and l its logarithm, q_k = sum(p x_k):
# l_k = x_k - q_k and, with w = x_kk + l_k**2, l_kk = x_kk - sum(p w); p_k = p l_k, p_kk = p (w - sum(p w)).

cdef void softmax_jet_row(bint logarithm, const Jets* q, Py_ssize_t n, const real* x, real* y, Py_ssize_t part,
                          real* p) noexcept nogil:
    """p: room for a row."""
    cdef Py_ssize_t j, k, s
    cdef vf mean, l, w
    cdef real* at
    softmax_rows(False, 1, n, x, 0, p, 0)
    for k in range(1, 1 + q.inputs):
        mean = vf_set(sum_of(n, p, x + k * part))
        for j from 0 <= j < n by VL:
            vf_store(y + k * part + j, inside(vf_load(x + k * part + j) - mean, j, n))
    for s in range(q.seconds):
        at = y + second_part(q, s) * part
        for j from 0 <= j < n by VL:
            w = vf_load(x + second_part(q, s) * part + j)
            for k in range(1 + s * q.each, 1 + (s + 1) * q.each):
                l = vf_load(y + k * part + j)
                w = vf_fma(l, l, w)
            vf_store(at + j, w)
        mean = vf_set(sum_of(n, p, at))
        for j from 0 <= j < n by VL:
            l = vf_load(x + second_part(q, s) * part + j) - mean
            vf_store(at + j, inside(l, j, n) if logarithm else vf_load(p + j) * (vf_load(at + j) - mean))
    for k in range(1, 0 if logarithm else 1 + q.inputs):
        for j from 0 <= j < n by VL:
            vf_store(y + k * part + j, vf_load(p + j) * vf_load(y + k * part + j))
    if logarithm:
        softmax_rows(True, 1, n, x, 0, y, 0)
    else:
        add_rows(1, round_up(n, VL), p, 0, False, y, 0)


cdef void exp_jet_row(const Jets* q, Py_ssize_t n, const real* l, Py_ssize_t part, real* p,
                      Py_ssize_t p_part) noexcept nogil:
    """p = exp(l)."""
    cdef Py_ssize_t j, k, s
    cdef vf e, l_k, w
    for j from 0 <= j < n by VL:
        e = inside(v_exp(vf_load(l + j)), j, n)
        vf_store(p + j, e)
        for k in range(1, 1 + q.inputs):
            vf_store(p + k * p_part + j, e * vf_load(l + k * part + j))
        for s in range(q.seconds):
            w = vf_load(l + second_part(q, s) * part + j)
            for k in range(1 + s * q.each, 1 + (s + 1) * q.each):
                l_k = vf_load(l + k * part + j)
                w = vf_fma(l_k, l_k, w)
            vf_store(p + second_part(q, s) * p_part + j, e * w)


cdef void softmax_jet_backward_row(bint logarithm, const Jets* q, Py_ssize_t n, const real* y, const real* dy,
                                   Py_ssize_t part, bint add, real* dx) noexcept nogil:
    """dl = dy, or of y = exp(l) that of a product with y; l = x - log(sum(exp(x))): dx = dl less that of a product with
    p, of the sums of dl."""
    cdef Py_ssize_t row = round_up(n, VL), all_parts = q.parts * row, j, k
    cdef real* p = q.scratch
    cdef real* dl = p + all_parts
    cdef real* sums = dl + all_parts
    cdef vf total
    if logarithm:
        exp_jet_row(q, n, y, part, p, row)
        add_rows(q.parts, row, dy, part, False, dl, row)
    else:
        add_rows(q.parts, row, y, part, False, p, row)
        times_jet_backward(q, row, p, row, dy, part, False, dl, row)
    for k in range(q.parts):
        total = vf_set(0)
        for j from 0 <= j < row by VL:
            total = total + vf_load(dl + k * row + j)
        fill_row(row, -vf_sum(total, VL), sums + k * row)
    times_jet_backward(q, row, p, row, sums, row, True, dl, row)
    add_rows(q.parts, row, dl, row, add, dx, part)


cdef void softmax_jets(bint logarithm, const Chunk* c, const Op* op) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(c.batch):
        softmax_jet_row(logarithm, c.jets, op.n_out, row_of(c.ws.value, c.net, op.src, i),
                        row_of(c.ws.value, c.net, op.dst, i), c.batch * row_size(c, op), c.jets.scratch)


cdef void softmax_jets_backward(bint logarithm, const Chunk* c, const Op* op) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(c.batch):
        softmax_jet_backward_row(logarithm, c.jets, op.n_out, row_of(c.ws.value, c.net, op.dst, i),
                                 row_of(c.ws.grad, c.net, op.dst, i), c.batch * row_size(c, op), op.adds[0],
                                 row_of(c.ws.grad, c.net, op.src, i))


# The ops' rows of the table -------------------------------------------------------------------------------------------

cdef void softmax_forward(const Chunk* c, const Op* op) noexcept nogil:
    softmax_rows(False, c.batch, op.n_out, source(c, op.src), source_row(c, op.src), output(c, op), row_size(c, op))


cdef void softmax_backward(const Chunk* c, const Op* op) noexcept nogil:
    if wants_gradient(c, op.src):
        softmax_backward_rows(False, c.batch, op.n_out, output(c, op), row_size(c, op), output_gradient(c, op),
                              row_size(c, op), gradient_room(c, op), c.net.buffers[op.src].row)
        gradient_done(c, op)


cdef void softmax_tangent(const Chunk* c, const Op* op) noexcept nogil:
    """y' = y (x' - sum(y x')): the Jacobian is symmetric."""
    softmax_backward_rows(False, c.batch, op.n_out, output(c, op), row_size(c, op),
                          row_of(c.t.value, c.net, op.src, c.first), c.net.buffers[op.src].row,
                          row_of(c.t.value, c.net, op.dst, c.first), row_size(c, op))


cdef void softmax_second(const Chunk* c, const Op* op) noexcept nogil:
    softmax_second_rows(False, c, op)


cdef void softmax_jet(const Chunk* c, const Op* op) noexcept nogil:
    softmax_jets(False, c, op)


cdef void softmax_jet_backward(const Chunk* c, const Op* op) noexcept nogil:
    softmax_jets_backward(False, c, op)


cdef OpMethods SOFTMAX = plain_op("softmax")
SOFTMAX.forward = softmax_forward
SOFTMAX.backward = softmax_backward
SOFTMAX.tangent = softmax_tangent
SOFTMAX.second = softmax_second
SOFTMAX.jet = softmax_jet
SOFTMAX.jet_backward = softmax_jet_backward
SOFTMAX.jet_scratch = True
define(&SOFTMAX)


cdef void log_softmax_forward(const Chunk* c, const Op* op) noexcept nogil:
    softmax_rows(True, c.batch, op.n_out, source(c, op.src), source_row(c, op.src), output(c, op), row_size(c, op))


cdef void log_softmax_backward(const Chunk* c, const Op* op) noexcept nogil:
    if wants_gradient(c, op.src):
        softmax_backward_rows(True, c.batch, op.n_out, output(c, op), row_size(c, op), output_gradient(c, op),
                              row_size(c, op), gradient_room(c, op), c.net.buffers[op.src].row)
        gradient_done(c, op)


cdef void log_softmax_tangent(const Chunk* c, const Op* op) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(c.first, c.first + c.batch):
        log_softmax_tangent_row(op.n_out, row_of(c.ws.value, c.net, op.dst, i), row_of(c.t.value, c.net, op.src, i),
                                row_of(c.t.value, c.net, op.dst, i))


cdef void log_softmax_second(const Chunk* c, const Op* op) noexcept nogil:
    softmax_second_rows(True, c, op)


cdef void log_softmax_jet(const Chunk* c, const Op* op) noexcept nogil:
    softmax_jets(True, c, op)


cdef void log_softmax_jet_backward(const Chunk* c, const Op* op) noexcept nogil:
    softmax_jets_backward(True, c, op)


cdef OpMethods LOG_SOFTMAX = plain_op("log_softmax")
LOG_SOFTMAX.forward = log_softmax_forward
LOG_SOFTMAX.backward = log_softmax_backward
LOG_SOFTMAX.tangent = log_softmax_tangent
LOG_SOFTMAX.second = log_softmax_second
LOG_SOFTMAX.jet = log_softmax_jet
LOG_SOFTMAX.jet_backward = log_softmax_jet_backward
LOG_SOFTMAX.jet_scratch = True
define(&LOG_SOFTMAX)
