# Rows of numbers added to other rows, or put in their place.

cdef inline vf joined(bint add, const real* there, vf a) noexcept nogil:
    return vf_load(there) + a if add else a


cdef void add_rows(Py_ssize_t rows, Py_ssize_t n, const real* a, Py_ssize_t a_row, bint add, real* y,
                   Py_ssize_t y_row) noexcept nogil:
    """y = a, or y + a: the sum's forward pass, source by source, and its backward pass. n is a multiple of VL."""
    cdef Py_ssize_t i, j
    for i in range(rows):
        for j from 0 <= j < n by VL:
            vf_store(y + j, joined(add, y + j, vf_load(a + j)))
        a += a_row
        y += y_row


cdef inline vf inside(vf a, Py_ssize_t j, Py_ssize_t n) noexcept nogil:
    """Elements j and following of a row of n; zero after its end."""
    return a if j + VL <= n else vf_first(a, n - j, vf_set(0))


cdef void add_columns(Py_ssize_t rows, Py_ssize_t n, const real* a, Py_ssize_t a_row, bint add, real* y,
                      Py_ssize_t y_row) noexcept nogil:
    """y = a, or y + a, for n columns that may lie anywhere in a row: a concatenation's part."""
    cdef Py_ssize_t i, j, vectors = n // VL * VL, rest = n - vectors
    for i in range(rows):
        for j from 0 <= j < vectors by VL:
            vf_store(y + j, joined(add, y + j, vf_load(a + j)))
        if rest:
            if add:
                vf_store_first(y + vectors, vf_load_first(y + vectors, rest) + vf_load_first(a + vectors, rest), rest)
            else:
                vf_store_first(y + vectors, vf_load_first(a + vectors, rest), rest)
        a += a_row
        y += y_row
