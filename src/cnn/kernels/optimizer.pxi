# The optimisers' update of one vector of parameters: one body for the sweep over the whole parameter block (`step`),
# the epilogue of the weight-gradient product (`train_step`) and the one-sample sweep (`fit` with batch_size=1).
# Below it the sweeps over a block of gradients that need all of them at once: norms, clipping, penalties, averages.
#
# Formulas are PyTorch's. With gradient g, parameter w, step t = 1, 2, ..., and m, v, a and h in the optimiser's state:
#
#     SGD (torch.optim.SGD)
#         d = g + weight_decay w
#         m = momentum m + (1 - dampening) d            m = d at the first step
#         s = m, or d + momentum m with Nesterov's
#         w = w - lr s
#     Adam (Kingma and Ba, 2015), AdamW (Loshchilov and Hutter, 2019), AMSGrad (Reddi et al., 2018)
#         d = g + weight_decay w                        AdamW: d = g, w = (1 - lr weight_decay) w
#         m = m + (1 - beta1) (d - m)
#         v = beta2 v + (1 - beta2) d**2
#         h = max(h, v)                                 AMSGrad; else h = v
#         w = w - lr / (1 - beta1**t) m / (sqrt(h / (1 - beta2**t)) + eps)
#     RMSprop (Hinton, 2012; centered: Graves, 2013; torch.optim.RMSprop)
#         d = g + weight_decay w
#         v = alpha v + (1 - alpha) d**2
#         a = a + (1 - alpha) (d - a)                   centered; else a = 0
#         s = d / (sqrt(v - a**2) + eps)
#         m = momentum m + s                            with a momentum; else m = s
#         w = w - lr m
#     Adagrad (Duchi et al., 2011; torch.optim.Adagrad), by RMSprop's body
#         d = g + weight_decay w
#         v = v + d**2
#         w = w - lr / (1 + (t - 1) lr_decay) d / (sqrt(v + initial_accumulator_value) + eps)
#
# An Update holds the coefficients of one step, so that inside no case needs a branch: for SGD m = keep m + take d and
# s = direct d + ahead m. 1 to 5 multiply-adds an element, all but SGD with a division and a square root (whose time
# hides RMSprop's branches); w and the state are read and written once.

cdef enum UpdateKind:
    UPDATE_PLAIN            # SGD with neither weight decay nor momentum: w = w - lr g
    UPDATE_SGD              # without momentum: m is neither read nor written
    UPDATE_MOMENTUM
    UPDATE_RMSPROP          # and Adagrad
    UPDATE_ADAM
    UPDATE_AMSGRAD

# What stands in HYPER_OPTIMIZER.
cdef enum:
    OPTIMIZER_SGD
    OPTIMIZER_ADAM
    OPTIMIZER_ADAMW
    OPTIMIZER_RMSPROP
    OPTIMIZER_ADAGRAD

# The columns of an optimiser's table of hyper-parameters, float64: row 0 is the optimiser's own, each further one that
# of a group of parameters. optim.py fills it, and it is read at each step. The last three are
#
#     SGD         dampening    nesterov
#     Adam        beta2        eps         amsgrad
#     RMSprop     alpha        eps         centered
#     Adagrad     lr_decay     eps         initial_accumulator_value
cdef enum:
    HYPER_OPTIMIZER
    HYPER_LR
    HYPER_MOMENTUM          # Adam: beta1
    HYPER_WEIGHT_DECAY
    HYPER_RATIO             # of the row's lr to that of row 0; NaN: the row's lr stands alone
    HYPER_5
    HYPER_6
    HYPER_7
    HYPER_COLUMNS

# With eps = 0 a parameter that has had no gradient stays as it is, instead of becoming 0 / 0. So does the padding.
cdef real SMALLEST = CNN_PICK(1.1754943508222875e-38, 2.2250738585072014e-308)

cdef struct Update:
    UpdateKind kind
    real lr                 # Adam: divided by 1 - beta1**t
    real weight_decay
    real keep               # of m; Adam, RMSprop: of v
    real take               # of d into m; Adam: of d - m; RMSprop: of d - a
    real direct             # Adam, RMSprop: of d**2 into v
    real ahead              # Adam: 1 / sqrt(1 - beta2**t); RMSprop: of m
    real shrink             # Adam: what w is multiplied by
    real eps
    real start              # RMSprop: what is added to v; Adagrad's initial_accumulator_value
    bint centered
    Py_ssize_t state        # elements from a parameter to its m; RMSprop: to its v
    Py_ssize_t block        # elements from m to v, and from v to h; RMSprop: from v to m, and from m to a


cdef inline vf updated(int kind, vf w, vf g, real* m_at, const Update* u) noexcept nogil:
    """The new value of the parameters w with gradient g; their state is updated in place. `kind` is a literal."""
    cdef vf d, m, v
    if kind == UPDATE_PLAIN:
        return vf_fma(vf_set(-u.lr), g, w)
    d = vf_fma(vf_set(u.weight_decay), w, g)
    if kind == UPDATE_MOMENTUM:
        m = vf_fma(vf_set(u.keep), vf_load(m_at), vf_set(u.take) * d)
        vf_store(m_at, m)
        d = vf_fma(vf_set(u.ahead), m, vf_set(u.direct) * d)
    elif kind == UPDATE_ADAM or kind == UPDATE_AMSGRAD:
        m = vf_load(m_at)
        m = vf_fma(vf_set(u.take), d - m, m)
        vf_store(m_at, m)
        v = vf_fma(vf_set(u.direct) * d, d, vf_set(u.keep) * vf_load(m_at + u.block))
        vf_store(m_at + u.block, v)
        if kind == UPDATE_AMSGRAD:
            v = vf_max(vf_load(m_at + 2 * u.block), v)
            vf_store(m_at + 2 * u.block, v)
        d = m / vf_max(vf_set(SMALLEST), vf_fma(vf_sqrt(v), vf_set(u.ahead), vf_set(u.eps)))
        w = vf_set(u.shrink) * w
    elif kind == UPDATE_RMSPROP:
        v = vf_fma(vf_set(u.direct) * d, d, vf_set(u.keep) * vf_load(m_at))
        vf_store(m_at, v)
        v = v + vf_set(u.start)
        if u.centered:
            m = vf_load(m_at + 2 * u.block)
            m = vf_fma(vf_set(u.take), d - m, m)
            vf_store(m_at + 2 * u.block, m)
            v = vf_max(vf_set(0), vf_fma(-m, m, v))     # rounding alone can make it negative
        d = d / vf_max(vf_set(SMALLEST), vf_sqrt(v) + vf_set(u.eps))
        if u.ahead > 0:
            d = vf_fma(vf_set(u.ahead), vf_load(m_at + u.block), d)
            vf_store(m_at + u.block, d)
    return vf_fma(vf_set(-u.lr), d, w)


cdef inline void update_loop(int kind, Py_ssize_t rows, Py_ssize_t n, real* w, Py_ssize_t w_row, const real* g,
                             Py_ssize_t g_row, const Update* u) noexcept nogil:
    cdef Py_ssize_t i, j
    cdef Update own = u[0]      # stores to w cannot change it: it stays in registers
    for i in range(rows):
        for j from 0 <= j < n by VL:
            vf_store(w + j, updated(kind, vf_load(w + j), vf_load(g + j), w + j + own.state, &own))
        w += w_row
        g += g_row


cdef void update_rows(Py_ssize_t rows, Py_ssize_t n, real* w, Py_ssize_t w_row, const real* g, Py_ssize_t g_row,
                      const Update* u) noexcept nogil:
    """Update the parameters w (rows, n), n a multiple of VL, from the gradients g."""
    if u.kind == UPDATE_PLAIN:
        update_loop(UPDATE_PLAIN, rows, n, w, w_row, g, g_row, u)
    elif u.kind == UPDATE_SGD:
        update_loop(UPDATE_SGD, rows, n, w, w_row, g, g_row, u)
    elif u.kind == UPDATE_MOMENTUM:
        update_loop(UPDATE_MOMENTUM, rows, n, w, w_row, g, g_row, u)
    elif u.kind == UPDATE_ADAM:
        update_loop(UPDATE_ADAM, rows, n, w, w_row, g, g_row, u)
    elif u.kind == UPDATE_AMSGRAD:
        update_loop(UPDATE_AMSGRAD, rows, n, w, w_row, g, g_row, u)
    else:
        update_loop(UPDATE_RMSPROP, rows, n, w, w_row, g, g_row, u)


# Coefficients ---------------------------------------------------------------------------------------------------------

cdef Update coefficients(const double* hyper, const double* rates, Py_ssize_t steps, Py_ssize_t momentum_steps,
                         Py_ssize_t state, Py_ssize_t block) noexcept nogil:
    """The coefficients of a step after `steps` others, `momentum_steps` of them with SGD's momentum, from one row of an
    optimiser's table; in double until the end.

    rates: NULL, or a schedule's lr (that of row 0) and momentum, which replace the table's; NaN: does not.
    """
    cdef int optimizer = <int>hyper[HYPER_OPTIMIZER]
    cdef double lr = hyper[HYPER_LR], momentum = hyper[HYPER_MOMENTUM], decay = hyper[HYPER_WEIGHT_DECAY]
    cdef double five = hyper[HYPER_5], six = hyper[HYPER_6], seven = hyper[HYPER_7]
    cdef Update u
    if rates != NULL:
        if not isnan(rates[0] * hyper[HYPER_RATIO]):
            lr = rates[0] * hyper[HYPER_RATIO]
        if not isnan(rates[1]):
            momentum = rates[1]
    memset(&u, 0, sizeof(u))
    u.state = state
    u.block = block
    u.lr = <real>lr
    u.weight_decay = <real>decay
    if optimizer == OPTIMIZER_SGD:
        u.kind = UPDATE_MOMENTUM if momentum != 0 else UPDATE_SGD if decay != 0 else UPDATE_PLAIN
        u.keep = <real>(momentum if momentum_steps else 0)
        u.take = <real>(1 - five if momentum_steps else 1)
        u.direct = <real>(1 if six != 0 else 0)
        u.ahead = <real>(momentum if six != 0 else 1)
    elif optimizer == OPTIMIZER_ADAM or optimizer == OPTIMIZER_ADAMW:
        u.kind = UPDATE_AMSGRAD if seven != 0 else UPDATE_ADAM
        u.lr = <real>(lr / (1 - pow(momentum, steps + 1)))
        u.take = <real>(1 - momentum)
        u.keep = <real>five
        u.direct = <real>(1 - five)
        u.ahead = <real>(1 / sqrt(1 - pow(five, steps + 1)))
        u.eps = <real>six
        u.shrink = 1
        if optimizer == OPTIMIZER_ADAMW:
            u.weight_decay = 0
            u.shrink = <real>(1 - lr * decay)
    else:
        u.kind = UPDATE_RMSPROP
        u.eps = <real>six
        if optimizer == OPTIMIZER_RMSPROP:
            u.keep = <real>five
            u.direct = u.take = <real>(1 - five)
            u.ahead = <real>momentum
            u.centered = seven != 0
        else:
            u.lr = <real>(lr / (1 + steps * five))
            u.keep = u.direct = 1
            u.start = <real>seven
    return u


cdef inline bint depends_on_step(UpdateKind kind) noexcept nogil:
    """Whether the coefficients of such a step differ from those of the last: for bias corrections and lr_decay."""
    return kind >= UPDATE_RMSPROP


# Sweeps over gradients ------------------------------------------------------------------------------------------------

cdef double sum_of_squares(Py_ssize_t n, const real* g) noexcept nogil:
    """sum of g**2 over n numbers, in double, as 16 partial sums: in one order, whatever the vectors.

    A multiply-add and sizeof(real) bytes read an element. Squares do not overflow in float32 gradients.
    """
    cdef double[16] s
    cdef double total = 0
    cdef Py_ssize_t i, whole = n // 16 * 16
    cdef int j
    memset(s, 0, sizeof(s))
    for i from 0 <= i < whole by 16:
        for j in range(16):
            s[j] += <double>g[i + j] * <double>g[i + j]
    for i in range(n - whole):
        s[i] += <double>g[whole + i] * <double>g[whole + i]
    for j in range(16):
        total += s[j]
    return total


cdef void scale_block(Py_ssize_t n, real* g, real factor) noexcept nogil:
    """g = factor g, n a multiple of VL: a product an element, read and written once."""
    cdef Py_ssize_t i
    for i from 0 <= i < n by VL:
        vf_store(g + i, vf_set(factor) * vf_load(g + i))


cdef inline double clip_factor(double square, double max_norm) noexcept nogil:
    """What gradients whose squares sum to `square` are multiplied by: torch.nn.utils.clip_grad_norm_'s coefficient."""
    cdef double factor = max_norm / (sqrt(square) + 1e-6)
    return 1 if factor > 1 else factor


cdef void clip_block(Py_ssize_t n, real* g, real limit) noexcept nogil:
    """g = min(max(g, -limit), limit), n a multiple of VL; NaN stays. Read and written once."""
    cdef Py_ssize_t i
    for i from 0 <= i < n by VL:
        vf_store(g + i, vf_max(vf_set(-limit), vf_min(vf_set(limit), vf_load(g + i))))


cdef double penalty(Py_ssize_t n, const real* w, real* g, double l1, double l2) noexcept nogil:
    """l1 sum |w| + l2 sum w**2, in double and in one order; its gradient, l1 sign(w) + 2 l2 w, is added to g.

    n is a multiple of VL; sign(0) = 0; g may be NULL. 2 multiply-adds an element for the value and 2 for the gradient.
    """
    cdef double[16] absolute
    cdef double[16] square
    cdef double sums = 0, squares = 0
    cdef Py_ssize_t i, whole = n // 16 * 16
    cdef int j
    cdef vf w_i, step
    memset(absolute, 0, sizeof(absolute))
    memset(square, 0, sizeof(square))
    for i from 0 <= i < whole by 16:
        for j in range(16):
            absolute[j] += fabs(<double>w[i + j])
            square[j] += <double>w[i + j] * <double>w[i + j]
    for i in range(n - whole):
        absolute[i] += fabs(<double>w[whole + i])
        square[i] += <double>w[whole + i] * <double>w[whole + i]
    for j in range(16):
        sums += absolute[j]
        squares += square[j]
    if g != NULL:
        for i from 0 <= i < n by VL:
            w_i = vf_load(w + i)
            step = vf_select_gt(vf_abs(w_i), vf_set(0), vf_copysign(vf_set(<real>l1), w_i), vf_set(0))
            vf_store(g + i, vf_load(g + i) + vf_fma(vf_set(<real>(2 * l2)), w_i, step))
    return l1 * sums + l2 * squares


cdef void average_block(Py_ssize_t n, real* average, const real* w, double decay) noexcept nogil:
    """average = decay average + (1 - decay) w, n a multiple of VL: a multiply-add an element, as lerp."""
    cdef Py_ssize_t i
    cdef real part = <real>(1 - decay)
    cdef vf a
    for i from 0 <= i < n by VL:
        a = vf_load(average + i)
        vf_store(average + i, vf_fma(vf_set(part), vf_load(w + i) - a, a))
