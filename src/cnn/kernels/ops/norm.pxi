# What layer and batch normalisation share: xhat = (x - mean) / sqrt(var + eps), y = xhat weight + bias.
#
# Formulas are PyTorch's: variances are biased. x (batch, n) may end at n; y, dy, dx, and what is kept for each column,
# are padded to VL, and zeros are written to the padding. weight and bias may be NULL: 1 and 0. Sums over the batch are
# done for a piece of columns, `first` and following, in the order of the rows: the pointers are those of column 0,
# `columns` is a multiple of VL and may reach into the padding. So results depend neither on the cut into rows or
# columns nor on threads.

cdef enum:
    SUM_ROWS = 64           # rows that are added up as reals before they join the others' sum, in double
    SUM_VECTORS = 4         # vectors of columns that are summed side by side: a single sum would wait for its adder
    SUM_COLUMNS = 64        # at most: a vector has up to 16 lanes

cdef enum ColumnSum:
    SUM_VALUES              # of x - mean, `mean` being a first guess: sums of numbers far from zero would lose digits
    SUM_SQUARES             # of (x - mean)**2
    SUM_GRADIENTS           # of dy, and of dy (x - mean)
    SUM_ROW_GRADIENTS       # the same with (x - mean) rstd of the row

cdef enum:
    COLUMNS = 1024          # of a norm, in a piece of work


cdef void norm_place(Network* net, Op* op, dict spec):
    """A weight and a bias for each column."""
    op.work = 8 * op.n_out
    op.columns = op.n_out
    op.row = round_up(op.n_out, VL)
    op.has_weight, op.has_bias = spec["weight"], spec["bias"]
    op.weight = net.n_block
    op.bias = op.weight + op.row * op.has_weight
    net.n_block = op.bias + op.row * op.has_bias


cdef Py_ssize_t norm_pieces(const Op* op, int threads, Py_ssize_t* rows, Py_ssize_t* unit) noexcept nogil:
    rows[0], unit[0] = op.row, COLUMNS
    return op.row if op.has_weight or op.has_bias else 0


cdef void use_norm_gradient(const Pass* p, const Op* op, Py_ssize_t first, Py_ssize_t columns,
                            const real* sums) noexcept nogil:
    """Add up, store or use for the step the gradients of weight and bias, `columns` of each from `first` on."""
    cdef const real* part
    cdef Py_ssize_t at
    cdef int half
    for half in range(2):
        if wants_bias(p, op) if half else wants_weight(p, op):
            part = sums + half * columns
            at = (op.bias if half else op.weight) + first
            if p.wants.update != NULL:
                update_rows(1, columns, p.net.params + at, 0, part, 0,
                            p.wants.update + (op.bias_group if half else op.weight_group))
            else:
                add_rows(1, columns, part, 0, not p.wants.overwrite, p.net.grads + at, 0)


cdef inline vf scaled(vf xhat, const real* weight, const real* bias, Py_ssize_t j) noexcept nogil:
    """xhat weight + bias for the columns from j on."""
    cdef vf shift = vf_load(bias + j) if bias != NULL else vf_set(0)
    return vf_fma(xhat, vf_load(weight + j), shift) if weight != NULL else xhat + shift


cdef inline vf weighted(vf dy, const real* weight, Py_ssize_t j) noexcept nogil:
    """dy weight for the columns from j on."""
    return dy * vf_load(weight + j) if weight != NULL else dy


cdef extern from *:
    """
    // total += lane. Unrolled in each of the sums, it would be 25 KB of a module.
    static __attribute__((noinline)) void add_lanes(Py_ssize_t n, const real* lane, double* total) {
        for (Py_ssize_t j = 0; j < n; j++)
            total[j] += lane[j];
    }
    """
    void add_lanes(Py_ssize_t n, const real* lane, double* total) nogil


cdef inline void sum_vectors(ColumnSum kind, int vectors, Py_ssize_t lanes, Py_ssize_t batch, const real* x,
                             Py_ssize_t x_row, const real* mean, const real* stats, const real* dy, Py_ssize_t dy_row,
                             double* total, double* dot_total) noexcept nogil:
    """The sums of so many vectors of columns; of the last one, x has the first `lanes`."""
    cdef vf[SUM_VECTORS] sums
    cdef vf[SUM_VECTORS] dots
    cdef real[SUM_COLUMNS] lane
    cdef vf d, g
    cdef Py_ssize_t i, j, l, stop
    cdef int v
    for j in range(vectors * VL):
        total[j] = dot_total[j] = 0
    for i from 0 <= i < batch by SUM_ROWS:
        stop = smaller(i + SUM_ROWS, batch)
        for v in range(vectors):
            sums[v] = dots[v] = vf_set(0)
        for l in range(i, stop):
            for v in range(vectors):
                j = v * VL
                d = vf_load(x + l * x_row + j) if lanes == VL else vf_load_first(x + l * x_row + j, lanes)
                if kind == SUM_ROW_GRADIENTS:
                    d = (d - vf_set(stats[2 * l])) * vf_set(stats[2 * l + 1])
                else:
                    d = d - vf_load(mean + j)
                if kind == SUM_VALUES:
                    sums[v] = sums[v] + d
                elif kind == SUM_SQUARES:
                    sums[v] = vf_fma(d, d, sums[v])
                else:
                    g = vf_load(dy + l * dy_row + j)
                    sums[v] = sums[v] + g
                    dots[v] = vf_fma(g, d, dots[v])
        for v in range(vectors):
            vf_store(lane + v * VL, sums[v])
        add_lanes(vectors * VL, lane, total)
        if kind == SUM_GRADIENTS or kind == SUM_ROW_GRADIENTS:
            for v in range(vectors):
                vf_store(lane + v * VL, dots[v])
            add_lanes(vectors * VL, lane, dot_total)


cdef inline Py_ssize_t sum_columns(ColumnSum kind, Py_ssize_t first, Py_ssize_t stop, Py_ssize_t n, Py_ssize_t batch,
                                   const real* x, Py_ssize_t x_row, const real* mean, const real* stats,
                                   const real* dy, Py_ssize_t dy_row, double* total, double* dot_total) noexcept nogil:
    """The sums of the columns from `first` on, before `stop`, over the batch: of how many, up to SUM_VECTORS * VL.

    x (batch, n), mean, dy: those of column 0. x and dy are read once; the order of a sum is that of the rows, in double
    from block to block of SUM_ROWS.
    """
    if first + SUM_VECTORS * VL <= smaller(n, stop):
        sum_vectors(kind, SUM_VECTORS, VL, batch, x + first, x_row, mean + first, stats, dy + first, dy_row, total,
                    dot_total)
        return SUM_VECTORS * VL
    sum_vectors(kind, 1, smaller(n - first, VL), batch, x + first, x_row, mean + first, stats, dy + first, dy_row,
                total, dot_total)
    return VL


cdef inline void write_columns(real* out, Py_ssize_t first, Py_ssize_t columns, Py_ssize_t n,
                               const double* total) noexcept nogil:
    """out[first] and following = total, zeros from column n on. out may be NULL."""
    cdef Py_ssize_t j
    if out != NULL:
        for j in range(columns):
            out[first + j] = <real>total[j] if first + j < n else 0


# A row with tangents, by_row: layer norm, else batch norm; a literal.

cdef inline void norm_means(const bint by_row, const Op* op, const real* extra, const real* x, const real* x_t,
                            vf* shift, vf* c) noexcept nogil:
    """Layer norm: shift = mean(x'), c = mean(xhat x'). Batch norm, whose statistics are constants here: 0."""
    cdef vf sums = vf_set(0), dot = vf_set(0)
    cdef Py_ssize_t j
    if by_row:
        for j from 0 <= j < op.n_out by VL:
            sums = sums + vf_load(x_t + j)
            dot = vf_fma(vf_load(x + j) - vf_set(extra[0]), vf_load(x_t + j), dot)
    shift[0] = vf_set(vf_sum(sums, VL) / <real>op.n_out)
    c[0] = vf_set(extra[1] * vf_sum(dot, VL) / <real>op.n_out)


cdef inline vf normalised(const bint by_row, const Op* op, const real* extra, const real* x, const real* x_t, vf shift,
                          vf c, Py_ssize_t j, vf* rstd, vf* xhat_t) noexcept nogil:
    """Elements j and following of xhat = rstd (x - mean); xhat' = rstd (x' - shift - xhat c)."""
    cdef vf mean = vf_set(extra[0]) if by_row else vf_load(extra + j)
    cdef vf xhat
    rstd[0] = vf_set(extra[1]) if by_row else vf_load(extra + op.row + j)
    xhat = inside(rstd[0] * (vf_load(x + j) - mean), j, op.n_out)
    xhat_t[0] = inside(rstd[0] * (vf_load(x_t + j) - shift - xhat * c), j, op.n_out)
    return xhat


cdef inline vf direction(const Tangents* t, Py_ssize_t at, bint there) noexcept nogil:
    """Elements `at` and following of theta', where the op has that parameter."""
    return vf_load(t.params + at) if there and t.parameters else vf_set(0)


cdef inline void norm_tangent_row(const bint by_row, const Network* net, const Tangents* t, const Op* op,
                                  const real* extra, const real* x, const real* x_t, real* y_t) noexcept nogil:
    """y' = w xhat' + w' xhat + b'."""
    cdef const real* w = weight_of(net, op)
    cdef vf shift, c, rstd, xhat, xhat_t
    cdef Py_ssize_t j
    norm_means(by_row, op, extra, x, x_t, &shift, &c)
    for j from 0 <= j < op.n_out by VL:
        xhat = normalised(by_row, op, extra, x, x_t, shift, c, j, &rstd, &xhat_t)
        vf_store(y_t + j, weighted(xhat_t, w, j) + vf_fma(direction(t, op.weight + j, op.has_weight), xhat,
                                                          direction(t, op.bias + j, op.has_bias)))


cdef inline void norm_second_row(const bint by_row, const Network* net, const Tangents* t, const Op* op,
                                 const real* extra, const real* x, const real* x_t, const real* dy, const real* dy_t,
                                 bint add, real* dx, real* dx_t) noexcept nogil:
    """dx and dx', and the row's part of dw' = sum of dy' xhat + dy xhat' and db' = sum of dy', which are added up.

    g = dy w, g' = dy' w + dy w'. Batch norm: dx = rstd g, dx' = rstd g'. Layer norm: dx = rstd (g - mean(g) - xhat h),
    h = mean(g xhat); dx' = rstd (g' - mean(g') - xhat' h - xhat h' - c dx), the last term being that of
    rstd' = -c rstd**2.
    """
    cdef const real* w = weight_of(net, op)
    cdef real* dw = t.grads + op.weight
    cdef real* db = t.grads + op.bias
    cdef real share = <real>1 / <real>op.n_out
    cdef vf shift, c, rstd, xhat, xhat_t, g, g_t
    cdef vf mean = vf_set(0), mean_t = mean, h = mean, h_t = mean
    cdef Py_ssize_t j
    norm_means(by_row, op, extra, x, x_t, &shift, &c)
    for j from 0 <= j < op.n_out by VL:
        xhat = normalised(by_row, op, extra, x, x_t, shift, c, j, &rstd, &xhat_t)
        g = vf_load(dy + j)
        g_t = vf_load(dy_t + j)
        if op.has_weight:
            vf_store(dw + j, vf_load(dw + j) + vf_fma(g_t, xhat, g * xhat_t))
        if op.has_bias:
            vf_store(db + j, vf_load(db + j) + g_t)
        if by_row:
            g_t = vf_fma(g, direction(t, op.weight + j, op.has_weight), weighted(g_t, w, j))
            g = weighted(g, w, j)
            mean = mean + g
            mean_t = mean_t + g_t
            h = vf_fma(g, xhat, h)
            h_t = vf_fma(g_t, xhat, vf_fma(g, xhat_t, h_t))
    mean = vf_set(share * vf_sum(mean, VL))
    mean_t = vf_set(share * vf_sum(mean_t, VL))
    h = vf_set(share * vf_sum(h, VL))
    h_t = vf_set(share * vf_sum(h_t, VL))
    for j from 0 <= j < op.n_out by VL:         # batch norm: all sums are zero
        xhat = normalised(by_row, op, extra, x, x_t, shift, c, j, &rstd, &xhat_t)
        g = rstd * (weighted(vf_load(dy + j), w, j) - mean - xhat * h)
        g_t = weighted(vf_load(dy_t + j), w, j) - mean_t - xhat_t * h - xhat * h_t - c * g
        g_t = vf_fma(vf_load(dy + j), direction(t, op.weight + j, op.has_weight), g_t)
        vf_store(dx + j, joined(add, dx + j, inside(g, j, op.n_out)))
        vf_store(dx_t + j, joined(add, dx_t + j, inside(rstd * g_t, j, op.n_out)))
