# Dropout (Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, JMLR 15, 2014), scaled while training.
#
# No mask is stored: it is a hash of (key, row, column), made anew for the backward pass. So it does not depend on
# threads, on how rows are cut into chunks, on the instruction set, nor on the dtype. A row's 64-bit key is an output of
# SplitMix64 (`random_bits`). Its halves enter before and within lowbias32 of the column, a mixer of 32 bits that runs
# on all lanes (Wellons, "Prospecting for Hash Functions", nullprogram.com, 2018). tests/test_dropout.py tests
# frequencies, and correlations across rows, columns and keys.

cdef extern from *:
    """
    typedef uint32_t cnn_hash __attribute__((vector_size(4 * CNN_LANES)));
    typedef int32_t cnn_hash_signed __attribute__((vector_size(4 * CNN_LANES)));

    /* Lanes of a where the hash of key and column, as a signed number, is at least `bound`; zero in the others. Lane i
     * is column + i. */
    CNN_FN vf keep_random(vf a, uint32_t column, uint64_t key, int32_t bound)
    {
        cnn_hash h = {0};
        for (int i = 0; i < CNN_LANES; i++)
            h[i] = (uint32_t)i;
        h += column + (uint32_t)key;
        h = (h ^ (h >> 16)) * 0x7feb352du;
        h += (uint32_t)(key >> 32);
        h = (h ^ (h >> 15)) * 0x846ca68bu;
        h ^= h >> 16;
        return (vf)(__builtin_convertvector((cnn_hash_signed)h >= bound, vi) & (vi)a);
    }
    """
    vf keep_random(vf a, unsigned int column, uint64_t key, int bound) nogil


cdef void dropout_rows(Py_ssize_t rows, Py_ssize_t n, double p, uint64_t key, int64_t first_row, const real* x,
                       Py_ssize_t x_row, real* y, Py_ssize_t y_row) noexcept nogil:
    """y = x m / (1 - p), where m is 0 with probability p, else 1: the same m for the same key, first_row + i and j.

    x, y (rows, n); y may be x, and its padding is written with zeros. Of dy, the same call makes dx. Where m is 0, so
    is y, whatever x is. The probability is p in float32's precision, the same mask for every dtype; p = 1 gives zeros.
    12 integer operations and one multiplication an element; x read and y written once.
    """
    cdef double share = <double><float>p * 4294967296.0                 # of the 2**32 hashes
    cdef int bound = <int>(share - 2147483648.0) if share < 4294967295.0 else 2147483647
    cdef vf scale = vf_set(<real>(1 / (1 - p) if share < 4294967296.0 else 0.0))
    cdef Py_ssize_t i, j, last = (n - 1) // VL * VL, rest = n - last
    cdef uint64_t row_key
    for i in range(rows):
        row_key = random_bits(key, <uint64_t>(first_row + i))
        for j from 0 <= j < last by VL:
            vf_store(y + j, keep_random(scale * vf_load(x + j), <unsigned int>j, row_key, bound))
        vf_store(y + last, keep_random(scale * vf_load_first(x + last, rest), <unsigned int>last, row_key, bound))
        x += x_row
        y += y_row


cdef void dropout_forward(const Chunk* c, const Op* op) noexcept nogil:
    if in_training(c.ws, op):
        dropout_rows(c.batch, op.n_out, op.param, op.key, c.ws.row0 + c.first, source(c, op.src), source_row(c, op.src),
                     output(c, op), row_size(c, op))
    else:
        copy_rows(c.batch, op.n_out, source(c, op.src), source_row(c, op.src), output(c, op), row_size(c, op))


cdef void dropout_backward(const Chunk* c, const Op* op) noexcept nogil:
    cdef real* dx = gradient_room(c, op)
    if not wants_gradient(c, op.src):
        return
    if in_training(c.ws, op):
        dropout_rows(c.batch, op.n_out, op.param, op.key, c.ws.row0 + c.first, output_gradient(c, op), row_size(c, op),
                     dx, c.net.buffers[op.src].row)
    else:
        copy_rows(c.batch, op.n_out, output_gradient(c, op), row_size(c, op), dx, c.net.buffers[op.src].row)
    gradient_done(c, op)


cdef void dropout_tangent(const Chunk* c, const Op* op) noexcept nogil:
    """y' = x': in evaluation mode."""
    add_rows(c.batch, round_up(op.n_out, VL), row_of(c.t.value, c.net, op.src, c.first), c.net.buffers[op.src].row,
             False, row_of(c.t.value, c.net, op.dst, c.first), row_size(c, op))


cdef OpMethods DROPOUT = plain_op("dropout")
DROPOUT.forward = dropout_forward
DROPOUT.backward = dropout_backward
DROPOUT.tangent = dropout_tangent
DROPOUT.second = pass_gradients_on
DROPOUT.random = True
define(&DROPOUT)
