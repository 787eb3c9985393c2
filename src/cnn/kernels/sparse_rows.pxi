# Sparse matrices at the boundary: whatever has a method `tocsr`, as SciPy's have, is checked and becomes SparseRows.
#
# What has been checked is the kernels' own: starts and columns are copies, as int64 and int32, so that nobody can change
# them afterwards. Values of this module's dtype are used where they lie.

cdef enum:
    MOST_COLUMNS = 0x7fffffff


def is_sparse(x):
    """Whether x is a sparse matrix that can be had as CSR."""
    return hasattr(x, "tocsr")


cdef class SparseRows:
    """Rows of sparse numbers, as the kernels read them; see `Csr` in network.pxi. Private to the library.

    Parameters
    ----------
    start : ndarray of shape (rows + 1,), int64
    column : ndarray, int32
    value : ndarray, of this module's dtype
    columns : int
    """
    cdef cnp.ndarray start
    cdef cnp.ndarray column
    cdef cnp.ndarray value
    cdef readonly tuple shape

    def __init__(self, start, column, value, columns):
        self.start, self.column, self.value = start, column, value
        self.shape = (start.size - 1, columns)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        """Some of the rows, by a slice or an array of indices or of bools: slices share memory."""
        if isinstance(rows, slice) and (rows.step is None or rows.step == 1):
            first, stop, _ = rows.indices(len(self))
            return SparseRows(self.start[first:max(first, stop) + 1], self.column, self.value, self.shape[1])
        rows = np.arange(len(self))[rows]
        begin = self.start[rows]
        start = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(self.start[rows + 1] - begin, out=start[1:])
        entries = np.repeat(begin - start[:len(rows)], np.diff(start)) + np.arange(start[len(rows)])
        return SparseRows(start, self.column[entries], self.value[entries], self.shape[1])

    @staticmethod
    def concatenate(parts):
        """The rows of several, one after another."""
        ends = np.cumsum([0] + [part.entries.size for part in parts])
        start = [part._start[:len(part)] - part._start[0] + end for part, end in zip(parts, ends)]
        column = [part._column for part in parts]
        return SparseRows(np.concatenate([*start, ends[len(parts):]]), np.concatenate(column),
                          np.concatenate([part.entries for part in parts]), parts[0].shape[1])

    @property
    def _start(self):
        return self.start

    @property
    def _column(self):
        return self.column[self.start[0]:self.start[len(self)]]

    @property
    def entries(self):
        """The numbers that are stored."""
        return self.value[self.start[0]:self.start[len(self)]]

    cdef SparseRows kept(self):
        """A copy that does not change with the matrix that it was made of."""
        return self[np.arange(len(self))]

    cdef void bind(self, const Network* net, Batch* batch) noexcept:
        """Let a batch begin here."""
        cdef Py_ssize_t rows = cnp.PyArray_SIZE(self.start) - 1, entries = 0
        cdef int i
        batch.csr.start = <const int64_t*>cnp.PyArray_DATA(self.start)
        batch.csr.column = <const int32_t*>cnp.PyArray_DATA(self.column)
        batch.csr.value = data(self.value)
        if rows:
            entries = 1 + (batch.csr.start[rows] - batch.csr.start[0]) // rows
        batch.work = net.work
        for i in range(net.n_ops):
            if net.ops[i].src == 0:
                batch.work += entries * net.ops[i].n_out - net.ops[i].work


cdef inline Py_ssize_t count_rows(object x):
    """Rows of a matrix or of SparseRows."""
    return cnp.PyArray_DIM(x, 0) if cnp.PyArray_CheckExact(x) else (<SparseRows>x).shape[0]


cdef Py_ssize_t most_entries(object x, const int64_t* order, Py_ssize_t first, Py_ssize_t stop, Py_ssize_t batch_size):
    """The entries of the batch that has most of them, of rows first .. stop - 1; 0 if x is not SparseRows."""
    cdef const int64_t* start
    cdef Py_ssize_t i, row, entries = 0, most = 0
    if type(x) is SparseRows:
        start = <const int64_t*>cnp.PyArray_DATA((<SparseRows>x).start)
        for i in range(first, stop):
            if (i - first) % batch_size == 0:
                entries = 0
            row = order[i] if order != NULL else i
            entries += start[row + 1] - start[row]
            most = larger(most, entries)
    return most


cdef inline cnp.ndarray memory_of(object x):
    """The numbers of a matrix or of SparseRows."""
    return x if cnp.PyArray_CheckExact(x) else (<SparseRows>x).value


cdef object read(object x, str name):
    """x as an array of real numbers, or as it is if it is sparse."""
    if cnp.PyArray_CheckExact(x) or type(x) is SparseRows or is_sparse(x):
        return x
    return real_array(x, name)


cdef inline bint is_matrix(object x):
    """Whether the rows of what `read` gave are the rows of the batch; else it has other leading axes."""
    return not cnp.PyArray_CheckExact(x) or cnp.PyArray_NDIM(x) == 2


cdef SparseRows as_sparse_rows(object x, Py_ssize_t columns, str name, str where):
    """A sparse matrix of so many columns, checked.

    Raises TypeError for what is no real number, ValueError for another shape, or if it is damaged.
    """
    cdef cnp.ndarray start, column
    if type(x) is SparseRows:
        return x
    shape = tuple(x.shape)
    if len(shape) != 2 or shape[1] != columns:
        mend = ": a row is .reshape(1, -1) of it" if shape == (columns,) else ""
        raise ValueError(f"{name}: expected shape (batch, {columns}){where}, got {shape}"
                         f"{mend or mend_of_shape(x, columns)}")
    if columns > MOST_COLUMNS:
        raise ValueError(f"{name}: expected at most {MOST_COLUMNS} columns in a sparse matrix, got {columns}")
    csr = x.tocsr()
    start, indices, values = np.array(csr.indptr, np.int64), np.asarray(csr.indices), np.asarray(csr.data)
    damaged = f"{name}: damaged {type(x).__name__}"
    if start.shape[0] != shape[0] + 1 or start[0] != 0 or (np.diff(start) < 0).any():
        raise ValueError(f"{damaged}: expected an indptr of {shape[0] + 1} numbers that rise from 0")
    entries = start[shape[0]]
    if entries > min(indices.size, values.size):
        raise ValueError(f"{damaged}: indptr says that there are {entries} entries, but there are {indices.size} "
                         f"indices and {values.size} numbers")
    column = np.array(indices[:entries], np.int32)
    if entries and (column.min() < 0 or column.max() >= columns or indices.dtype.itemsize > 4
                    and (indices[:entries] != column).any()):
        place = int(np.argmax((indices[:entries] < 0) | (indices[:entries] >= columns)))
        row = int(np.searchsorted(start, place, side="right")) - 1
        raise ValueError(f"{damaged}: row {row} has an entry of column {indices[place]}, but there are {columns} columns")
    return SparseRows(start, column, as_vector(values[:entries], entries, name), columns)
