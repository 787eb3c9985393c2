# Losses at the boundary: a LossSpec from what losses.py says, targets and weights checked before the kernels read them.

# The kinds of losses.py's `spec()`.
LOSSES = {
    "mse": LOSS_MSE,
    "l1": LOSS_L1,
    "huber": LOSS_HUBER,
    "bce": LOSS_BCE,
    "poisson": LOSS_POISSON,
    "quantile": LOSS_QUANTILE,
    "cross_entropy": LOSS_CROSS_ENTROPY,
    "nll": LOSS_NLL,
}


# The largest finite number.
cdef double LARGEST = np.finfo(DTYPE).max


cdef int fill_loss(LossSpec* spec, object loss, Py_ssize_t outputs) except -1:
    """Fill in a LossSpec, to be cleared with clear_loss, from a loss's `spec()`, for this many outputs.

    ValueError if the loss is made for another number of them.
    """
    cdef Py_ssize_t j
    memset(spec, 0, sizeof(LossSpec))
    column = loss.get("column")
    spec.kind = <LossKind><int>LOSSES[loss["kind"]]
    spec.labels = spec.kind == LOSS_CROSS_ENTROPY or spec.kind == LOSS_NLL
    spec.mean = loss["mean"]
    spec.delta = <double>loss.get("delta", 0.0)
    spec.unit = <double>loss.get("unit", 1.0)
    if spec.kind == LOSS_HUBER and <real>spec.unit == 0:         # SmoothL1Loss(beta=0)
        spec.kind = LOSS_L1
    spec.smoothing = <double>loss.get("smoothing", 0.0)
    spec.eps = <double>loss.get("eps", 0.0)
    spec.log_input = loss.get("log_input", False)
    spec.full = loss.get("full", False)
    spec.ignore_index = loss.get("ignore_index", -1)
    if column is None and spec.smoothing > 0:
        column = 1.0
    if column is None:
        return 0
    if isinstance(column, float):           # one for all
        column = [column] * outputs
    if len(column) != outputs:
        raise ValueError(f"{loss['name']}: {loss['column_name']} has {len(column)} entries, but there are {outputs} "
                         "outputs")
    spec.column = <real*>calloc(round_up(outputs, VL), sizeof(real))
    if spec.column == NULL:
        raise MemoryError()
    for j in range(outputs):
        spec.column[j] = <real><double>column[j]
        if not isfinite(spec.column[j]):
            raise ValueError(f"{loss['name']}: {loss['column_name']}[{j}] is {column[j]}, too large for {DTYPE}")
    return 0


cdef void clear_loss(LossSpec* spec) noexcept:
    """Free what fill_loss took."""
    free(spec.column)
    memset(spec, 0, sizeof(LossSpec))


cdef bint within(cnp.ndarray a, double high, Py_ssize_t* place) noexcept:
    """Whether all numbers of a matrix are from 0 to high; if not, `place` is that of the first that is not."""
    cdef Py_ssize_t i, j, n = cnp.PyArray_DIM(a, 1)
    cdef const real* row = data(a)
    cdef bint good = True
    for i in range(cnp.PyArray_DIM(a, 0)):
        for j in range(n):
            good = good & (row[j] >= 0) & (row[j] <= high)
        if not good:
            for j in range(n):
                if not (0 <= row[j] <= high):
                    place[0] = i
                    place[1] = j
                    return False
        row += row_stride(a)
    return True


cdef int require(cnp.ndarray a, double high, str name, str what) except -1:
    """ValueError that names the first number of a matrix that is not from 0 to high, if there is one."""
    cdef Py_ssize_t[2] place
    if not within(a, high, place):
        raise ValueError(f"{name}[{place[0]}, {place[1]}] is {a[place[0], place[1]]}, expected {what}")
    return 0


cdef cnp.ndarray as_labels(const LossSpec* spec, object a, Py_ssize_t classes, str name):
    """a as contiguous int64 class indices of shape (batch,), all in 0 .. classes - 1 or the ignored one."""
    cdef cnp.ndarray labels
    cdef const int64_t* label
    cdef int64_t ignored = spec.ignore_index
    cdef Py_ssize_t i
    cdef str loss = "NLLLoss" if spec.kind == LOSS_NLL else "CrossEntropyLoss"
    given = a if cnp.PyArray_CheckExact(a) else as_array(a, name)
    if given.dtype.kind not in "iu" and given.size:
        raise TypeError(f"{name}: {loss} expects integer class indices, got dtype {given.dtype}")
    if given.ndim != 1:
        raise ValueError(f"{name}: {loss} expects class indices of shape (batch,), got {given.shape}")
    if ignored < 0 and given.dtype.kind == "u":
        ignored = 0             # no unsigned number is below 0, whatever it is as int64; a valid index does no harm
    labels = given
    if cnp.PyArray_TYPE(labels) != cnp.NPY_INT64 or not cnp.PyArray_IS_C_CONTIGUOUS(labels) \
            or not cnp.PyArray_ISBEHAVED_RO(labels):
        labels = np.array(labels, dtype=np.int64, order="C")
    label = <const int64_t*>cnp.PyArray_DATA(labels)
    for i in range(cnp.PyArray_DIM(labels, 0)):
        if <uint64_t>label[i] >= <uint64_t>classes and label[i] != ignored:
            raise ValueError(f"{name}[{i}] is {given[i]}, expected a class index from 0 to {classes - 1}")
    return labels


cdef cnp.ndarray as_targets(const LossSpec* spec, object y, Py_ssize_t batch, Py_ssize_t outputs, str name, str where,
                            str rows_of="x"):
    """y as the loss reads it: int64 class indices (batch,), or rows of reals (batch, outputs); see losses.py.

    where: what gives the outputs, rows_of: what has as many rows, for error messages. A 1-D result means labels: set
    `labels` of the LossSpec that the kernels get to that, since cross-entropy takes both.
    """
    cdef cnp.ndarray t
    cdef bint labels = spec.labels
    if spec.kind == LOSS_CROSS_ENTROPY:
        if not cnp.PyArray_CheckExact(y):
            y = as_array(y, name)
        labels = not (cnp.PyArray_NDIM(y) == 2 and y.dtype.kind == "f")
    if labels:
        t = as_labels(spec, y, outputs, name)
    else:
        if np.ndim(y) == 1 and (outputs == 1 or spec.kind == LOSS_QUANTILE):
            y = as_array(y, name)[:, None]
        if spec.kind == LOSS_QUANTILE and outputs > 1 and np.ndim(y) == 2 and np.shape(y)[1] == 1:
            y = np.repeat(y, outputs, axis=1)
        t = as_matrix(y, outputs, name, where)
    if cnp.PyArray_DIM(t, 0) != batch:
        raise ValueError(f"{name}: expected {batch} rows, as many as {rows_of} has, got {cnp.PyArray_DIM(t, 0)}")
    if spec.kind == LOSS_BCE:
        require(t, 1, name, "a probability from 0 to 1")
    elif spec.kind == LOSS_POISSON:
        require(t, LARGEST, name, "a finite count, not below 0")
    elif not labels and spec.kind == LOSS_CROSS_ENTROPY:
        require(t, LARGEST, name, "a finite class probability, not below 0")
    return t


cdef cnp.ndarray as_weights(object w, Py_ssize_t batch, str name):
    """w as a contiguous array of weights (batch,), finite and not negative."""
    cdef cnp.ndarray v = as_vector(w, batch, name)
    cdef const real* weight = data(v)
    cdef Py_ssize_t i
    for i in range(batch):
        if not (weight[i] >= 0 and isfinite(weight[i])):
            raise ValueError(f"{name}[{i}] is {v[i]}, expected a finite weight, not below 0")
    return v
