# Gates: what joins branches. Sum, product and maximum of two or more buffers of one width, and their concatenation.
#
# All take the addresses of whole padded rows: the padding is zero in every source and stays so. Backward, each source
# is visited in order; `add` says whether its gradient joins what is there already (another reader of the buffer has
# been visited before), or replaces it.

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


cdef void multiply_rows(Py_ssize_t rows, Py_ssize_t n, const real* a, Py_ssize_t a_row, real* y,
                        Py_ssize_t y_row) noexcept nogil:
    """y = y a."""
    cdef Py_ssize_t i, j
    for i in range(rows):
        for j from 0 <= j < n by VL:
            vf_store(y + j, vf_load(y + j) * vf_load(a + j))
        a += a_row
        y += y_row


cdef void maximum_rows(Py_ssize_t rows, Py_ssize_t n, const real* a, Py_ssize_t a_row, real* y,
                       Py_ssize_t y_row) noexcept nogil:
    """y = max(y, a); NaN in either gives NaN."""
    cdef Py_ssize_t i, j
    for i in range(rows):
        for j from 0 <= j < n by VL:
            vf_store(y + j, vf_largest_of(vf_load(y + j), vf_load(a + j)))
        a += a_row
        y += y_row


cdef void maximum_backward_rows(Py_ssize_t rows, Py_ssize_t n, const real** earlier, const Py_ssize_t* earlier_row,
                                int n_earlier, const real* a, Py_ssize_t a_row, const real* y, Py_ssize_t y_row,
                                const real* dy, Py_ssize_t dy_row, bint add, real* da,
                                Py_ssize_t da_row) noexcept nogil:
    """da = dy where a is the first source that equals y, else 0."""
    cdef Py_ssize_t i, j
    cdef int e
    cdef vf y_j, d
    for i in range(rows):
        for j from 0 <= j < n by VL:
            y_j = vf_load(y + i * y_row + j)
            d = vf_select_gt(y_j, vf_load(a + i * a_row + j), vf_set(0), vf_load(dy + i * dy_row + j))
            for e in range(n_earlier):      # an earlier one that is not below y has won
                d = vf_select_gt(y_j, vf_load(earlier[e] + i * earlier_row[e] + j), d, vf_set(0))
            vf_store(da + i * da_row + j, joined(add, da + i * da_row + j, d))


cdef void multiply_backward_rows(Py_ssize_t rows, Py_ssize_t n, const real** sources, const Py_ssize_t* source_rows,
                                 int n_sources, int which, const real* dy, Py_ssize_t dy_row, bint add, real* da,
                                 Py_ssize_t da_row) noexcept nogil:
    """da = dy times all sources but `which`."""
    cdef Py_ssize_t i, j
    cdef int s
    cdef vf d
    for i in range(rows):
        for j from 0 <= j < n by VL:
            d = vf_load(dy + i * dy_row + j)
            for s in range(n_sources):
                if s != which:
                    d = d * vf_load(sources[s] + i * source_rows[s] + j)
            vf_store(da + i * da_row + j, joined(add, da + i * da_row + j, d))


cdef void add_columns(Py_ssize_t rows, Py_ssize_t n, const real* a, Py_ssize_t a_row, bint add, real* y,
                      Py_ssize_t y_row) noexcept nogil:
    """y = a, or y + a, for n columns that may lie anywhere in a row: a concatenation's part."""
    cdef Py_ssize_t i, j, whole = n // VL * VL, rest = n - whole
    for i in range(rows):
        for j from 0 <= j < whole by VL:
            vf_store(y + j, joined(add, y + j, vf_load(a + j)))
        if rest:
            if add:
                vf_store_first(y + whole, vf_load_first(y + whole, rest) + vf_load_first(a + whole, rest), rest)
            else:
                vf_store_first(y + whole, vf_load_first(a + whole, rest), rest)
        a += a_row
        y += y_row
