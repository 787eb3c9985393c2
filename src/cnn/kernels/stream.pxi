# Rows of a stream, as `cnn.river` gets them: dictionaries of numbers by the features' names.

from cpython.dict cimport PyDict_Next
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_Check
from cpython.ref cimport PyObject


def pack_row(dict x, tuple names, cnp.ndarray row not None):
    """Write the values of x to the beginning of `row`, a contiguous float64 vector; whether it was done.

    It is for the usual case, in which nothing can fail: the keys of x are `names` in the same order, strings or the
    same objects, and its values finite floats. In any other nothing is promised of `row`.
    """
    cdef Py_ssize_t i = 0, at = 0, n = len(names)
    cdef PyObject* key
    cdef PyObject* value
    cdef double* out = <double*>cnp.PyArray_DATA(row)
    cdef double total = 0.0
    if x is None or len(x) != n or cnp.PyArray_DIM(row, 0) < n or cnp.PyArray_TYPE(row) != cnp.NPY_FLOAT64:
        return False
    while PyDict_Next(x, &at, &key, &value):
        name = names[i]
        if not PyFloat_Check(<object>value) or <object>key is not name and not (
                type(name) is str and type(<object>key) is str and <str>key == <str>name):
            return False
        out[i] = PyFloat_AS_DOUBLE(<object>value)
        total += out[i] * 0.0
        i += 1
    return total == 0.0


def standardized(cnp.ndarray row not None, cnp.ndarray mean=None, cnp.ndarray factor=None):
    """(row - mean) * factor, or row, as a matrix of one row in this dtype; 0 where it is NaN.

    All are contiguous float64 vectors of one length.
    """
    cdef Py_ssize_t i, n = cnp.PyArray_DIM(row, 0)
    cdef double* z = <double*>cnp.PyArray_DATA(row)
    cdef double* center = NULL
    cdef double* scale = NULL
    cdef cnp.ndarray result = empty_matrix(1, n)
    cdef real* out = data(result)
    if mean is not None:
        if not (cnp.PyArray_DIM(mean, 0) == cnp.PyArray_DIM(factor, 0) == n):
            raise ValueError("row, mean, factor: expected vectors of one length")
        center, scale = <double*>cnp.PyArray_DATA(mean), <double*>cnp.PyArray_DATA(factor)
    for i in range(n):
        out[i] = 0 if z[i] != z[i] else <real>((z[i] - center[i]) * scale[i] if center != NULL else z[i])
    return result
