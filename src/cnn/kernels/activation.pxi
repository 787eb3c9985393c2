# Activations f and their derivatives, on vectors and on rows.
#
# Formulas and defaults are PyTorch's; `param` is the slope of leaky_relu and the alpha of elu. The derivative is
# computed from the output y = f(z) where that is as good as z, so that z need not be kept: `keeps_input` says when it
# is not.
#
# `activate` and `slope` are inlined with a literal kind, so that one branch of each is left. The choice between kinds
# stands outside the loops over elements, in `activate_rows` and `activate_backward_rows`, which all others call.

cdef enum Activation:
    IDENTITY
    RELU
    LEAKY_RELU
    ELU
    SIGMOID
    TANH
    GELU
    GELU_TANH
    SILU
    SOFTPLUS

ACTIVATIONS = {
    "identity": IDENTITY,
    "relu": RELU,
    "leaky_relu": LEAKY_RELU,
    "elu": ELU,
    "sigmoid": SIGMOID,
    "tanh": TANH,
    "gelu": GELU,
    "gelu_tanh": GELU_TANH,
    "silu": SILU,
    "softplus": SOFTPLUS,
}


cdef inline bint keeps_input(Activation kind, real param) noexcept nogil:
    """Whether the derivative needs z: f is not monotonic."""
    if kind == LEAKY_RELU or kind == ELU:
        return not param >= 0
    return kind == GELU or kind == GELU_TANH or kind == SILU


cdef inline vf gelu(vf z) noexcept nogil:
    """z Phi(z), with 1 - Phi(|z|) = exp(-z**2 / 2) tail_ratio(|z|).

    Error at most 0.8 eps max(|z|, 1); relative, for z < 0 until the result is denormal (z = -12.8 / -37.4), at most
    6 / 11 ULP. Cost 36 / 53, one of them a division.
    """
    cdef vf n
    cdef vf limit = pick(15, 40)
    cdef vf a = vf_min(limit, vf_abs(z))
    cdef vf p = bell(a, &n) * tail_ratio(a)
    return vf_select_gt(z, number(0), z * (number(1) - vf_ldexp_down(p, n)), vf_ldexp_down(vf_max(-limit, z) * p, n))


cdef inline vf gelu_slope(vf z) noexcept nogil:
    """Phi(z) + z phi(z) = t for z <= 0, 1 - t for z > 0; t = exp(-z**2 / 2) (tail_ratio(|z|) - |z| / sqrt(2 pi)).

    Error at most 1.1 eps. Cost 33 / 50, one of them a division.
    """
    cdef vf n
    cdef vf a = vf_min(pick(15, 40), vf_abs(z))
    cdef vf t = bell(a, &n) * vf_fma(a, number(-0.3989422804014327), tail_ratio(a))
    t = vf_ldexp_down(t, n)
    return vf_select_gt(z, number(0), number(1) - t, t)


cdef inline vf silu_cut(vf z) noexcept nogil:
    """z, cut off where SiLU is 0 or z."""
    return clamp(z, pick(110, 760))


cdef inline vf gelu_tanh_cut(vf z) noexcept nogil:
    """z, cut off where GELU in its tanh form is 0 or z."""
    return clamp(z, pick(10.9, 21.6))


cdef inline vf gelu_tanh_exponent(vf z) noexcept nogil:
    """-2 sqrt(2 / pi) (|z| + 0.044715 |z|**3)"""
    return minus_abs(z) * vf_fma(z * z, number(0.07135481627260025), number(1.5957691216057308))


cdef inline vf activate(Activation kind, vf z, vf param) noexcept nogil:
    """f(z).

        relu         max(z, 0)
        leaky_relu   z > 0: z, else param z
        elu          z > 0: z, else param (exp(z) - 1)
        sigmoid      1 / (1 + exp(-z))                          2.4 / 2.4 ULP
        tanh                                                    2.5 / 2.6 ULP
        gelu         z Phi(z)                                   see `gelu`
        gelu_tanh    z (1 + tanh(sqrt(2 / pi) (z + 0.044715 z**3))) / 2 = z sigmoid(2 sqrt(2 / pi) (...))
                     error at most 1.1 eps max(|z|, 1); relative, for z < 0, about 3 + 2 |exponent| ULP: the exponent's
                     absolute error becomes the result's relative one
        silu         z sigmoid(z)                               3.2 / 3.4 ULP
        softplus     log(1 + exp(z)) = max(z, 0) + log1p(exp(-|z|)), without PyTorch's threshold    2.1 / 2.0 ULP
    """
    cdef vf n, e
    if kind == RELU:
        return vf_max(number(0), z)
    elif kind == LEAKY_RELU:
        return vf_select_gt(z, number(0), z, param * z)
    elif kind == ELU:
        return vf_select_gt(number(0), z, param * v_expm1(z), z)
    elif kind == SIGMOID:
        return v_sigmoid(z)
    elif kind == TANH:
        return v_tanh(z)
    elif kind == GELU:
        return gelu(z)
    elif kind == GELU_TANH:
        e = gelu_tanh_cut(z)
        return gated(z, e, gelu_tanh_exponent(e))
    elif kind == SILU:
        e = silu_cut(z)
        return gated(z, e, minus_abs(e))
    elif kind == SOFTPLUS:
        e = exp_parts(vf_max(pick(-104, -746), minus_abs(z)), &n)
        return vf_max(number(0), z) + v_log1p(vf_ldexp_down(e, n))
    else:
        return z


cdef inline vf slope(Activation kind, bint saved_is_input, vf saved, vf param) noexcept nogil:
    """f'(z); `saved` is z if saved_is_input, else y = f(z). From z where `keeps_input`, from either elsewhere.

        relu         y > 0: 1, else 0
        leaky_relu   y > 0: 1, else param
        elu          y > 0: 1, else param exp(z) = y + param
        sigmoid      y (1 - y); the same for -z
        tanh         1 - y**2 = 4 u (1 - u) with u = sigmoid(2 z), or sigmoid(-2 z)
        softplus     1 - exp(-y) = sigmoid(z)
        gelu_tanh    with t = 2 sqrt(2 / pi) (z + 0.044715 z**3): see `gated_slope`; w = z dt/dz
        silu         the same with t = w = z

    Errors at most 3 eps; from y, as in PyTorch, elu', sigmoid' and tanh' are no more exact than that: far out, where
    they are below eps, they may come out as 0.
    """
    cdef vf u
    if kind == RELU:
        return vf_select_gt(saved, number(0), number(1), number(0))
    elif kind == LEAKY_RELU:
        return vf_select_gt(saved, number(0), number(1), param)
    elif kind == ELU:
        return vf_select_gt(saved, number(0), number(1), param * v_exp(saved) if saved_is_input else saved + param)
    elif kind == SIGMOID:
        u = v_sigmoid(minus_abs(saved)) if saved_is_input else saved
        return u * (number(1) - u)
    elif kind == TANH:
        if saved_is_input:
            u = v_sigmoid(number(-2) * vf_abs(saved))
            return number(4) * u * (number(1) - u)
        return vf_fma(-saved, saved, number(1))
    elif kind == GELU:
        return gelu_slope(saved)
    elif kind == GELU_TANH:
        u = gelu_tanh_cut(saved)
        return gated_slope(saved, gelu_tanh_exponent(u),
                           u * vf_fma(u * u, number(3 * 0.07135481627260025), number(1.5957691216057308)))
    elif kind == SILU:
        u = silu_cut(saved)
        return gated_slope(saved, minus_abs(u), u)
    elif kind == SOFTPLUS:
        return v_sigmoid(saved) if saved_is_input else number(0) - v_expm1(-saved)
    else:
        return number(1)


cdef inline vf backpropagate(Activation kind, bint saved_is_input, vf dy, vf saved, vf param) noexcept nogil:
    """dy f'(z). Where relu' is 0 the result is 0, even for an infinite dy."""
    if kind == IDENTITY:
        return dy
    elif kind == RELU:
        return vf_select_gt(saved, number(0), dy, number(0))
    elif kind == LEAKY_RELU:
        return vf_select_gt(saved, number(0), dy, param * dy)
    else:
        return dy * slope(kind, saved_is_input, saved, param)


cdef inline void activate_loop(Activation kind, real param, Py_ssize_t rows, Py_ssize_t n, const real* z,
                               Py_ssize_t z_row, real* y, Py_ssize_t y_row) noexcept nogil:
    cdef vf p = vf_set(param)
    cdef Py_ssize_t i, j, whole = n // VL * VL
    for i in range(rows):
        j = 0
        while j < whole:
            vf_store(y + j, activate(kind, vf_load(z + j), p))
            j += VL
        if j < n:
            vf_store_first(y + j, activate(kind, vf_load_first(z + j, n - j), p), n - j)
        z += z_row
        y += y_row


cdef void activate_rows(Activation kind, real param, Py_ssize_t rows, Py_ssize_t n, const real* z, Py_ssize_t z_row,
                        real* y, Py_ssize_t y_row) noexcept nogil:
    """y = f(z), both (rows, n), rows z_row and y_row apart. y may be z.

    One number read and one written for each element; what is computed, see `activate`.
    """
    if kind == RELU:
        activate_loop(RELU, param, rows, n, z, z_row, y, y_row)
    elif kind == LEAKY_RELU:
        activate_loop(LEAKY_RELU, param, rows, n, z, z_row, y, y_row)
    elif kind == ELU:
        activate_loop(ELU, param, rows, n, z, z_row, y, y_row)
    elif kind == SIGMOID:
        activate_loop(SIGMOID, param, rows, n, z, z_row, y, y_row)
    elif kind == TANH:
        activate_loop(TANH, param, rows, n, z, z_row, y, y_row)
    elif kind == GELU:
        activate_loop(GELU, param, rows, n, z, z_row, y, y_row)
    elif kind == GELU_TANH:
        activate_loop(GELU_TANH, param, rows, n, z, z_row, y, y_row)
    elif kind == SILU:
        activate_loop(SILU, param, rows, n, z, z_row, y, y_row)
    elif kind == SOFTPLUS:
        activate_loop(SOFTPLUS, param, rows, n, z, z_row, y, y_row)
    else:
        activate_loop(IDENTITY, param, rows, n, z, z_row, y, y_row)


cdef inline void backward_loop(Activation kind, bint saved_is_input, real param, Py_ssize_t rows, Py_ssize_t n,
                               const real* dy, Py_ssize_t dy_row, const real* saved, Py_ssize_t saved_row, real* dz,
                               Py_ssize_t dz_row) noexcept nogil:
    cdef vf p = vf_set(param)
    cdef vf rest
    cdef Py_ssize_t i, j, whole = n // VL * VL
    for i in range(rows):
        j = 0
        while j < whole:
            vf_store(dz + j, backpropagate(kind, saved_is_input, vf_load(dy + j), vf_load(saved + j), p))
            j += VL
        if j < n:
            rest = backpropagate(kind, saved_is_input, vf_load_first(dy + j, n - j), vf_load_first(saved + j, n - j), p)
            vf_store_first(dz + j, rest, n - j)
        dy += dy_row
        saved += saved_row
        dz += dz_row


cdef void activate_backward_rows(Activation kind, real param, bint saved_is_input, Py_ssize_t rows, Py_ssize_t n,
                                 const real* dy, Py_ssize_t dy_row, const real* saved, Py_ssize_t saved_row, real* dz,
                                 Py_ssize_t dz_row) noexcept nogil:
    """dz = dy f'(z), all (rows, n). saved is z or y, see `slope`. dz may be dy.

    Two numbers read and one written for each element; what is computed, see `slope`.
    """
    if kind == RELU:
        backward_loop(RELU, True, param, rows, n, dy, dy_row, saved, saved_row, dz, dz_row)
    elif kind == LEAKY_RELU:
        backward_loop(LEAKY_RELU, True, param, rows, n, dy, dy_row, saved, saved_row, dz, dz_row)
    elif kind == ELU and saved_is_input:
        backward_loop(ELU, True, param, rows, n, dy, dy_row, saved, saved_row, dz, dz_row)
    elif kind == ELU:
        backward_loop(ELU, False, param, rows, n, dy, dy_row, saved, saved_row, dz, dz_row)
    elif kind == SIGMOID and saved_is_input:
        backward_loop(SIGMOID, True, param, rows, n, dy, dy_row, saved, saved_row, dz, dz_row)
    elif kind == SIGMOID:
        backward_loop(SIGMOID, False, param, rows, n, dy, dy_row, saved, saved_row, dz, dz_row)
    elif kind == TANH and saved_is_input:
        backward_loop(TANH, True, param, rows, n, dy, dy_row, saved, saved_row, dz, dz_row)
    elif kind == TANH:
        backward_loop(TANH, False, param, rows, n, dy, dy_row, saved, saved_row, dz, dz_row)
    elif kind == GELU:
        backward_loop(GELU, True, param, rows, n, dy, dy_row, saved, saved_row, dz, dz_row)
    elif kind == GELU_TANH:
        backward_loop(GELU_TANH, True, param, rows, n, dy, dy_row, saved, saved_row, dz, dz_row)
    elif kind == SILU:
        backward_loop(SILU, True, param, rows, n, dy, dy_row, saved, saved_row, dz, dz_row)
    elif kind == SOFTPLUS and saved_is_input:
        backward_loop(SOFTPLUS, True, param, rows, n, dy, dy_row, saved, saved_row, dz, dz_row)
    elif kind == SOFTPLUS:
        backward_loop(SOFTPLUS, False, param, rows, n, dy, dy_row, saved, saved_row, dz, dz_row)
    else:
        backward_loop(IDENTITY, True, param, rows, n, dy, dy_row, saved, saved_row, dz, dz_row)
