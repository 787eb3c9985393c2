# The optimisers' update of one vector of parameters: one body for the sweep over the whole parameter block (`step`),
# the epilogue of the weight-gradient product (`train_step`) and the one-sample sweep (`fit` with batch_size=1).
# Formulas are PyTorch's. With gradient g, parameter w, and m and v in the optimiser's state:
#
#     SGD (torch.optim.SGD)
#         d = g + weight_decay w
#         m = momentum m + (1 - dampening) d            m = d at the first step
#         s = m, or d + momentum m with Nesterov's
#         w = w - lr s
#     Adam (Kingma and Ba, 2015), AdamW (Loshchilov and Hutter, 2019), step t = 1, 2, ...
#         d = g + weight_decay w                        AdamW: d = g, w = (1 - lr weight_decay) w
#         m = m + (1 - beta1) (d - m)
#         v = beta2 v + (1 - beta2) d**2
#         w = w - lr / (1 - beta1**t) m / (sqrt(v / (1 - beta2**t)) + eps)
#
# An Update holds the coefficients of one step, so that inside no case needs a branch: for SGD m = keep m + take d and
# s = direct d + ahead m. 1 to 5 multiply-adds an element, Adam with a division and a square root; w and the state are
# read and written once.

cdef enum UpdateKind:
    UPDATE_PLAIN            # SGD with neither weight decay nor momentum: w = w - lr g
    UPDATE_SGD              # without momentum: m is neither read nor written
    UPDATE_MOMENTUM
    UPDATE_ADAM

# The first of an optimiser's hyper-parameters; the others are listed in `coefficients`.
cdef enum:
    OPTIMIZER_SGD
    OPTIMIZER_ADAM
    OPTIMIZER_ADAMW

# With eps = 0 a parameter that has had no gradient stays as it is, instead of becoming 0 / 0. So does the padding.
cdef real SMALLEST = CNN_PICK(1.1754943508222875e-38, 2.2250738585072014e-308)

cdef struct Update:
    UpdateKind kind
    real lr                 # Adam: divided by 1 - beta1**t
    real weight_decay
    real keep               # of m; Adam: of v
    real take               # of d into m; Adam: of d - m
    real direct             # Adam: of d**2 into v
    real ahead              # Adam: 1 / sqrt(1 - beta2**t)
    real shrink             # Adam: what w is multiplied by
    real eps
    Py_ssize_t state        # elements from a parameter to its m
    Py_ssize_t block        # elements from m to v


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
    elif kind == UPDATE_ADAM:
        m = vf_load(m_at)
        m = vf_fma(vf_set(u.take), d - m, m)
        vf_store(m_at, m)
        v = vf_fma(vf_set(u.direct) * d, d, vf_set(u.keep) * vf_load(m_at + u.block))
        vf_store(m_at + u.block, v)
        d = m / vf_max(vf_set(SMALLEST), vf_fma(vf_sqrt(v), vf_set(u.ahead), vf_set(u.eps)))
        w = vf_set(u.shrink) * w
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
    else:
        update_loop(UPDATE_ADAM, rows, n, w, w_row, g, g_row, u)


cdef Update coefficients(const double* hyper, Py_ssize_t steps, Py_ssize_t state, Py_ssize_t block) noexcept nogil:
    """The coefficients of a step after `steps` others, from

        SGD            OPTIMIZER_SGD, lr, momentum, dampening, weight_decay, nesterov
        Adam, AdamW    OPTIMIZER_ADAM or _ADAMW, lr, beta1, beta2, eps, weight_decay
    """
    cdef int optimizer = <int>hyper[0]
    cdef Update u
    memset(&u, 0, sizeof(u))
    u.state = state
    u.block = block
    if optimizer == OPTIMIZER_SGD:
        u.kind = UPDATE_MOMENTUM if hyper[2] != 0 else UPDATE_SGD if hyper[4] != 0 else UPDATE_PLAIN
        u.lr = <real>hyper[1]
        u.weight_decay = <real>hyper[4]
        u.keep = <real>(hyper[2] if steps else 0)
        u.take = <real>(1 - hyper[3] if steps else 1)
        u.direct = <real>(1 if hyper[5] != 0 else 0)
        u.ahead = <real>(hyper[2] if hyper[5] != 0 else 1)
    else:
        u.kind = UPDATE_ADAM
        u.lr = <real>(hyper[1] / (1 - pow(hyper[2], steps + 1)))
        u.take = <real>(1 - hyper[2])
        u.keep = <real>hyper[3]
        u.direct = <real>(1 - hyper[3])
        u.ahead = <real>(1 / sqrt(1 - pow(hyper[3], steps + 1)))
        u.eps = <real>hyper[4]
        u.weight_decay = <real>(hyper[5] if optimizer == OPTIMIZER_ADAM else 0)
        u.shrink = <real>(1 - hyper[1] * hyper[5] if optimizer == OPTIMIZER_ADAMW else 1)
    return u
