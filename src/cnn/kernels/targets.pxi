# Losses at the boundary: a Criterion made of what a loss says of itself, and targets and weights checked before the
# kernels read them.

# The largest finite number.
cdef double LARGEST = np.finfo(DTYPE).max


cdef class Criterion:
    """A loss for so many outputs. Private to the library.

    Parameters
    ----------
    spec : dict
        What `Loss.spec` gives; see `terms` in _targets.py, also for the errors.
    outputs : int
    """
    cdef LossSpec spec
    cdef Py_ssize_t outputs
    cdef object terms
    cdef bint may_be_labels
    cdef bint may_be_numbers
    cdef bint may_share         # several outputs may share a number
    cdef bint bounded

    def __cinit__(self, spec, Py_ssize_t outputs):
        cdef Py_ssize_t j
        cdef LossSpec* s = &self.spec
        terms = _targets.terms(spec, outputs, LOSSES, LOSS_PARAMETERS, DTYPE)
        self.outputs = outputs
        self.terms = terms
        self.may_be_labels = terms.may_be_labels
        self.may_be_numbers = terms.may_be_numbers
        self.may_share = terms.repeat
        self.bounded = terms.high is not None
        s.kind = <LossKind><int>terms.kind
        s.labels = terms.may_be_labels
        s.mean = terms.mean
        s.ignore_index = terms.ignore_index
        s.ignore_nan = terms.ignore_nan
        s.targets = terms.targets
        for j, number_j in enumerate(terms.parameters):
            s.param[j] = number_j
        if terms.column is not None:
            s.column = <real*>allocate_plain(round_up(outputs, VL) * sizeof(real))
            for j, number_j in enumerate(terms.column):
                s.column[j] = <real><double>number_j

    def __dealloc__(self):
        free(self.spec.column)

    cdef cnp.ndarray labels(self, object a, str name):
        """a as contiguous int64 class indices of shape (batch,), all in 0 .. classes - 1 or the ignored one."""
        cdef cnp.ndarray labels
        cdef const int64_t* label
        cdef int64_t ignored = self.spec.ignore_index
        cdef Py_ssize_t i
        given = a if cnp.PyArray_CheckExact(a) else _arrays.as_array(a, name)
        if given.ndim != 1 or given.dtype.kind not in "iu":
            given = _targets.class_indices(given, name, self.terms, self.outputs)
        if ignored < 0 and given.dtype.kind == "u":
            ignored = 0             # no unsigned number is below 0, whatever it is as int64; a valid index does no harm
        labels = given
        if cnp.PyArray_TYPE(labels) != cnp.NPY_INT64 or not cnp.PyArray_IS_C_CONTIGUOUS(labels) \
                or not cnp.PyArray_ISBEHAVED_RO(labels):
            labels = np.array(labels, dtype=np.int64, order="C")
        label = <const int64_t*>cnp.PyArray_DATA(labels)
        for i in range(cnp.PyArray_DIM(labels, 0)):
            if <uint64_t>label[i] >= <uint64_t>self.outputs and label[i] != ignored:
                _targets.refuse_index(given, i, name, self.outputs)
        return labels

    cdef cnp.ndarray targets(self, object y, Py_ssize_t batch, str name, str where, str rows_of="x"):
        """y as the loss reads it: int64 class indices (batch,), or rows of reals (batch, outputs).

        where: what gives the outputs, rows_of: what has as many rows, for error messages.
        """
        cdef cnp.ndarray t
        cdef bint labels = self.may_be_labels
        if labels and self.may_be_numbers:
            if not cnp.PyArray_CheckExact(y):
                y = _arrays.as_array(y, name)
            labels = not (cnp.PyArray_NDIM(y) == 2 and y.dtype.kind == "f"
                          and (cnp.PyArray_DIM(y, 1) != 1 or self.outputs == 1))
        if labels:
            t = self.labels(y, name)
        else:
            if not cnp.PyArray_CheckExact(y) or cnp.PyArray_NDIM(y) != 2 or self.may_share:
                y = _targets.numbers(y, batch, name, where, self.terms, self.outputs, DTYPE)
            t = as_matrix(y, self.spec.targets, name, where)
        if cnp.PyArray_DIM(t, 0) != batch:
            raise ValueError(f"{name}: expected {batch} rows, as many as {rows_of} has, got {cnp.PyArray_DIM(t, 0)}")
        if not labels and self.bounded:
            require(t, min(self.terms.high, LARGEST), name, self.terms.expected, self.spec.ignore_nan)
        return t

    cdef void bind(self, Batch* batch, cnp.ndarray t, cnp.ndarray w) noexcept:
        """Let a pass read targets and weights (None: one each), as `targets` and `as_weights` give them."""
        batch.loss = self.spec
        batch.loss.labels = cnp.PyArray_NDIM(t) == 1
        batch.target = <const char*>cnp.PyArray_DATA(t)
        batch.target_bytes = sizeof(int64_t) if batch.loss.labels else row_stride(t) * sizeof(real)
        batch.weight = NULL if w is None else data(w)


cdef bint within(cnp.ndarray a, double high, bint nan, Py_ssize_t* place) noexcept:
    """Whether all numbers of a matrix are from 0 to high, or NaN if `nan`; if not, `place` is that of the first that is
    not."""
    cdef Py_ssize_t i, j, n = cnp.PyArray_DIM(a, 1)
    cdef const real* row = data(a)
    cdef bint good = True
    for i in range(cnp.PyArray_DIM(a, 0)):
        for j in range(n):
            good = good & ((row[j] >= 0) & (row[j] <= high) | (nan & (row[j] != row[j])))
        if not good:
            for j in range(n):
                if not (0 <= row[j] <= high or nan and row[j] != row[j]):
                    place[0] = i
                    place[1] = j
                    return False
        row += row_stride(a)
    return True


cdef int require(cnp.ndarray a, double high, str name, str what, bint nan=False) except -1:
    """ValueError that names the first number of a matrix that is not from 0 to high, if there is one."""
    cdef Py_ssize_t[2] place
    if not within(a, high, nan, place):
        raise ValueError(f"{name}[{place[0]}, {place[1]}] is {a[place[0], place[1]]}, expected {what}")
    return 0


cdef cnp.ndarray as_weights(object w, Py_ssize_t batch, str name):
    """w as a contiguous array of weights (batch,), finite and not negative."""
    cdef cnp.ndarray v = as_vector(w, batch, name)
    cdef const real* weight = data(v)
    cdef Py_ssize_t i
    for i in range(batch):
        if not (weight[i] >= 0 and isfinite(weight[i])):
            raise ValueError(f"{name}[{i}] is {v[i]}, expected a finite weight, not below 0")
    return v
