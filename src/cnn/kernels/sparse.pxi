# Products with sparse rows of x, in CSR form: x W and X^T dZ without the zeros of x. 2 entries out FLOPs each.
#
# Both are sums of rows of a dense matrix: `gather_sum`. Going forward, a row of x names the rows of W. For the gradient
# the entries of a batch are sorted by columns first: a column of x names the rows of dZ whose sum is the gradient of
# one row of W. It is one sum in the order of the batch, whichever thread computes it, and the optimiser's step follows
# at once: no gradient goes to memory.

cdef enum:
    SPARSE_BLOCK = 1024         # columns of a gradient that are summed at a time, beside as many zeros
    SPARSE_AHEAD = 6            # entries whose rows are asked for before they are read


cdef inline void gather_panel(const int nv, Py_ssize_t k, const int32_t* index, const real* value, const real* m,
                              Py_ssize_t m_row, const real* start, vf floor, real* y) noexcept nogil:
    """gather_sum for nv vectors, a literal."""
    cdef vf acc[8]
    cdef vf v
    cdef const real* at
    cdef Py_ssize_t l
    cdef int q
    for q in range(nv):
        acc[q] = vf_load(start + q * VL) if start != NULL else vf_set(0)
    for l in range(k):
        if l + SPARSE_AHEAD < k:
            at = m + index[l + SPARSE_AHEAD] * m_row
            for q in range(nv):
                prefetch_ahead(at + q * VL)
        v = vf_set(value[l])
        at = m + index[l] * m_row
        for q in range(nv):
            acc[q] = vf_fma(v, vf_load(at + q * VL), acc[q])
    for q in range(nv):
        vf_store(y + q * VL, vf_max(floor, acc[q]))


cdef void gather_sum(Py_ssize_t k, const int32_t* index, const real* value, const real* m, Py_ssize_t m_row,
                     Py_ssize_t n, const real* start, real floor, real* y) noexcept nogil:
    """y = max(floor, start + sum of value[l] M[index[l], :] over l < k), n numbers, a multiple of VL; start NULL: 0."""
    cdef Py_ssize_t j = 0
    cdef vf least = vf_set(floor)
    while j + 8 * VL <= n:
        gather_panel(8, k, index, value, m + j, m_row, start + j if start != NULL else NULL, least, y + j)
        j += 8 * VL
    if j + 4 * VL <= n:
        gather_panel(4, k, index, value, m + j, m_row, start + j if start != NULL else NULL, least, y + j)
        j += 4 * VL
    if j + 2 * VL <= n:
        gather_panel(2, k, index, value, m + j, m_row, start + j if start != NULL else NULL, least, y + j)
        j += 2 * VL
    if j < n:
        gather_panel(1, k, index, value, m + j, m_row, start + j if start != NULL else NULL, least, y + j)


cdef inline real gather_dot(Py_ssize_t k, const int32_t* index, const real* value, const real* m,
                            Py_ssize_t step) noexcept nogil:
    """The sum over l < k of value[l] m[index[l] step]."""
    cdef Py_ssize_t l
    cdef real sum = 0
    for l in range(k):
        sum = sum + value[l] * m[index[l] * step]
    return sum


# Entries sorted by columns --------------------------------------------------------------------------------------------

cdef void take_spans(const Batch* batch, Span* spans, Py_ssize_t first, Py_ssize_t rows, bint leave_out) noexcept nogil:
    """Where the entries of some rows of a batch lie; rows that do not count have none, if they are to be left out."""
    cdef Py_ssize_t i, row
    for i in range(first, first + rows):
        row = batch.order[i] if batch.order != NULL else i
        spans[i - first].begin = batch.csr.start[row]
        spans[i - first].end = batch.csr.start[row + 1]
        if leave_out and not counts(batch, i):
            spans[i - first].end = spans[i - first].begin


cdef void sort_by_columns(const Csr* csr, const Span* spans, Py_ssize_t rows, Columns* sorted) noexcept nogil:
    """The entries of a batch by columns, in each by rows, in time that does not depend on the number of columns."""
    cdef Py_ssize_t i, at
    cdef int64_t k
    cdef int32_t place
    for i in range(sorted.n):           # those of the batch before
        sorted.place[sorted.column[i]] = 0
    sorted.n = 0
    for i in range(rows):
        for k in range(spans[i].begin, spans[i].end):
            place = sorted.place[csr.column[k]]
            if place == 0:
                sorted.column[sorted.n] = csr.column[k]
                sorted.n += 1
                place = sorted.place[csr.column[k]] = <int32_t>sorted.n
                sorted.start[place] = 0
            sorted.start[place] += 1
    at = 0
    for i in range(1, sorted.n + 1):    # from counts to where each column begins
        at += sorted.start[i]
        sorted.start[i] = at - sorted.start[i]
    sorted.start[0] = 0
    for i in range(rows):
        for k in range(spans[i].begin, spans[i].end):
            place = sorted.place[csr.column[k]]
            sorted.row[sorted.start[place]] = <int32_t>i
            sorted.value[sorted.start[place]] = csr.value[k]
            sorted.start[place] += 1    # place's entries end where they have begun for place + 1


cdef inline void gather_column(const Columns* x, int32_t place, const real* dz, Py_ssize_t dz_row, Py_ssize_t n,
                               real* g) noexcept nogil:
    """g = the row of X^T dZ of the column that has this place, n numbers of it."""
    cdef int64_t begin = x.start[place - 1]
    gather_sum(x.start[place] - begin, x.row + begin, x.value + begin, dz, dz_row, n, NULL, <real>-INFINITY, g)
