# The kernels on plain NumPy arrays: what cnn.functional and layers used alone call. The arrays' rows are not padded, so
# a width that is no multiple of VL goes through a padded copy; other widths are read and written where they lie.

cdef struct Padded:
    real* at            # rows of whole vectors
    Py_ssize_t row


cdef inline bint unpadded(cnp.ndarray a) noexcept:
    """Whether the rows are whole vectors."""
    return cnp.PyArray_DIM(a, 1) % VL == 0


cdef Padded padded(cnp.ndarray a, real** memory, bint fill) noexcept:
    """a where it lies if its rows are whole vectors, else as a copy in memory (zeroed), which is stepped past it."""
    cdef Padded p
    cdef Py_ssize_t rows = cnp.PyArray_DIM(a, 0), n = cnp.PyArray_DIM(a, 1)
    if unpadded(a):
        p.at, p.row = data(a), row_stride(a)
    else:
        p.at, p.row = memory[0], round_up(n, VL)
        memory[0] += rows * p.row
        if fill:
            copy_rows(rows, n, data(a), row_stride(a), p.at, p.row)
    return p


cdef Py_ssize_t padding(cnp.ndarray a) noexcept:
    """Reals that `padded` takes from its memory for a."""
    return 0 if unpadded(a) else cnp.PyArray_DIM(a, 0) * round_up(cnp.PyArray_DIM(a, 1), VL)


cdef void unpad(Padded p, cnp.ndarray a) noexcept:
    """Copy a result back from its padded copy, if it has one."""
    if p.at != data(a):
        copy_rows(cnp.PyArray_DIM(a, 0), cnp.PyArray_DIM(a, 1), p.at, p.row, data(a), row_stride(a))


cdef cnp.ndarray result(object out, tuple shape, str name):
    return np.empty(shape, dtype=DTYPE) if out is None else as_out(out, shape, name)


def refuse_overlap(out, name, *inputs):
    """ValueError if a result would overwrite an array that is still to be read."""
    for other in inputs:
        if out is not None and other is not None and np.may_share_memory(out, other):
            raise ValueError(f"{name}: shares memory with an input")


def linear_forward(x, weight, bias, int act, double param, out, pre):
    """out = act(pre), pre = x weight + bias."""
    cdef cnp.ndarray w = as_matrix(weight, -1, "weight", "")
    cdef Py_ssize_t n_in = cnp.PyArray_DIM(w, 0), n_out = cnp.PyArray_DIM(w, 1)
    if not cnp.PyArray_CheckExact(x):
        x = _arrays.real_array(x, "x")
    cdef cnp.ndarray a = as_rows(x, n_in, "x", " for this weight")
    cdef Py_ssize_t batch = cnp.PyArray_DIM(a, 0)
    cdef cnp.ndarray b = None if bias is None else as_vector(bias, n_out, "bias")
    refuse_overlap(out, "out", x, weight, bias, pre)
    refuse_overlap(pre, "pre", x, weight, bias)
    cdef cnp.ndarray y = result(out, (batch, n_out), "out")
    cdef cnp.ndarray z = y if pre is None else as_out(pre, (batch, n_out), "pre")
    cdef Py_ssize_t width = round_up(n_out, VL)
    cdef Arena arena
    cdef real* at = allocate(&arena, padding(w) + padding(z) + width + panel_size(0, 0))
    cdef Product p
    memset(&p, 0, sizeof(p))
    p.panel = at
    at += panel_size(0, 0)
    if b is not None:
        memcpy(at, data(b), n_out * sizeof(real))
        p.start = at
    at += width
    cdef Padded pw = padded(w, &at, True), pz = padded(z, &at, False)
    p.m, p.n, p.k = batch, width, n_in
    p.a, p.a_row, p.a_col = data(a), row_stride(a), 1
    p.b, p.b_row = pw.at, pw.row
    p.c, p.c_row = pz.at, pz.row
    p.epilogue = EPILOGUE_STORE
    p.floor = <real>(0 if act == RELU and pre is None else -INFINITY)
    with nogil:
        product(&p)
    unpad(pz, z)
    release(&arena)
    if act != IDENTITY and not (act == RELU and pre is None):
        with nogil:
            activate_rows(<Activation>act, <real>param, 1, batch * n_out, data(z), 0, data(y), 0)
    elif pre is not None:
        memcpy(data(y), data(z), batch * n_out * sizeof(real))
    return led(y, x) if out is None else y


def linear_backward(grad_output, x, weight, grad_weight, grad_bias, grad_input, bint accumulate, bint inputs=True,
                    bint weights=True):
    """grad_input = grad_output weight^T, grad_weight = x^T grad_output, grad_bias = sum of grad_output's rows.

    Without `inputs` or `weights` those results are left as they are.
    """
    cdef cnp.ndarray w = as_matrix(weight, -1, "weight", "")
    cdef Py_ssize_t n_in = cnp.PyArray_DIM(w, 0), n_out = cnp.PyArray_DIM(w, 1)
    if not cnp.PyArray_CheckExact(x):
        x = _arrays.real_array(x, "x")
    cdef cnp.ndarray a = as_rows(x, n_in, "x", " for this weight")
    cdef Py_ssize_t batch = cnp.PyArray_DIM(a, 0)
    if cnp.PyArray_NDIM(x) != 2:
        grad_output = as_rows(grad_output, n_out, "grad_output", " for this weight")
    cdef cnp.ndarray g = as_matrix(grad_output, n_out, "grad_output", " for this weight")
    if cnp.PyArray_DIM(g, 0) != batch:
        raise ValueError(f"grad_output: expected {batch} rows, as many as x has, got {cnp.PyArray_DIM(g, 0)}")
    if accumulate and (grad_weight is None or grad_bias is None):
        raise ValueError("accumulate: expected grad_weight and grad_bias to add to")
    refuse_overlap(grad_weight, "grad_weight", grad_output, x, weight, grad_bias, grad_input)
    refuse_overlap(grad_bias, "grad_bias", grad_output, x, weight, grad_input)
    refuse_overlap(grad_input, "grad_input", grad_output, x, weight)
    cdef cnp.ndarray dw = result(grad_weight, (n_in, n_out), "grad_weight")
    cdef cnp.ndarray db = result(grad_bias, (n_out,), "grad_bias")
    cdef cnp.ndarray dx = result(grad_input, (batch, n_in), "grad_input")
    cdef Py_ssize_t width = round_up(n_out, VL)
    cdef Arena arena
    cdef real* at = allocate(
        &arena, padding(w) + padding(g) + padding(dw) + padding(dx) + width + panel_size(batch, n_out))
    cdef Product p
    memset(&p, 0, sizeof(p))
    p.panel = at
    at += panel_size(batch, n_out)
    cdef real* sums = at
    at += width
    cdef Padded pw = padded(w, &at, True), pg = padded(g, &at, True)
    cdef Padded pdw = padded(dw, &at, accumulate), pdx = padded(dx, &at, False)
    if accumulate:
        memcpy(sums, data(db), n_out * sizeof(real))
    with nogil:
        p.epilogue = EPILOGUE_STORE
        p.floor = <real>-INFINITY
        p.m, p.n, p.k = batch, round_up(n_in, VL), n_out
        p.a, p.a_row, p.a_col = pg.at, pg.row, 1
        p.b, p.b_row = pw.at, pw.row
        p.b_transposed, p.b_valid = True, n_in
        p.c, p.c_row = pdx.at, pdx.row
        if inputs:
            product(&p)
        p.epilogue = EPILOGUE_ADD if accumulate else EPILOGUE_STORE
        p.m, p.n, p.k = n_in, width, batch
        p.a, p.a_row, p.a_col = data(a), 1, row_stride(a)
        p.b, p.b_row, p.b_transposed = pg.at, pg.row, False
        p.c, p.c_row = pdw.at, pdw.row
        if weights:
            product(&p)
            p.m, p.ones_row = 0, True
            p.c = sums
            product(&p)
    if weights:
        memcpy(data(db), sums, n_out * sizeof(real))
        unpad(pdw, dw)
    if inputs:
        unpad(pdx, dx)
    release(&arena)
    return led(dx, x) if grad_input is None else dx, dw, db


cdef cnp.ndarray as_block(object a, str name):
    """a as a C-contiguous array of any shape."""
    cdef cnp.ndarray b
    if not cnp.PyArray_CheckExact(a) or cnp.PyArray_TYPE(<cnp.ndarray>a) != REAL_TYPE:
        a = converted(a, name)
    b = a
    return b if cnp.PyArray_IS_C_CONTIGUOUS(b) and cnp.PyArray_ISBEHAVED_RO(b) else np.array(b, order="C").astype(DTYPE)


def activation_forward(int act, double param, z, out):
    """out = act(z), any shape; out may be z itself."""
    cdef cnp.ndarray a = as_block(z, "z")
    cdef cnp.ndarray y = result(out, np.shape(a), "out")
    cdef Py_ssize_t n = a.size
    if out is not None and data(y) != data(a):
        refuse_overlap(out, "out", z)
    with nogil:
        activate_rows(<Activation>act, <real>param, 1, n, data(a), 0, data(y), 0)
    return y


def activation_backward(int act, double param, grad_output, z, out):
    """out = grad_output * act'(z), any shape; out may be grad_output itself."""
    cdef cnp.ndarray a = as_block(z, "z"), g = as_block(grad_output, "grad_output")
    if np.shape(a) != np.shape(g):
        raise ValueError(f"grad_output: expected shape {np.shape(a)}, as z has, got {np.shape(g)}")
    cdef cnp.ndarray d = result(out, np.shape(a), "out")
    cdef Py_ssize_t n = a.size
    refuse_overlap(out, "out", z)
    if out is not None and data(d) != data(g):
        refuse_overlap(out, "out", grad_output)
    with nogil:
        activate_backward_rows(<Activation>act, <real>param, True, 1, n, data(g), 0, data(a), 0, data(d), 0)
    return d


def probabilities(z, str outputs):
    """Outputs (batch, n) made probabilities where they lie: softmax of each row for "classes", the sigmoid of each for
    "logits", the exponential for "log_probabilities"."""
    cdef cnp.ndarray y = as_out(z, np.shape(z), "outputs")
    cdef Py_ssize_t i, rows = cnp.PyArray_DIM(y, 0), n = cnp.PyArray_DIM(y, 1), row = round_up(n, VL)
    cdef real* at = data(y)
    cdef Arena arena
    cdef real* one
    cdef int sigmoid = ACTIVATIONS["sigmoid"]
    if outputs == "logits":
        with nogil:
            activate_rows(<Activation>sigmoid, 0, 1, rows * n, at, 0, at, 0)
    elif outputs == "log_probabilities":
        np.exp(y, out=y)
    else:
        one = allocate(&arena, row)
        with nogil:
            for i in range(rows):           # a row at a time in whole vectors; the next one stands behind it
                softmax_rows(False, 1, n, at, n, one, row)
                memcpy(at, one, n * sizeof(real))
                at += n
        release(&arena)
    return y


def sgd_step(param, grad, momentum_buffer, double lr, double momentum, double dampening, double weight_decay,
             bint nesterov, bint first):
    """One step of SGD on param, in place; so is its momentum_buffer."""
    cdef cnp.ndarray w = as_out(param, np.shape(param), "param")
    cdef cnp.ndarray g = as_block(grad, "grad"), m
    if np.shape(w) != np.shape(g):
        raise ValueError(f"grad: expected shape {np.shape(w)}, as param has, got {np.shape(g)}")
    if momentum_buffer is None:
        if momentum != 0:
            raise ValueError("momentum_buffer: momentum needs one, of param's shape")
        m = w
    else:
        m = as_out(momentum_buffer, np.shape(w), "momentum_buffer")
        refuse_overlap(m, "momentum_buffer", w, g)
    refuse_overlap(w, "param", g)
    cdef double[HYPER_COLUMNS] hyper = [<double>OPTIMIZER_SGD, lr, momentum, weight_decay, 0, 0, 0, dampening, nesterov,
                                        0]
    cdef Update u = coefficients(hyper, lr, momentum, not first, not first, data(m) - data(w), 0)
    if first and momentum != 0:
        m.fill(0)                               # whatever is there, it is no momentum
    cdef Py_ssize_t n = w.size, vectors = n // VL * VL, rest = n - vectors
    cdef real end[48]                           # the last, partial vector of w, g and m
    memset(end, 0, sizeof(end))
    with nogil:
        update_rows(1, vectors, data(w), 0, data(g), 0, &u)
        if rest:
            memcpy(end, data(w) + vectors, rest * sizeof(real))
            memcpy(end + 16, data(g) + vectors, rest * sizeof(real))
            memcpy(end + 32, data(m) + vectors, rest * sizeof(real))
            u.state = 32
            update_rows(1, VL, end, 0, end + 16, 0, &u)
            memcpy(data(w) + vectors, end, rest * sizeof(real))
            if u.kind == UPDATE_MOMENTUM:
                memcpy(data(m) + vectors, end + 32, rest * sizeof(real))


def loss_and_gradient(loss, dict made, outputs, targets, sample_weight=None, vector=None):
    """(loss, its gradient with respect to the outputs) of outputs (batch, n); made: the loss's criteria by n, so far.

    With a vector (batch, n), the second derivative times that instead of the gradient.
    """
    cdef cnp.ndarray y = as_matrix(outputs, -1, "outputs", ""), t, w = None, v = None, gradient
    cdef Py_ssize_t batch = cnp.PyArray_DIM(y, 0), n = cnp.PyArray_DIM(y, 1), row = round_up(n, VL), correct = 0
    cdef Py_ssize_t size = batch * row
    cdef bint second = vector is not None
    cdef Criterion criterion
    cdef Batch b
    cdef Arena arena
    cdef real* z
    cdef double total, weights, scale
    if batch == 0 or n == 0:
        raise ValueError(f"outputs: expected at least one row and one column, got shape {np.shape(y)}")
    criterion = made.get(n)
    if criterion is None:
        made[n] = criterion = Criterion(loss.spec(), n)
    t = criterion.targets(targets, batch, "targets", "", "outputs")
    if sample_weight is not None:
        w = as_weights(sample_weight, batch, "sample_weight")
    if second:
        v = as_matrix(vector, n, "vector", "")
        if cnp.PyArray_DIM(v, 0) != batch:
            raise ValueError(f"vector: expected {batch} rows, as many as outputs has, got {cnp.PyArray_DIM(v, 0)}")
    criterion.bind(&b, t, w)
    weights = loss_weight(&b.loss, batch, b.target, b.target_bytes, b.weight)
    if b.loss.mean and weights == 0:
        raise ValueError("the mean loss is not defined: all rows are ignored or have the weight 0")
    scale = loss_scale(&b.loss, weights)
    gradient = empty_matrix(batch, n)
    z = allocate(&arena, 3 * size)
    copy_rows(batch, n, data(y), row_stride(y), z, row)
    if second:
        copy_rows(batch, n, data(v), row_stride(v), z + 2 * size, row)
    with nogil:
        total = loss_rows(&b.loss, batch, n, z, row, b.target, b.target_bytes, b.weight, scale, z + size, row, &correct)
        if second:
            loss_hessian_rows(&b.loss, batch, n, z, row, b.target, b.target_bytes, b.weight, scale, z + 2 * size, row,
                              z + size, row)
    copy_rows(batch, n, z + size, row, data(gradient), n)
    release(&arena)
    return mean_loss(&b.loss, total, weights), gradient
