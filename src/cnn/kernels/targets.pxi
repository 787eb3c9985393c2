# Losses at the boundary: a Criterion made of what a loss says of itself, and targets and weights checked before the
# kernels read them.

# The largest finite number.
cdef double LARGEST = np.finfo(DTYPE).max


cdef class Criterion:
    """A loss for so many outputs. Private to the library.

    Parameters
    ----------
    spec : dict
        What `Loss.spec` gives: kind (a key of LOSSES), name, mean, parameters (numbers), targets ("numbers", "labels"
        or "labels or probabilities"), high and expected (what numbers are to be at most, and are to be, in words),
        repeat (one target may serve all outputs), ignore_index, column and column_name.
    outputs : int

    Raises
    ------
    ValueError
        If the loss is made for another number of outputs.
    """
    cdef LossSpec spec
    cdef Py_ssize_t outputs
    cdef str name
    cdef bint may_be_labels
    cdef bint may_be_numbers
    cdef bint repeat
    cdef object high
    cdef str expected

    def __cinit__(self, spec, Py_ssize_t outputs):
        cdef Py_ssize_t j
        cdef LossSpec* s = &self.spec
        self.outputs = outputs
        self.name = spec["name"]
        if spec["kind"] not in LOSSES:
            raise ValueError(f"{self.name}: no kernel for {spec['kind']!r}; there are {', '.join(LOSSES)}")
        if spec["targets"] not in ("numbers", "labels", "labels or probabilities"):
            raise ValueError(f"{self.name}: unknown targets {spec['targets']!r}")
        self.may_be_labels = spec["targets"] != "numbers"
        self.may_be_numbers = spec["targets"] != "labels"
        self.repeat = spec.get("repeat", False)
        self.high = spec.get("high")
        self.expected = spec.get("expected", "")
        s.kind = <LossKind><int>LOSSES[spec["kind"]]
        s.labels = self.may_be_labels
        s.mean = spec["mean"]
        s.ignore_index = spec.get("ignore_index", -1)
        parameters = spec["parameters"]
        if len(parameters) > LOSS_PARAMETERS:
            raise ValueError(f"{self.name}: at most {LOSS_PARAMETERS} parameters, got {len(parameters)}")
        for j in range(len(parameters)):
            s.param[j] = <double>parameters[j]
        column = spec.get("column")
        if column is None:
            return
        if isinstance(column, float):           # one for all
            column = [column] * outputs
        if len(column) != outputs:
            raise ValueError(f"{self.name}: {spec['column_name']} has {len(column)} entries, but there are {outputs} "
                             "outputs")
        s.column = <real*>allocate_plain(round_up(outputs, VL) * sizeof(real))
        for j in range(outputs):
            s.column[j] = <real><double>column[j]
            if not isfinite(s.column[j]):
                raise ValueError(f"{self.name}: {spec['column_name']}[{j}] is {column[j]}, too large for {DTYPE}")

    def __dealloc__(self):
        free(self.spec.column)

    cdef cnp.ndarray labels(self, object a, str name):
        """a as contiguous int64 class indices of shape (batch,), all in 0 .. classes - 1 or the ignored one."""
        cdef cnp.ndarray labels
        cdef const int64_t* label
        cdef int64_t ignored = self.spec.ignore_index
        cdef Py_ssize_t i
        given = a if cnp.PyArray_CheckExact(a) else as_array(a, name)
        if given.dtype.kind not in "iu" and given.size:
            raise TypeError(f"{name}: {self.name} expects integer class indices, got dtype {given.dtype}")
        if given.ndim != 1:
            raise ValueError(f"{name}: {self.name} expects class indices of shape (batch,), got {given.shape}")
        if ignored < 0 and given.dtype.kind == "u":
            ignored = 0             # no unsigned number is below 0, whatever it is as int64; a valid index does no harm
        labels = given
        if cnp.PyArray_TYPE(labels) != cnp.NPY_INT64 or not cnp.PyArray_IS_C_CONTIGUOUS(labels) \
                or not cnp.PyArray_ISBEHAVED_RO(labels):
            labels = np.array(labels, dtype=np.int64, order="C")
        label = <const int64_t*>cnp.PyArray_DATA(labels)
        for i in range(cnp.PyArray_DIM(labels, 0)):
            if <uint64_t>label[i] >= <uint64_t>self.outputs and label[i] != ignored:
                raise ValueError(
                    f"{name}[{i}] is {given[i]}, expected a class index from 0 to {self.outputs - 1}")
        return labels

    cdef cnp.ndarray targets(self, object y, Py_ssize_t batch, str name, str where, str rows_of="x"):
        """y as the loss reads it: int64 class indices (batch,), or rows of reals (batch, outputs).

        where: what gives the outputs, rows_of: what has as many rows, for error messages.
        """
        cdef cnp.ndarray t
        cdef int axes
        cdef bint labels = self.may_be_labels
        if labels and self.may_be_numbers:
            if not cnp.PyArray_CheckExact(y):
                y = as_array(y, name)
            labels = not (cnp.PyArray_NDIM(y) == 2 and y.dtype.kind == "f")
        if labels:
            t = self.labels(y, name)
        else:
            if self.outputs == 1 or self.repeat:
                axes = cnp.PyArray_NDIM(y) if cnp.PyArray_CheckExact(y) else np.ndim(y)
                if axes == 1:
                    y = as_array(y, name)[:, None]
                if self.repeat and self.outputs > 1 and np.ndim(y) == 2 and np.shape(y)[1] == 1:
                    y = np.repeat(y, self.outputs, axis=1)
            t = as_matrix(y, self.outputs, name, where)
        if cnp.PyArray_DIM(t, 0) != batch:
            raise ValueError(f"{name}: expected {batch} rows, as many as {rows_of} has, got {cnp.PyArray_DIM(t, 0)}")
        if not labels and self.high is not None:
            require(t, min(self.high, LARGEST), name, self.expected)
        return t

    cdef void bind(self, Batch* batch, cnp.ndarray t, cnp.ndarray w) noexcept:
        """Let a pass read targets and weights (None: one each), as `targets` and `as_weights` give them."""
        batch.loss = self.spec
        batch.loss.labels = cnp.PyArray_NDIM(t) == 1
        batch.target = <const char*>cnp.PyArray_DATA(t)
        batch.target_bytes = sizeof(int64_t) if batch.loss.labels else row_stride(t) * sizeof(real)
        batch.weight = NULL if w is None else data(w)


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


cdef cnp.ndarray as_weights(object w, Py_ssize_t batch, str name):
    """w as a contiguous array of weights (batch,), finite and not negative."""
    cdef cnp.ndarray v = as_vector(w, batch, name)
    cdef const real* weight = data(v)
    cdef Py_ssize_t i
    for i in range(batch):
        if not (weight[i] >= 0 and isfinite(weight[i])):
            raise ValueError(f"{name}[{i}] is {v[i]}, expected a finite weight, not below 0")
    return v
