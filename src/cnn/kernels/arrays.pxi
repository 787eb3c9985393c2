# The boundary: what comes from Python is checked and, if need be, converted here, once. Behind it there are pointers.
#
# An array that is already right (this module's dtype, aligned, unit stride along the last axis) is used where it lies,
# after a handful of comparisons, and so is the memory of other libraries' arrays on the CPU; anything else is converted
# to a C-contiguous copy. Complex, object, string and date arrays are a TypeError.

cimport numpy as cnp

import numpy as np

from cnn import _arrays, _sparse, _targets

cnp.import_array()

cdef int REAL_TYPE = cnp.NPY_FLOAT64 if CNN_REAL64 else cnp.NPY_FLOAT32
DTYPE = np.dtype(np.float64 if CNN_REAL64 else np.float32)


cdef cnp.ndarray converted(object a, str name):
    """a as an array of this module's dtype: over a's own memory if that can be, else a C-contiguous copy."""
    return _arrays.converted(a, name, DTYPE)


cdef inline bint fits(cnp.ndarray a) noexcept:
    """Whether the kernels can read a 1-D or 2-D array where it lies."""
    cdef int d = cnp.PyArray_NDIM(a)
    return (cnp.PyArray_TYPE(a) == REAL_TYPE and cnp.PyArray_ISBEHAVED_RO(a)
            and (cnp.PyArray_STRIDE(a, d - 1) == sizeof(real) or cnp.PyArray_DIM(a, d - 1) == 1)
            and (d == 1 or cnp.PyArray_STRIDE(a, 0) % <Py_ssize_t>sizeof(real) == 0))


cdef cnp.ndarray as_matrix(object a, Py_ssize_t columns, str name, str where):
    """a as an array of shape (rows, columns) with unit column stride; columns < 0: any number of them.

    Raises TypeError for what is no real number, ValueError for another shape.
    """
    cdef cnp.ndarray m
    if not cnp.PyArray_CheckExact(a) or cnp.PyArray_TYPE(<cnp.ndarray>a) != REAL_TYPE:
        a = converted(a, name)
    m = <cnp.ndarray>a
    if cnp.PyArray_NDIM(m) != 2 or (columns >= 0 and cnp.PyArray_DIM(m, 1) != columns):
        _arrays.refuse_matrix(m, columns, name, where)
    if not fits(m):
        m = converted(m.copy(), name)
    return m


cdef cnp.ndarray as_rows(object a, Py_ssize_t columns, str name, str where):
    """as_matrix, also of arrays with more leading axes, or none: each (columns,) of them is a row."""
    if not cnp.PyArray_CheckExact(a):
        a = _arrays.real_array(_arrays.side_by_side(a, columns, name, DTYPE), name)
    cdef int axes = cnp.PyArray_NDIM(a)
    if axes != 2 and axes > 0 and cnp.PyArray_DIM(a, axes - 1) == columns:
        a = a.reshape(-1, columns)
    return as_matrix(a, columns, name, where)


cdef inline bint is_matrix(object x):
    """Whether the rows of what `read` gave are those of the batch; else it has other leading axes."""
    return not cnp.PyArray_CheckExact(x) or cnp.PyArray_NDIM(x) == 2


cdef inline Py_ssize_t count_rows(object x):
    """Rows of a matrix or of SparseRows."""
    return cnp.PyArray_DIM(x, 0) if cnp.PyArray_CheckExact(x) else len(x)


cdef inline cnp.ndarray memory_of(object x):
    """The numbers of a matrix or of SparseRows."""
    return x if cnp.PyArray_CheckExact(x) else x.value


cdef inline Py_ssize_t most_entries(object x, order, Py_ssize_t first, Py_ssize_t stop, Py_ssize_t batch_size):
    """Of a batch of SparseRows; 0 of a matrix."""
    return 0 if cnp.PyArray_CheckExact(x) else x.most_entries(order, first, stop, batch_size)


cdef void set_sparse_rows(Batch* batch, const Network* net, cnp.ndarray start, cnp.ndarray column, cnp.ndarray value):
    """Let a batch begin with the first of SparseRows."""
    cdef Py_ssize_t rows = cnp.PyArray_SIZE(start) - 1, entries = 0
    cdef int i
    batch.csr.start = <const int64_t*>cnp.PyArray_DATA(start)
    batch.csr.column = <const int32_t*>cnp.PyArray_DATA(column)
    batch.csr.value = data(value)
    if rows:
        entries = 1 + (batch.csr.start[rows] - batch.csr.start[0]) // rows
    batch.work = net.work
    for i in range(net.n_ops):
        if net.ops[i].src == 0:
            batch.work += entries * net.ops[i].n_out - net.ops[i].work


cdef tuple leading_of(object x):
    """All axes of an array but the last."""
    cdef tuple shape = np.shape(x)
    return shape[:len(shape) - 1]


cdef object led(cnp.ndarray rows, object x):
    """Results for the rows of x, with the leading axes that x has."""
    if is_matrix(x):
        return rows
    return rows.reshape(leading_of(x) + (cnp.PyArray_DIM(rows, 1),))


cdef cnp.ndarray as_vector(object a, Py_ssize_t n, str name):
    """a as a contiguous array of shape (n,)."""
    cdef cnp.ndarray v
    if not cnp.PyArray_CheckExact(a) or cnp.PyArray_TYPE(<cnp.ndarray>a) != REAL_TYPE:
        a = converted(a, name)
    v = <cnp.ndarray>a
    if cnp.PyArray_NDIM(v) != 1 or cnp.PyArray_DIM(v, 0) != n:
        _arrays.refuse_vector(v, n, name)
    return v if fits(v) else converted(v.copy(), name)


cdef inline real* data(cnp.ndarray a) noexcept nogil:
    return <real*>cnp.PyArray_DATA(a)


cdef inline Py_ssize_t row_stride(cnp.ndarray a) noexcept nogil:
    """Elements from a row to the next."""
    return cnp.PyArray_STRIDE(a, 0) // <Py_ssize_t>sizeof(real)


cdef inline cnp.ndarray empty_matrix(Py_ssize_t rows, Py_ssize_t columns):
    cdef cnp.npy_intp shape[2]
    shape[0] = rows
    shape[1] = columns
    return cnp.PyArray_EMPTY(2, shape, REAL_TYPE, 0)


cdef cnp.ndarray as_out(object out, tuple shape, str name, bint any_rows=False):
    """out, checked to be a writeable array of this dtype and shape that results are written into: never a copy.

    It must be C-contiguous, or with any_rows only its last axis.
    """
    cdef cnp.ndarray o
    if cnp.PyArray_Check(out):
        o = out
        if (cnp.PyArray_TYPE(o) == REAL_TYPE and cnp.PyArray_ISBEHAVED(o) and out.shape == shape
                and (cnp.PyArray_IS_C_CONTIGUOUS(o) or any_rows and fits(o))):
            return o
    _arrays.refuse_out(out, shape, DTYPE, name)


cdef cnp.ndarray as_output(object out, Py_ssize_t rows, Py_ssize_t columns):
    """as_out for a matrix whose rows may lie apart; quick where all is well."""
    cdef cnp.ndarray o
    if cnp.PyArray_CheckExact(out):
        o = out
        if (cnp.PyArray_NDIM(o) == 2 and cnp.PyArray_DIM(o, 0) == rows and cnp.PyArray_DIM(o, 1) == columns
                and cnp.PyArray_ISBEHAVED(o) and fits(o)):
            return o
    return as_out(out, (rows, columns), "out", any_rows=True)


cdef bint overlap(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether the memory of two 1-D or 2-D arrays may overlap: whether the address ranges that they span do."""
    cdef uintptr_t low[2]
    cdef uintptr_t high[2]
    cdef cnp.ndarray array
    cdef Py_ssize_t reach
    cdef int i, d
    for i in range(2):
        array = a if i == 0 else b
        low[i] = high[i] = <uintptr_t>cnp.PyArray_DATA(array)
        for d in range(cnp.PyArray_NDIM(array)):
            if cnp.PyArray_DIM(array, d) == 0:
                return False
            reach = (cnp.PyArray_DIM(array, d) - 1) * cnp.PyArray_STRIDE(array, d)
            if reach < 0:
                low[i] += reach
            else:
                high[i] += reach
        high[i] += cnp.PyArray_ITEMSIZE(array)
    return low[0] < high[1] and low[1] < high[0]
