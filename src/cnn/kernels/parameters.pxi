# The parameters, and what else training changes, as Python sees them: packed vectors, views, snapshots. In a packed
# vector stand the numbers of a block without its padding, in the order of the ops: weight (in, out), then bias.

cdef void clear_blocks(const Network* net, real* block) noexcept nogil:
    """Zeros for the network's own numbers in a block, and their padding: others may have theirs there too."""
    cdef const Op* op
    cdef int i
    for i in range(net.n_ops):
        op = &net.ops[i]
        memset(block + op.weight, 0, weight_size(op) * sizeof(real))
        memset(block + op.bias, 0, bias_size(op) * sizeof(real))


cdef cnp.ndarray packed(const Network* net, const real* block):
    """The numbers of a block without its padding, in the order of the ops: weight (in, out), then bias."""
    cdef const Op* op
    cdef Py_ssize_t i, j
    cdef cnp.npy_intp n = net.n_parameters
    cdef int o
    cdef real* at
    cdef cnp.ndarray vector
    vector = cnp.PyArray_EMPTY(1, &n, REAL_TYPE, 0)
    at = data(vector)
    for o in range(net.n_ops):
        op = &net.ops[o]
        if op.has_weight and op.transposed:
            for i in range(op.n_in):
                for j in range(op.n_out):
                    at[i * op.n_out + j] = block[op.weight + j * op.row + i]
        elif op.has_weight:
            copy_rows(larger(op.rows, 1), op.columns, block + op.weight, op.row, at, op.columns)
        at += larger(op.rows, 1) * op.columns * op.has_weight
        if op.has_bias:
            memcpy(at, block + op.bias, op.n_out * sizeof(real))
            at += op.n_out
    return vector


cdef int unpack(const Network* net, object vector, str name, real* block) except -1:
    """Fill a block from what `packed` gives; its padding becomes zero."""
    cdef const Op* op
    cdef Py_ssize_t i, j
    cdef int o
    cdef cnp.ndarray v = as_vector(vector, net.n_parameters, name)
    cdef const real* at = data(v)
    clear_blocks(net, block)
    for o in range(net.n_ops):
        op = &net.ops[o]
        if op.has_weight and op.transposed:
            for i in range(op.n_in):
                for j in range(op.n_out):
                    block[op.weight + j * op.row + i] = at[i * op.n_out + j]
        elif op.has_weight:
            copy_rows(larger(op.rows, 1), op.columns, at, op.columns, block + op.weight, op.row)
        at += larger(op.rows, 1) * op.columns * op.has_weight
        if op.has_bias:
            memcpy(block + op.bias, at, op.n_out * sizeof(real))
            at += op.n_out
    return 0


cdef cnp.ndarray view(Network* net, const Op* op, str what, object owner):
    """An array over the memory of an op's "weight" ((rows, columns) or (columns,)), "bias", "grad_weight", "grad_bias",
    "running_mean" or "running_var" (n,); it keeps the owner alive. None for what the op does not have."""
    cdef real* block = net.grads if what.startswith("grad_") else net.params
    cdef cnp.npy_intp shape[2]
    cdef cnp.npy_intp strides[2]
    cdef cnp.ndarray a
    cdef int dims = 1
    shape[0], strides[0] = op.n_out, sizeof(real)
    if what.startswith("running_"):
        if not op.has_running:
            return None
        block = net.running + op.running + (op.row if what == "running_var" else 0)
    elif what.endswith("weight"):
        if not op.has_weight:
            return None
        block += op.weight
        shape[0] = op.columns
        if op.rows > 0:
            dims = 2
            shape[0], shape[1] = op.rows, op.columns
            strides[0] = (1 if op.transposed else op.row) * sizeof(real)
            strides[1] = (op.row if op.transposed else 1) * sizeof(real)
    else:
        if not op.has_bias:
            return None
        block += op.bias
    a = cnp.PyArray_New(cnp.ndarray, dims, shape, REAL_TYPE, strides, block, 0,
                        cnp.NPY_ARRAY_ALIGNED | cnp.NPY_ARRAY_WRITEABLE, None)
    cnp.set_array_base(a, owner)
    return a


cdef void clear_padding(Network* net, const Op* op) noexcept nogil:
    """Set the padding of an op's parameters to zero. Infinity or NaN in x, or in a gradient, times the zeros there is
    NaN, which a later forward pass would carry to numbers that are right."""
    cdef Py_ssize_t width = op.rows if op.transposed else op.columns
    cdef Py_ssize_t at = op.weight, end = op.weight + weight_size(op)
    if op.has_weight and width < op.row:
        while at < end:
            memset(net.params + at + width, 0, (op.row - width) * sizeof(real))
            at += op.row
    if op.has_bias:
        memset(net.params + op.bias + op.n_out, 0, (bias_size(op) - op.n_out) * sizeof(real))


cdef void clear_paddings(Network* net) noexcept nogil:
    cdef int i
    for i in range(net.n_ops):
        clear_padding(net, &net.ops[i])


cdef uint64_t fingerprint(const Network* net) noexcept nogil:
    """Of all parameters: another number where any of them has other bits. 8 bytes a step, in four chains (the mixer is
    that of `random_bits`)."""
    cdef const uint64_t* words = <const uint64_t*>net.params
    cdef Py_ssize_t i, n = net.n_block * sizeof(real) // 8, fours = n // 4 * 4
    cdef uint64_t[4] sums
    cdef int k
    for k in range(4):
        sums[k] = k
    for i from 0 <= i < fours by 4:
        for k in range(4):
            sums[k] = (sums[k] ^ words[i + k]) * <uint64_t>0x9E3779B97F4A7C15
            sums[k] ^= sums[k] >> 29
    for i in range(fours, n):
        sums[0] = random_bits(sums[0] ^ words[i], i)
    return random_bits(sums[0] ^ (sums[1] << 1), 0) ^ random_bits(sums[2] ^ (sums[3] << 1), 1)


cdef void clear_running(Network* net) noexcept nogil:
    """Running statistics before the first batch: mean 0, variance 1."""
    cdef Py_ssize_t j
    cdef int i
    cdef Op* op
    for i in range(net.n_ops):
        op = &net.ops[i]
        if op.has_running:
            op.tracked[0] = 0
            for j in range(op.n_out):
                net.running[op.running + j] = 0
                net.running[op.running + op.row + j] = 1
                net.running_exact[op.running + op.row + j] = 1


cdef Py_ssize_t statistics_size(const Network* net) noexcept nogil:
    cdef Py_ssize_t n = 0
    cdef int i
    for i in range(net.n_ops):
        n += 2 * net.ops[i].n_out * net.ops[i].has_running
    return n


cdef void copy_statistics(const Network* net, double* vector, bint out) noexcept nogil:
    """Copy the exact running statistics to a vector of statistics_size, or back."""
    cdef const Op* op
    cdef double* exact
    cdef Py_ssize_t bytes
    cdef int i, half
    for i in range(net.n_ops):
        op = &net.ops[i]
        for half in range(2 if op.has_running else 0):
            exact, bytes = net.running_exact + op.running + half * op.row, op.n_out * sizeof(double)
            memcpy(vector if out else exact, exact if out else vector, bytes)
            vector += op.n_out


cdef void clear_frozen(const Network* net, real* block) noexcept nogil:
    """Zeros in a block for what is not trained."""
    cdef const Op* op
    cdef int i
    for i in range(net.n_ops):
        op = &net.ops[i]
        if not op.trains_weight:
            memset(block + op.weight, 0, weight_size(op) * sizeof(real))
        if not op.trains_bias:
            memset(block + op.bias, 0, bias_size(op) * sizeof(real))


cdef bint alike(const Network* net, const Network* other) noexcept nogil:
    """Whether two networks have the same parameters, statistics and activations, op by op."""
    cdef const Op* a
    cdef const Op* b
    cdef int i
    if net.n_ops != other.n_ops:
        return False
    for i in range(net.n_ops):
        a, b = &net.ops[i], &other.ops[i]
        if a.does != b.does or weight_size(a) != weight_size(b) or bias_size(a) != bias_size(b):
            return False
        if a.n_in != b.n_in or a.n_out != b.n_out or a.act != b.act:
            return False
    return True


cdef void lerp_network(Network* net, const Network* of, double part) noexcept nogil:
    """Bring the parameters and running statistics a part of the way to those of a network that is alike; all of it
    copies them, and the numbers of batches in the statistics too. The blocks are read once each and written once."""
    cdef Op* op
    cdef const Op* other
    cdef int i
    for i in range(net.n_ops):
        op, other = &net.ops[i], &of.ops[i]
        if part == 1:
            memcpy(net.params + op.weight, of.params + other.weight, weight_size(op) * sizeof(real))
            memcpy(net.params + op.bias, of.params + other.bias, bias_size(op) * sizeof(real))
        else:
            lerp_block(weight_size(op), net.params + op.weight, of.params + other.weight, part)
            lerp_block(bias_size(op), net.params + op.bias, of.params + other.bias, part)
        if op.has_running:
            lerp_statistics(net, op.running, of, other.running, op.n_out, part)
            lerp_statistics(net, op.running + op.row, of, other.running + other.row, op.n_out, part)
            if part == 1:
                op.tracked[0] = other.tracked[0]


cdef void lerp_statistics(Network* net, Py_ssize_t at, const Network* of, Py_ssize_t there, Py_ssize_t n,
                          double part) noexcept nogil:
    """n running statistics, in double; where somebody has written into the rounded ones, these count."""
    cdef Py_ssize_t j
    cdef double a
    for j in range(n):
        a = exact_statistic(of, there + j)
        net.running_exact[at + j] = a if part == 1 else (1 - part) * exact_statistic(net, at + j) + part * a
        net.running[at + j] = <real>net.running_exact[at + j]


cdef inline double exact_statistic(const Network* net, Py_ssize_t i) noexcept nogil:
    """A running statistic before it was rounded, unless somebody has written another one."""
    return net.running_exact[i] if <real>net.running_exact[i] == net.running[i] else net.running[i]


cdef double gradients_square(const Network* net) noexcept nogil:
    """The sum of the squares of all gradients."""
    cdef const Op* op
    cdef double total = 0
    cdef int i
    for i in range(net.n_ops):
        op = &net.ops[i]
        total += sum_of_squares(weight_size(op), net.grads + op.weight) + sum_of_squares(bias_size(op),
                                                                                         net.grads + op.bias)
    return total


cdef void scale_gradients(const Network* net, double factor) noexcept nogil:
    cdef const Op* op
    cdef int i
    for i in range(net.n_ops):
        op = &net.ops[i]
        scale_block(weight_size(op), net.grads + op.weight, <real>factor)
        scale_block(bias_size(op), net.grads + op.bias, <real>factor)
