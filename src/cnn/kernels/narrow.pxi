# Products with the weights of a narrow layer, which are kept transposed, W^T (out, in): dot products of rows.

# LANES[o] is 1 in lane o and 0 elsewhere, FOURS[o] in lanes 4 o to 4 o + 3.
cdef real[16][16] LANES
cdef real[4][16] FOURS


cdef void fill_lanes() noexcept nogil:
    cdef int o
    for o in range(16):
        LANES[o][o] = 1
        FOURS[o // 4][o] = 1


fill_lanes()


cdef inline vf with_lane(vf a, Py_ssize_t o, vf b) noexcept nogil:
    """a, but lane o from b."""
    return vf_select_gt(vf_load(LANES[o]), vf_set(0), b, a)


cdef inline vf dots(const int count, Py_ssize_t k, const real* x, const real* w, Py_ssize_t w_row, Py_ssize_t lane,
                    vf y) noexcept nogil:
    """y, but the lanes from `lane` on are the dot products of x with `count` rows of W^T. count is a literal."""
    cdef vf s[4]
    cdef vf x_l
    cdef Py_ssize_t l
    cdef int q
    for q in range(count):
        s[q] = vf_set(0)
    for l from 0 <= l <= k - VL by VL:
        x_l = vf_load(x + l)
        for q in range(count):
            s[q] = vf_fma(x_l, vf_load(w + q * w_row + l), s[q])
    if l < k:               # behind the row stands NaN where one before it was infinite
        x_l = vf_load_first(x + l, k - l)
        for q in range(count):
            s[q] = vf_fma(x_l, vf_load(w + q * w_row + l), s[q])
    if count == 4 and VL >= 4:
        return vf_select_gt(vf_load(FOURS[lane // 4]), vf_set(0), vf_sum4(s[0], s[1], s[2], s[3]), y)
    for q in range(count):
        y = with_lane(y, lane + q, vf_set(vf_sum(s[q], k)))
    return y


cdef void dot_rows(Py_ssize_t rows, Py_ssize_t k, Py_ssize_t n, const real* x, Py_ssize_t x_row, const real* w,
                   Py_ssize_t w_row, const real* bias, real floor, real* y, Py_ssize_t y_row) noexcept nogil:
    """Y (rows, n) = max(floor, X W + b) for a narrow layer: its weights lie transposed, W^T (n, k).

    The rows of W^T are padded to VL, with zeros.

    One dot product of length k for each output: 2 k n FLOPs a row; x and W^T are read in vectors. The sum of an output
    runs over the vectors in order and then over the lanes pairwise, whatever the number of rows. bias may be NULL.
    """
    cdef Py_ssize_t i, o, group, end
    cdef vf y_o
    for i in range(rows):
        for group from 0 <= group < n by VL:
            end = smaller(n, group + VL)
            y_o = vf_set(0)
            o = group
            while o + 4 <= end:
                y_o = dots(4, k, x, w + o * w_row, w_row, o - group, y_o)
                o += 4
            while o < end:
                y_o = dots(1, k, x, w + o * w_row, w_row, o - group, y_o)
                o += 1
            if bias != NULL:
                y_o = y_o + vf_load(bias + group)
            vf_store(y + group, vf_max(vf_set(floor), y_o))
        x += x_row
        y += y_row
