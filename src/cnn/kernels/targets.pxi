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
        per_target (outputs of one target, 1 without), repeat (so many outputs in turn share a target), ignore_nan,
        chosen (targets may be a pair: a column for each row, and its target), ignore_index, column and column_name.
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
    cdef Py_ssize_t per_target
    cdef bint repeat
    cdef bint chosen
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
        self.per_target = spec.get("per_target", 1)
        self.repeat = spec.get("repeat", False) and self.per_target > 1
        self.chosen = spec.get("chosen", False)
        if outputs % self.per_target:
            raise ValueError(f"{self.name}: expected {self.per_target} outputs for each target, got {outputs} outputs")
        self.high = spec.get("high")
        self.expected = spec.get("expected", "")
        s.kind = <LossKind><int>LOSSES[spec["kind"]]
        s.labels = self.may_be_labels
        s.mean = spec["mean"]
        s.ignore_index = spec.get("ignore_index", -1)
        s.ignore_nan = spec.get("ignore_nan", False)
        s.targets = outputs if self.repeat else outputs // self.per_target
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
        if self.repeat:
            column = column * (outputs // self.per_target)
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
        if given.ndim != 1 or given.dtype.kind not in "iu":
            given = self.as_labels(given, name)
        if ignored < 0 and given.dtype.kind == "u":
            ignored = 0             # no unsigned number is below 0, whatever it is as int64; a valid index does no harm
        labels = given
        if cnp.PyArray_TYPE(labels) != cnp.NPY_INT64 or not cnp.PyArray_IS_C_CONTIGUOUS(labels) \
                or not cnp.PyArray_ISBEHAVED_RO(labels):
            labels = np.array(labels, dtype=np.int64, order="C")
        label = <const int64_t*>cnp.PyArray_DATA(labels)
        for i in range(cnp.PyArray_DIM(labels, 0)):
            if <uint64_t>label[i] >= <uint64_t>self.outputs and label[i] != ignored:
                from_1 = given.min() == 1 and given.max() == self.outputs
                raise ValueError(f"{name}[{i}] is {given[i]}, expected a class index from 0 to {self.outputs - 1}"
                                 + (f": the indices begin at 1? {name} - 1" if from_1 else ""))
        return labels

    cdef cnp.ndarray as_labels(self, given, str name):
        """What else may stand for class indices: bools, whole floats, a column of them, rows of one 1 among zeros."""
        expects = f"{name}: {self.name} expects integer class indices"
        if given.dtype.kind == "O" and given.size and all(isinstance(one, (int, np.integer)) for one in given.flat):
            given = given.astype(np.int64)
        if given.dtype.kind not in "iufb" and given.size:
            raise TypeError(f"{expects}, got dtype {given.dtype}{mend_of_labels(given)}")
        if given.dtype.kind not in "iu":
            whole = given.astype(np.int64) if given.dtype.kind == "b" or np.isfinite(given).all() else None
            if whole is None or not (whole == given).all():
                raise TypeError(f"{expects}, got dtype {given.dtype} and numbers that are not whole, or not finite: "
                                "where targets are numbers, the loss is MSELoss or another of its kind")
            given = whole
        if given.ndim == 2 and given.shape[1] == 1:
            return given[:, 0]
        if given.ndim == 2 and given.shape[1] == self.outputs:
            ones = (given == 1)
            if (given == ones).all() and (np.count_nonzero(ones, axis=1) == 1).all():
                return ones.argmax(axis=1)
        if given.ndim != 1:
            raise ValueError(f"{name}: {self.name} expects class indices of shape (batch,), got {given.shape}; rows of "
                             f"shape (batch, {self.outputs}) must have one 1 and zeros"
                             + (", or be floats: probabilities" if self.may_be_numbers else ""))
        return given

    cdef cnp.ndarray scattered(self, pair, Py_ssize_t batch, str name):
        """A pair (columns, values) as rows of targets that are NaN but for the chosen column."""
        if len(pair) != 2:
            raise ValueError(f"{name}: expected a pair (columns, values), got a tuple of {len(pair)}")
        columns = np.asarray(as_array(pair[0], f"{name}[0]"))
        values = converted(pair[1], f"{name}[1]")
        for which, given in enumerate((columns, values)):
            if given.shape != (batch,) and given.shape != (batch, 1):
                raise ValueError(f"{name}[{which}]: expected shape ({batch},), a number for each row, got "
                                 f"{given.shape}")
        if columns.dtype.kind not in "iu":
            raise TypeError(f"{name}[0]: expected integers, the columns that are chosen, got dtype {columns.dtype}")
        columns = columns.reshape(-1)
        bad = np.flatnonzero((columns < 0) | (columns >= self.outputs))
        if bad.size:
            raise ValueError(f"{name}[0][{bad[0]}] is {columns[bad[0]]}, expected a column from 0 to "
                             f"{self.outputs - 1}")
        rows = np.full((batch, self.outputs), np.nan, DTYPE)
        rows[np.arange(batch), columns] = np.reshape(values, -1)
        return rows

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
            labels = not (cnp.PyArray_NDIM(y) == 2 and y.dtype.kind == "f"
                          and (cnp.PyArray_DIM(y, 1) != 1 or self.outputs == 1))
        if labels:
            t = self.labels(y, name)
        else:
            if self.chosen and isinstance(y, tuple):
                y = self.scattered(y, batch, name)
            if self.outputs == self.per_target:
                axes = cnp.PyArray_NDIM(y) if cnp.PyArray_CheckExact(y) else np.ndim(y)
                if axes == 1:
                    y = as_array(y, name)[:, None]
            if self.repeat and np.ndim(y) == 2 and np.shape(y)[1] * self.per_target == self.outputs:
                y = np.repeat(y, self.per_target, axis=1)
            if self.spec.targets > 1 and (not cnp.PyArray_CheckExact(y) or cnp.PyArray_NDIM(y) == 1) \
                    and np.ndim(y) == 1:
                raise ValueError(f"{name}: expected shape (batch, {self.spec.targets}){where}, got {np.shape(y)}: "
                                 f"{self.name} takes a number for each output; class indices are CrossEntropyLoss's")
            t = as_matrix(y, self.spec.targets, name, where)
        if cnp.PyArray_DIM(t, 0) != batch:
            raise ValueError(f"{name}: expected {batch} rows, as many as {rows_of} has, got {cnp.PyArray_DIM(t, 0)}")
        if not labels and self.high is not None:
            require(t, min(self.high, LARGEST), name, self.expected, self.spec.ignore_nan)
        return t

    cdef void bind(self, Batch* batch, cnp.ndarray t, cnp.ndarray w) noexcept:
        """Let a pass read targets and weights (None: one each), as `targets` and `as_weights` give them."""
        batch.loss = self.spec
        batch.loss.labels = cnp.PyArray_NDIM(t) == 1
        batch.target = <const char*>cnp.PyArray_DATA(t)
        batch.target_bytes = sizeof(int64_t) if batch.loss.labels else row_stride(t) * sizeof(real)
        batch.weight = NULL if w is None else data(w)


def mend_of_labels(array):
    """What to do about targets that are no numbers."""
    if array.dtype.kind in "US" or array.dtype.kind == "O" and any(isinstance(one, str) for one in array.flat):
        return ": number them, classes, y = np.unique(y, return_inverse=True)"
    return ""


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
