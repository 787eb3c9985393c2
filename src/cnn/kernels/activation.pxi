# Activations f and their derivatives, on vectors and on rows.
#
# ACTIVATIONS is the only list of them. Each entry has its four functions below, side by side, by the names that the
# list gives it:
#
#     NAME_value(z, param)                        f(z)
#     NAME_backward(dy, from_input, saved, param) dy f'(z); `saved` is z if from_input, else y = f(z)
#     NAME_second(from_input, saved, param)       f''(z)
#     NAME_third(from_input, saved, param)        f'''(z)
#
# and says what the backward pass needs of the forward pass: the output, where f'(z) follows from y = f(z) as well as
# from z and so z need not be kept (OUTPUT), the input (INPUT), or the output as long as f is monotonic, which it is for
# param >= 0 (MONOTONIC). The functions are inlined with a literal kind into one loop for each activation; a kind
# without a function does not compile. `param` is the one number that some of them have.
#
# Formulas and defaults are PyTorch's; errors are in units of the last place, float32 / float64.

cdef extern from *:
    """
    #define ACTIVATIONS(X, ...)                           \\
        X(IDENTITY, identity, OUTPUT, ##__VA_ARGS__)      \\
        X(RELU, relu, OUTPUT, ##__VA_ARGS__)              \\
        X(LEAKY_RELU, leaky_relu, MONOTONIC, ##__VA_ARGS__) \\
        X(ELU, elu, MONOTONIC, ##__VA_ARGS__)             \\
        X(SIGMOID, sigmoid, OUTPUT, ##__VA_ARGS__)        \\
        X(TANH, tanh, OUTPUT, ##__VA_ARGS__)              \\
        X(GELU, gelu, INPUT, ##__VA_ARGS__)               \\
        X(GELU_TANH, gelu_tanh, INPUT, ##__VA_ARGS__)     \\
        X(SILU, silu, INPUT, ##__VA_ARGS__)               \\
        X(SOFTPLUS, softplus, OUTPUT, ##__VA_ARGS__)      \\
        X(SELU, selu, OUTPUT, ##__VA_ARGS__)              \\
        X(CELU, celu, OUTPUT, ##__VA_ARGS__)              \\
        X(MISH, mish, INPUT, ##__VA_ARGS__)               \\
        X(SOFTSIGN, softsign, OUTPUT, ##__VA_ARGS__)      \\
        X(RELU6, relu6, OUTPUT, ##__VA_ARGS__)            \\
        X(HARDSIGMOID, hardsigmoid, OUTPUT, ##__VA_ARGS__) \\
        X(HARDSWISH, hardswish, INPUT, ##__VA_ARGS__)

    /* What the list is made into: the enum, the names, and for each of the functions a choice by a literal kind and a
     * loop for each kind. `missing_kernel` is never linked: a call of it that remains is a compile error. */
    typedef enum { OUTPUT, INPUT, MONOTONIC } Keeps;
    #define ACTIVATION_KIND(KIND, name, keeps, ...) KIND,
    typedef enum { ACTIVATIONS(ACTIVATION_KIND) N_ACTIVATIONS } Activation;
    #define ACTIVATION_NAME(KIND, name, keeps, ...) #name,
    static const char *const ACTIVATION_NAMES[] = { ACTIVATIONS(ACTIVATION_NAME) };
    #define ACTIVATION_KEEPS(KIND, name, keeps, ...) keeps,
    static const Keeps ACTIVATION_KEPT[] = { ACTIVATIONS(ACTIVATION_KEEPS) };

    #define ACTIVATION_VALUE(KIND, name, keeps, kind, ...) (kind) == KIND ? name##_value(__VA_ARGS__) :
    #define activation_value(...) (ACTIVATIONS(ACTIVATION_VALUE, __VA_ARGS__) missing_kernel())
    #define ACTIVATION_BACKWARD(KIND, name, keeps, kind, ...) (kind) == KIND ? name##_backward(__VA_ARGS__) :
    #define activation_gradient(...) (ACTIVATIONS(ACTIVATION_BACKWARD, __VA_ARGS__) missing_kernel())
    #define ACTIVATION_SECOND(KIND, name, keeps, kind, ...) (kind) == KIND ? name##_second(__VA_ARGS__) :
    #define activation_second(...) (ACTIVATIONS(ACTIVATION_SECOND, __VA_ARGS__) missing_kernel())
    #define ACTIVATION_THIRD(KIND, name, keeps, kind, ...) (kind) == KIND ? name##_third(__VA_ARGS__) :
    #define activation_third(...) (ACTIVATIONS(ACTIVATION_THIRD, __VA_ARGS__) missing_kernel())

    #define VALUE_LOOP(KIND, name, keeps, ...) case KIND: value_loop(KIND, __VA_ARGS__); break;
    #define each_value_loop(kind, ...) do switch (kind) { ACTIVATIONS(VALUE_LOOP, __VA_ARGS__) \\
        default: __builtin_trap(); } while (0)
    #define BACKWARD_LOOP(KIND, name, keeps, from_input, ...) case KIND: \\
        if (keeps == INPUT || (from_input)) { backward_loop(KIND, 1, __VA_ARGS__); } \\
        else { backward_loop(KIND, 0, __VA_ARGS__); } \\
        break;
    #define each_backward_loop(kind, ...) do switch (kind) { ACTIVATIONS(BACKWARD_LOOP, __VA_ARGS__) \\
        default: __builtin_trap(); } while (0)
    #define SECOND_LOOP(KIND, name, keeps, ...) case KIND: second_loop(KIND, __VA_ARGS__); break;
    #define each_second_loop(kind, ...) do switch (kind) { ACTIVATIONS(SECOND_LOOP, __VA_ARGS__) \\
        default: __builtin_trap(); } while (0)
    #define SLOPES_LOOP(KIND, name, keeps, ...) case KIND: slopes_loop(KIND, __VA_ARGS__); break;
    #define each_slopes_loop(kind, ...) do switch (kind) { ACTIVATIONS(SLOPES_LOOP, __VA_ARGS__) \\
        default: __builtin_trap(); } while (0)
    """
    ctypedef int Activation
    ctypedef int Keeps
    const Keeps OUTPUT
    const Keeps INPUT
    const Keeps MONOTONIC
    const Activation IDENTITY
    const Activation RELU
    const int N_ACTIVATIONS
    const char* ACTIVATION_NAMES[]
    const Keeps ACTIVATION_KEPT[]
    vf activation_value(Activation kind, vf z, vf param) nogil
    vf activation_gradient(Activation kind, vf dy, bint from_input, vf saved, vf param) nogil
    vf activation_second(Activation kind, bint from_input, vf saved, vf param) nogil
    vf activation_third(Activation kind, bint from_input, vf saved, vf param) nogil
    void each_value_loop(Activation kind, real param, Py_ssize_t rows, Py_ssize_t n, const real* z, Py_ssize_t z_row,
                         real* y, Py_ssize_t y_row) nogil
    void each_backward_loop(Activation kind, bint from_input, real param, Py_ssize_t rows, Py_ssize_t n, const real* dy,
                            Py_ssize_t dy_row, const real* saved, Py_ssize_t saved_row, real* dz,
                            Py_ssize_t dz_row) nogil
    void each_second_loop(Activation kind, real param, bint from_input, Py_ssize_t rows, Py_ssize_t n, real* dy,
                          real* dy_t, Py_ssize_t row, const real* saved, Py_ssize_t saved_row, const real* z_t,
                          Py_ssize_t z_row) nogil
    void each_slopes_loop(Activation kind, real param, bint from_input, Py_ssize_t n, const real* saved,
                          real* slopes) nogil

# name -> number, for what Python hands back
ACTIVATIONS = {ACTIVATION_NAMES[i].decode("ascii"): i for i in range(N_ACTIVATIONS)}


cdef inline bint keeps_input(Activation kind, real param) noexcept nogil:
    """Whether the derivative needs z."""
    cdef Keeps keeps = ACTIVATION_KEPT[kind]
    return keeps == INPUT or (keeps == MONOTONIC and not param >= 0)


# ---- identity: z

cdef inline vf identity_value "identity_value"(vf z, vf param) noexcept nogil:
    return z


cdef inline vf identity_backward "identity_backward"(vf dy, bint from_input, vf saved, vf param) noexcept nogil:
    return dy


cdef inline vf identity_second "identity_second"(bint from_input, vf saved, vf param) noexcept nogil:
    return number(0)


cdef inline vf identity_third "identity_third"(bint from_input, vf saved, vf param) noexcept nogil:
    return number(0)


# ---- relu: max(z, 0). Where f' is 0 the gradient is 0, even for an infinite dy.

cdef inline vf relu_value "relu_value"(vf z, vf param) noexcept nogil:
    return vf_max(number(0), z)


cdef inline vf relu_backward "relu_backward"(vf dy, bint from_input, vf saved, vf param) noexcept nogil:
    return vf_select_gt(saved, number(0), dy, number(0))


cdef inline vf relu_second "relu_second"(bint from_input, vf saved, vf param) noexcept nogil:
    return number(0)


cdef inline vf relu_third "relu_third"(bint from_input, vf saved, vf param) noexcept nogil:
    return number(0)


# ---- leaky_relu: z > 0: z, else param z

cdef inline vf leaky_relu_value "leaky_relu_value"(vf z, vf param) noexcept nogil:
    return vf_select_gt(z, number(0), z, param * z)


cdef inline vf leaky_relu_backward "leaky_relu_backward"(vf dy, bint from_input, vf saved, vf param) noexcept nogil:
    return vf_select_gt(saved, number(0), dy, param * dy)


cdef inline vf leaky_relu_second "leaky_relu_second"(bint from_input, vf saved, vf param) noexcept nogil:
    return number(0)


cdef inline vf leaky_relu_third "leaky_relu_third"(bint from_input, vf saved, vf param) noexcept nogil:
    return number(0)


# ---- elu: z > 0: z, else param (exp(z) - 1); f' = f'' = param exp(z) = y + param there.
# From y, as in PyTorch, f' is as exact as y: far out, where it is below eps, it may come out as 0. So are sigmoid's and
# tanh's.

cdef inline vf elu_value "elu_value"(vf z, vf param) noexcept nogil:
    return vf_select_gt(number(0), z, param * v_expm1(z), z)


cdef inline vf elu_backward "elu_backward"(vf dy, bint from_input, vf saved, vf param) noexcept nogil:
    return dy * vf_select_gt(saved, number(0), number(1), param * v_exp(saved) if from_input else saved + param)


cdef inline vf elu_second "elu_second"(bint from_input, vf saved, vf param) noexcept nogil:
    return vf_select_gt(saved, number(0), number(0), param * v_exp(saved) if from_input else saved + param)


cdef inline vf elu_third "elu_third"(bint from_input, vf saved, vf param) noexcept nogil:
    return elu_second(from_input, saved, param)


# ---- sigmoid: 1 / (1 + exp(-z)), 2.4 / 2.4 ULP; f' = y (1 - y), the same for -z; f'' = y (1 - y) (1 - 2 y)

cdef inline vf sigmoid_value "sigmoid_value"(vf z, vf param) noexcept nogil:
    return v_sigmoid(z)


cdef inline vf sigmoid_backward "sigmoid_backward"(vf dy, bint from_input, vf saved, vf param) noexcept nogil:
    cdef vf y = v_sigmoid(minus_abs(saved)) if from_input else saved
    return dy * (y * (number(1) - y))


cdef inline vf sigmoid_second "sigmoid_second"(bint from_input, vf saved, vf param) noexcept nogil:
    cdef vf y = v_sigmoid(saved) if from_input else saved
    return y * (number(1) - y) * vf_fma(number(-2), y, number(1))


cdef inline vf sigmoid_third "sigmoid_third"(bint from_input, vf saved, vf param) noexcept nogil:
    cdef vf y = v_sigmoid(saved) if from_input else saved
    cdef vf s = y * (number(1) - y)
    return s * vf_fma(number(-6), s, number(1))


# ---- tanh: 2.5 / 2.6 ULP; f' = 1 - y**2 = 4 u (1 - u) with u = sigmoid(+-2 z); f'' = -2 y (1 - y**2)

cdef inline vf tanh_value "tanh_value"(vf z, vf param) noexcept nogil:
    return v_tanh(z)


cdef inline vf tanh_backward "tanh_backward"(vf dy, bint from_input, vf saved, vf param) noexcept nogil:
    cdef vf u
    if from_input:
        u = v_sigmoid(number(-2) * vf_abs(saved))
        return dy * (number(4) * u * (number(1) - u))
    return dy * vf_fma(-saved, saved, number(1))


cdef inline vf tanh_second "tanh_second"(bint from_input, vf saved, vf param) noexcept nogil:
    cdef vf y = v_tanh(saved) if from_input else saved
    return number(-2) * y * vf_fma(-y, y, number(1))


cdef inline vf tanh_third "tanh_third"(bint from_input, vf saved, vf param) noexcept nogil:
    cdef vf y = v_tanh(saved) if from_input else saved
    cdef vf square = y * y
    return (number(1) - square) * vf_fma(number(6), square, number(-2))


# ---- gelu: z Phi(z), Phi the normal distribution, with 1 - Phi(|z|) = exp(-z**2 / 2) tail_ratio(|z|).
# f' = Phi(z) + z phi(z) = t for z <= 0, 1 - t for z > 0; t = exp(-z**2 / 2) (tail_ratio(|z|) - |z| / sqrt(2 pi)).
# f'' = phi(z) (2 - z**2).

cdef inline vf gelu_value "gelu_value"(vf z, vf param) noexcept nogil:
    """Error at most 0.8 eps max(|z|, 1); relative, for z < 0 until the result is denormal (z = -12.8 / -37.4), at most
    6 / 11 ULP. Cost 36 / 53, one of them a division."""
    cdef vf n
    cdef vf limit = pick(15, 40)
    cdef vf a = vf_min(limit, vf_abs(z))
    cdef vf p = bell(a, &n) * tail_ratio(a)
    return vf_select_gt(z, number(0), z * (number(1) - vf_ldexp_down(p, n)), vf_ldexp_down(vf_max(-limit, z) * p, n))


cdef inline vf gelu_backward "gelu_backward"(vf dy, bint from_input, vf saved, vf param) noexcept nogil:
    """Error of f' at most 1.1 eps. Cost 33 / 50, one of them a division."""
    cdef vf n
    cdef vf a = vf_min(pick(15, 40), vf_abs(saved))
    cdef vf t = bell(a, &n) * vf_fma(a, number(-0.3989422804014327), tail_ratio(a))
    t = vf_ldexp_down(t, n)
    return dy * vf_select_gt(saved, number(0), number(1) - t, t)


cdef inline vf gelu_second "gelu_second"(bint from_input, vf saved, vf param) noexcept nogil:
    cdef vf u = clamp(saved, pick(15, 40))
    return number(0.3989422804014327) * v_exp(number(-0.5) * u * u) * vf_fma(-u, u, number(2))


cdef inline vf gelu_third "gelu_third"(bint from_input, vf saved, vf param) noexcept nogil:
    cdef vf u = clamp(saved, pick(15, 40))
    return number(0.3989422804014327) * v_exp(number(-0.5) * u * u) * u * vf_fma(u, u, number(-4))


# ---- gelu_tanh: z (1 + tanh(sqrt(2 / pi) (z + 0.044715 z**3))) / 2 = z sigmoid(t), t = 2 sqrt(2 / pi) (...).
# Error at most 1.1 eps max(|z|, 1); relative, for z < 0, about 3 + 2 |exponent| ULP: the exponent's absolute error
# becomes the result's relative one. With s = sigmoid(t), s' = s (1 - s):
# f' as in `gated_derivative` with w = z dt/dz; f'' = s' (2 t' + z ((1 - 2 s) t'**2 + t'')).

cdef inline vf gelu_tanh_cut(vf z) noexcept nogil:
    """z, cut off where the result is 0 or z."""
    return clamp(z, pick(10.9, 21.6))


cdef inline vf gelu_tanh_exponent(vf z) noexcept nogil:
    """-|t|"""
    return minus_abs(z) * vf_fma(z * z, number(0.07135481627260025), number(1.5957691216057308))


cdef inline vf gelu_tanh_value "gelu_tanh_value"(vf z, vf param) noexcept nogil:
    cdef vf u = gelu_tanh_cut(z)
    return gated(z, u, gelu_tanh_exponent(u))


cdef inline vf gelu_tanh_backward "gelu_tanh_backward"(vf dy, bint from_input, vf saved, vf param) noexcept nogil:
    cdef vf u = gelu_tanh_cut(saved)
    return dy * gated_derivative(saved, gelu_tanh_exponent(u),
                                 u * vf_fma(u * u, number(3 * 0.07135481627260025), number(1.5957691216057308)))


cdef inline vf gelu_tanh_second "gelu_tanh_second"(bint from_input, vf saved, vf param) noexcept nogil:
    cdef vf u = gelu_tanh_cut(saved)
    cdef vf s = v_sigmoid(u * vf_fma(u * u, number(0.07135481627260025), number(1.5957691216057308)))
    cdef vf t_1 = vf_fma(u * u, number(3 * 0.07135481627260025), number(1.5957691216057308))
    cdef vf n = vf_fma(vf_fma(number(-2), s, number(1)) * t_1, t_1, number(6 * 0.07135481627260025) * u)
    return s * (number(1) - s) * vf_fma(u, n, number(2) * t_1)


cdef inline vf gate_third(vf z, vf s, vf t_1, vf t_2, vf t_3) noexcept nogil:
    """Of z sigmoid(t): 3 g'' + z g''', g = s(t), with s' = s (1 - s), s'' = s' (1 - 2 s), s''' = s' (1 - 6 s')."""
    cdef vf s_1 = s * (number(1) - s)
    cdef vf s_2 = vf_fma(number(-2), s, number(1))
    cdef vf s_3 = vf_fma(number(-6), s_1, number(1))
    cdef vf g_2 = vf_fma(s_2 * t_1, t_1, t_2)
    cdef vf g_3 = vf_fma(s_3 * t_1 * t_1, t_1, vf_fma(number(3) * s_2 * t_1, t_2, t_3))
    return s_1 * vf_fma(z, g_3, number(3) * g_2)


cdef inline vf gelu_tanh_third "gelu_tanh_third"(bint from_input, vf saved, vf param) noexcept nogil:
    cdef vf u = gelu_tanh_cut(saved)
    cdef vf t_1 = vf_fma(u * u, number(3 * 0.07135481627260025), number(1.5957691216057308))
    cdef vf t_2 = number(6 * 0.07135481627260025) * u
    cdef vf s = v_sigmoid(u * vf_fma(u * u, number(0.07135481627260025), number(1.5957691216057308)))
    return gate_third(u, s, t_1, t_2, number(6 * 0.07135481627260025))


# ---- silu: z sigmoid(z), 3.2 / 3.4 ULP; as gelu_tanh with t = z

cdef inline vf silu_cut(vf z) noexcept nogil:
    """z, cut off where the result is 0 or z."""
    return clamp(z, pick(110, 760))


cdef inline vf silu_value "silu_value"(vf z, vf param) noexcept nogil:
    cdef vf u = silu_cut(z)
    return gated(z, u, minus_abs(u))


cdef inline vf silu_backward "silu_backward"(vf dy, bint from_input, vf saved, vf param) noexcept nogil:
    cdef vf u = silu_cut(saved)
    return dy * gated_derivative(saved, minus_abs(u), u)


cdef inline vf silu_second "silu_second"(bint from_input, vf saved, vf param) noexcept nogil:
    cdef vf u = silu_cut(saved)
    cdef vf s = v_sigmoid(u)
    return s * (number(1) - s) * vf_fma(u, vf_fma(number(-2), s, number(1)), number(2))


cdef inline vf silu_third "silu_third"(bint from_input, vf saved, vf param) noexcept nogil:
    cdef vf u = silu_cut(saved)
    return gate_third(u, v_sigmoid(u), number(1), number(0), number(0))


# ---- softplus: log(1 + exp(z)) = max(z, 0) + log1p(exp(-|z|)), without PyTorch's threshold, 2.1 / 2.0 ULP;
# f' = s = sigmoid(z) = 1 - exp(-y), f'' = s (1 - s)

cdef inline vf softplus_value "softplus_value"(vf z, vf param) noexcept nogil:
    cdef vf n
    cdef vf e = exp_parts(vf_max(pick(-104, -746), minus_abs(z)), &n)
    return vf_max(number(0), z) + v_log1p(vf_ldexp_down(e, n))


cdef inline vf softplus_backward "softplus_backward"(vf dy, bint from_input, vf saved, vf param) noexcept nogil:
    return dy * (v_sigmoid(saved) if from_input else number(0) - v_expm1(-saved))


cdef inline vf softplus_second "softplus_second"(bint from_input, vf saved, vf param) noexcept nogil:
    cdef vf s = v_sigmoid(saved) if from_input else number(0) - v_expm1(-saved)
    return s * (number(1) - s)


cdef inline vf softplus_third "softplus_third"(bint from_input, vf saved, vf param) noexcept nogil:
    cdef vf s = v_sigmoid(saved) if from_input else number(0) - v_expm1(-saved)
    return s * (number(1) - s) * vf_fma(number(-2), s, number(1))


# ---- selu: elu with alpha 1.67326, times 1.05070 (Klambauer and others, 2017), 1.7 ULP

cdef inline vf selu_left(bint from_input, vf saved) noexcept nogil:
    """f' and f'' for z <= 0."""
    return number(1.7580993408473769) * v_exp(saved) if from_input else saved + number(1.7580993408473769)


cdef inline vf selu_value "selu_value"(vf z, vf param) noexcept nogil:
    return vf_select_gt(number(0), z, number(1.7580993408473769) * v_expm1(z), number(1.0507009873554805) * z)


cdef inline vf selu_backward "selu_backward"(vf dy, bint from_input, vf saved, vf param) noexcept nogil:
    return dy * vf_select_gt(saved, number(0), number(1.0507009873554805), selu_left(from_input, saved))


cdef inline vf selu_second "selu_second"(bint from_input, vf saved, vf param) noexcept nogil:
    return vf_select_gt(saved, number(0), number(0), selu_left(from_input, saved))


cdef inline vf selu_third "selu_third"(bint from_input, vf saved, vf param) noexcept nogil:
    return selu_second(from_input, saved, param)


# ---- celu: z > 0: z, else param (exp(z / param) - 1), param > 0, 1.1 ULP for param = 1;
# f' = exp(z / param) = 1 + y / param there, f'' = f' / param

cdef inline vf celu_left(bint from_input, vf saved, vf param) noexcept nogil:
    """f' for z <= 0."""
    return v_exp(saved / param) if from_input else number(1) + saved / param


cdef inline vf celu_value "celu_value"(vf z, vf param) noexcept nogil:
    return vf_select_gt(number(0), z, param * v_expm1(z / param), z)


cdef inline vf celu_backward "celu_backward"(vf dy, bint from_input, vf saved, vf param) noexcept nogil:
    return dy * vf_select_gt(saved, number(0), number(1), celu_left(from_input, saved, param))


cdef inline vf celu_second "celu_second"(bint from_input, vf saved, vf param) noexcept nogil:
    return vf_select_gt(saved, number(0), number(0), celu_left(from_input, saved, param) / param)


cdef inline vf celu_third "celu_third"(bint from_input, vf saved, vf param) noexcept nogil:
    return celu_second(from_input, saved, param) / param


# ---- mish: z tanh(softplus(z)) = z n / d, 3.0 / 3.1 ULP with or without FMA; with e = exp(-|z|):
# n = 1 + 2 e and d = n + 2 e**2 for z > 0, n = e (e + 2) and d = n + 2 else.
# (tanh(softplus(z)))' = w / d**2 with w = 4 e (1 + e) and, for z > 0, once more e. f' = (n + z w / d) / d;
# f'' = (2 w + z r) / d**2, r = 4 e**2 (2 + e - 4 (1 + e)**2 / d) for z > 0, 4 e (1 + 2 e - 4 e (1 + e)**2 / d) else.

cdef inline vf mish_parts(vf u, vf* n, vf* w) noexcept nogil:
    """exp(-|u|)"""
    cdef vf k
    cdef vf p = exp_parts(minus_abs(u), &k)
    cdef vf e = vf_ldexp_down(p, k)
    n[0] = vf_select_gt(u, number(0), vf_fma(number(2), e, number(1)), e * (e + number(2)))
    w[0] = number(4) * e * (number(1) + e) * vf_select_gt(u, number(0), e, number(1))
    return e


cdef inline vf mish_value "mish_value"(vf z, vf param) noexcept nogil:
    """As in `gated`, low is multiplied before 2**n is."""
    cdef vf k
    cdef vf u = silu_cut(z)
    cdef vf p = exp_parts(minus_abs(u), &k)
    cdef vf e = vf_ldexp_down(p, k)
    cdef vf right = vf_fma(number(2), e, number(1))
    cdef vf left = e + number(2)
    return vf_select_gt(z, number(0), z * right, vf_ldexp_down(u * p * left, k)) / \
        vf_select_gt(z, number(0), vf_fma(number(2) * e, e, right), vf_fma(e, left, number(2)))


cdef inline vf mish_backward "mish_backward"(vf dy, bint from_input, vf saved, vf param) noexcept nogil:
    cdef vf n, w
    cdef vf u = silu_cut(saved)
    cdef vf e = mish_parts(u, &n, &w)
    cdef vf d = n + vf_select_gt(u, number(0), number(2) * e * e, number(2))
    return dy * (vf_fma(u, w / d, n) / d)


cdef inline vf mish_second "mish_second"(bint from_input, vf saved, vf param) noexcept nogil:
    cdef vf n, w
    cdef vf u = silu_cut(saved)
    cdef vf e = mish_parts(u, &n, &w)
    cdef vf q = number(1) / (n + vf_select_gt(u, number(0), number(2) * e * e, number(2)))
    cdef vf s = number(1) + e
    cdef vf a = vf_select_gt(u, number(0), number(2) + e, vf_fma(number(2), e, number(1)))
    cdef vf b = number(4) * s * s * vf_select_gt(u, number(0), number(1), e)
    cdef vf r = number(4) * e * vf_select_gt(u, number(0), e, number(1)) * vf_fma(-b, q, a)
    return vf_fma(number(2), w, u * r) * (q * q)


cdef inline vf mish_third "mish_third"(bint from_input, vf saved, vf param) noexcept nogil:
    """(z g)''' = 3 g'' + z g''', g = tanh(softplus(z)), g' = w s with w = 1 - g**2 and s = sigmoid(z)."""
    cdef vf n, unused
    cdef vf u = silu_cut(saved)
    cdef vf e = mish_parts(u, &n, &unused)
    cdef vf rest = vf_select_gt(u, number(0), number(2) * e * e, number(2))
    cdef vf d = n + rest
    cdef vf g = n / d
    cdef vf w = rest * (d + n) / (d * d)
    cdef vf s = vf_select_gt(u, number(0), number(1), e) / (number(1) + e)
    cdef vf s_1 = s * (number(1) - s)
    cdef vf h = s_1 - number(2) * g * s * s
    cdef vf h_1 = s_1 * vf_fma(number(-2), s, number(1)) - number(2) * w * s * s * s - number(4) * g * s * s_1
    return w * (number(3) * h + u * (h_1 - number(2) * g * s * h))


# ---- softsign: z / (1 + |z|), 1.5 / 1.4 ULP; f' = s**2 with s = 1 / (1 + |z|) = 1 - |y|, f'' = -2 sign(z) s**3

cdef inline vf softsign_scale(bint from_input, vf saved) noexcept nogil:
    return number(1) / (number(1) + vf_abs(saved)) if from_input else number(1) - vf_abs(saved)


cdef inline vf softsign_value "softsign_value"(vf z, vf param) noexcept nogil:
    cdef vf u = clamp(z, number(1e30))  # infinity / infinity is none
    return u / (number(1) + vf_abs(u))


cdef inline vf softsign_backward "softsign_backward"(vf dy, bint from_input, vf saved, vf param) noexcept nogil:
    cdef vf s = softsign_scale(from_input, saved)
    return dy * (s * s)


cdef inline vf softsign_second "softsign_second"(bint from_input, vf saved, vf param) noexcept nogil:
    cdef vf s = softsign_scale(from_input, saved)
    return vf_copysign(number(2) * s * s * s, -saved)


cdef inline vf softsign_third "softsign_third"(bint from_input, vf saved, vf param) noexcept nogil:
    cdef vf s = softsign_scale(from_input, saved)
    return number(6) * (s * s) * (s * s)


# ---- relu6: max(z, 0), at most 6. As relu's, where f' is 0 the gradient is 0: at 6 too.

cdef inline vf relu6_value "relu6_value"(vf z, vf param) noexcept nogil:
    return vf_min(number(6), vf_max(number(0), z))


cdef inline vf relu6_backward "relu6_backward"(vf dy, bint from_input, vf saved, vf param) noexcept nogil:
    return vf_select_gt(saved, number(0), vf_select_gt(number(6), saved, dy, number(0)), number(0))


cdef inline vf relu6_second "relu6_second"(bint from_input, vf saved, vf param) noexcept nogil:
    return number(0)


cdef inline vf relu6_third "relu6_third"(bint from_input, vf saved, vf param) noexcept nogil:
    return number(0)


# ---- hardsigmoid: relu6(z + 3) / 6, 1.4 ULP; f' = 1/6 between -3 and 3, where y is neither 0 nor 1

cdef inline vf hardsigmoid_value "hardsigmoid_value"(vf z, vf param) noexcept nogil:
    return vf_min(number(6), vf_max(number(0), z + number(3))) * number(0.16666666666666666)


cdef inline vf hardsigmoid_backward "hardsigmoid_backward"(vf dy, bint from_input, vf saved, vf param) noexcept nogil:
    cdef vf low = number(-3 if from_input else 0)
    cdef vf high = number(3 if from_input else 1)
    cdef vf inside = dy * number(0.16666666666666666)
    return vf_select_gt(saved, low, vf_select_gt(high, saved, inside, number(0)), number(0))


cdef inline vf hardsigmoid_second "hardsigmoid_second"(bint from_input, vf saved, vf param) noexcept nogil:
    return number(0)


cdef inline vf hardsigmoid_third "hardsigmoid_third"(bint from_input, vf saved, vf param) noexcept nogil:
    return number(0)


# ---- hardswish: z hardsigmoid(z), 2.4 ULP; f' = z / 3 + 1/2 and f'' = 1/3 between -3 and 3; at -3 and 3 as outside

cdef inline vf hardswish_value "hardswish_value"(vf z, vf param) noexcept nogil:
    return vf_max(number(-3), z) * hardsigmoid_value(z, param)  # -infinity times 0 is none


cdef inline vf hardswish_backward "hardswish_backward"(vf dy, bint from_input, vf saved, vf param) noexcept nogil:
    cdef vf inside = dy * vf_fma(saved, number(0.3333333333333333), number(0.5))
    # the last is 0, and NaN for NaN
    return vf_select_gt(saved, number(-3), vf_select_gt(number(3), saved, inside, dy), vf_max(number(0), saved))


cdef inline vf hardswish_second "hardswish_second"(bint from_input, vf saved, vf param) noexcept nogil:
    return vf_select_gt(number(3), vf_abs(saved), number(0.3333333333333333), number(0))


cdef inline vf hardswish_third "hardswish_third"(bint from_input, vf saved, vf param) noexcept nogil:
    return number(0)


# Rows -----------------------------------------------------------------------------------------------------------------

cdef inline void value_loop "value_loop"(Activation kind, real param, Py_ssize_t rows, Py_ssize_t n, const real* z,
                                         Py_ssize_t z_row, real* y, Py_ssize_t y_row) noexcept nogil:
    cdef vf p = vf_set(param)
    cdef Py_ssize_t i, j, vectors = n // VL * VL
    for i in range(rows):
        j = 0
        while j < vectors:
            vf_store(y + j, activation_value(kind, vf_load(z + j), p))
            j += VL
        if j < n:
            vf_store_first(y + j, activation_value(kind, vf_load_first(z + j, n - j), p), n - j)
        z += z_row
        y += y_row


cdef void activate_rows(Activation kind, real param, Py_ssize_t rows, Py_ssize_t n, const real* z, Py_ssize_t z_row,
                        real* y, Py_ssize_t y_row) noexcept nogil:
    """y = f(z), both (rows, n), rows z_row and y_row apart. y may be z. One number read and one written an element."""
    each_value_loop(kind, param, rows, n, z, z_row, y, y_row)


cdef inline void backward_loop "backward_loop"(Activation kind, bint from_input, real param, Py_ssize_t rows,
                                               Py_ssize_t n, const real* dy, Py_ssize_t dy_row, const real* saved,
                                               Py_ssize_t saved_row, real* dz, Py_ssize_t dz_row) noexcept nogil:
    cdef vf p = vf_set(param)
    cdef vf rest
    cdef Py_ssize_t i, j, vectors = n // VL * VL
    for i in range(rows):
        j = 0
        while j < vectors:
            vf_store(dz + j, activation_gradient(kind, vf_load(dy + j), from_input, vf_load(saved + j), p))
            j += VL
        if j < n:
            rest = activation_gradient(kind, vf_load_first(dy + j, n - j), from_input, vf_load_first(saved + j, n - j),
                                       p)
            vf_store_first(dz + j, rest, n - j)
        dy += dy_row
        saved += saved_row
        dz += dz_row


cdef void activate_backward_rows(Activation kind, real param, bint from_input, Py_ssize_t rows, Py_ssize_t n,
                                 const real* dy, Py_ssize_t dy_row, const real* saved, Py_ssize_t saved_row, real* dz,
                                 Py_ssize_t dz_row) noexcept nogil:
    """dz = dy f'(z), all (rows, n); saved is z if from_input, else y. dz may be dy. Two numbers read, one written an
    element."""
    each_backward_loop(kind, from_input, param, rows, n, dy, dy_row, saved, saved_row, dz, dz_row)


cdef inline void second_loop "second_loop"(Activation kind, real param, bint from_input, Py_ssize_t rows, Py_ssize_t n,
                                           real* dy, real* dy_t, Py_ssize_t row, const real* saved,
                                           Py_ssize_t saved_row, const real* z_t, Py_ssize_t z_row) noexcept nogil:
    cdef vf p = vf_set(param)
    cdef vf s, g, d
    cdef Py_ssize_t i, j, rest
    for i in range(rows):
        for j from 0 <= j < n by VL:
            rest = smaller(VL, n - j)
            s = vf_load_first(saved + j, rest)
            g = vf_load(dy + j)
            d = vf_load_first(z_t + j, rest)
            vf_store_first(dy_t + j, vf_fma(g * d, activation_second(kind, from_input, s, p),
                                            activation_gradient(kind, vf_load(dy_t + j), from_input, s, p)), rest)
            vf_store_first(dy + j, activation_gradient(kind, g, from_input, s, p), rest)
        dy += row
        dy_t += row
        saved += saved_row
        z_t += z_row


cdef void activate_second_rows(Activation kind, real param, bint from_input, Py_ssize_t rows, Py_ssize_t n, real* dy,
                               real* dy_t, Py_ssize_t row, const real* saved, Py_ssize_t saved_row, const real* z_t,
                               Py_ssize_t z_row) noexcept nogil:
    """In place: dy_t = dy_t f'(z) + dy f''(z) z', then dy = dy f'(z). Elements beyond n stay zero."""
    each_second_loop(kind, param, from_input, rows, n, dy, dy_t, row, saved, saved_row, z_t, z_row)


cdef inline void slopes_loop "slopes_loop"(Activation kind, real param, bint from_input, Py_ssize_t n,
                                           const real* saved, real* slopes) noexcept nogil:
    cdef vf p = vf_set(param)
    cdef vf s
    cdef Py_ssize_t j
    for j from 0 <= j < n by VL:
        s = vf_load(saved + j)
        vf_store(slopes + j, activation_gradient(kind, number(1), from_input, s, p))
        vf_store(slopes + n + j, activation_second(kind, from_input, s, p))
        vf_store(slopes + 2 * n + j, activation_third(kind, from_input, s, p))


cdef void activation_slopes(Activation kind, real param, bint from_input, Py_ssize_t n, const real* saved,
                            real* slopes) noexcept nogil:
    """slopes (3, n) = f'(z), f''(z) and f'''(z) of a row; saved (n,) is z if from_input, else y; n is a multiple of
    VL."""
    each_slopes_loop(kind, param, from_input, n, saved, slopes)
