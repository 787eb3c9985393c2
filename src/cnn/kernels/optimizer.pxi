# Optimisers: the update of one vector of parameters, and the coefficients of a step from the hyper-parameters.
#
# One body serves the sweep over the whole parameter block (`step`), the epilogue of the weight-gradient product
# (`train_step`) and the one-sample sweep (`fit` with batch_size=1). There are two lists:
#
#     UPDATES     what is done to a vector of parameters: NAME_update, inlined with a literal kind. Columns: the blocks
#                 of state that a tile prefetches, and whether the coefficients differ from step to step.
#     OPTIMIZERS  what Python offers: NAME_coefficients makes an Update of one row of the table of hyper-parameters,
#                 NAME_states says how many blocks of state it needs. The columns of its own have the names given there.
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
# An Update holds the coefficients of one step, so that no case needs a branch inside. 1 to 5 multiply-adds an element,
# all but SGD with a division and a square root (whose time hides RMSprop's branches); w and the state are read and
# written once.

cdef extern from *:
    """
    #define UPDATES(X, ...)                                      \\
        X(UPDATE_PLAIN, plain, 0, 0, ##__VA_ARGS__)              \\
        X(UPDATE_SGD, sgd, 0, 0, ##__VA_ARGS__)                  \\
        X(UPDATE_MOMENTUM, momentum, 1, 0, ##__VA_ARGS__)        \\
        X(UPDATE_RMSPROP, rmsprop, 1, 1, ##__VA_ARGS__)          \\
        X(UPDATE_ADAM, adam, 2, 1, ##__VA_ARGS__)                \\
        X(UPDATE_AMSGRAD, amsgrad, 2, 1, ##__VA_ARGS__)

    #define OPTIMIZERS(X, ...)                                                             \\
        X(OPTIMIZER_SGD, sgd, "dampening nesterov", ##__VA_ARGS__)                         \\
        X(OPTIMIZER_ADAM, adam, "beta2 eps amsgrad", ##__VA_ARGS__)                        \\
        X(OPTIMIZER_ADAMW, adamw, "beta2 eps amsgrad", ##__VA_ARGS__)                      \\
        X(OPTIMIZER_RMSPROP, rmsprop, "alpha eps centered", ##__VA_ARGS__)                 \\
        X(OPTIMIZER_ADAGRAD, adagrad, "lr_decay eps initial_accumulator_value", ##__VA_ARGS__)

    #define UPDATE_KIND(KIND, name, blocks, varies, ...) KIND,
    typedef enum { UPDATES(UPDATE_KIND) N_UPDATES } UpdateKind;
    #define UPDATE_BLOCKS(KIND, name, blocks, varies, ...) blocks,
    static const int UPDATE_PREFETCHED[] = { UPDATES(UPDATE_BLOCKS) };
    #define UPDATE_VARIES(KIND, name, blocks, varies, ...) varies,
    static const int UPDATE_VARIABLE[] = { UPDATES(UPDATE_VARIES) };
    #define UPDATE_VALUE(KIND, name, blocks, varies, kind, ...) (kind) == KIND ? name##_update(__VA_ARGS__) :
    #define updated(...) (UPDATES(UPDATE_VALUE, __VA_ARGS__) missing_kernel())
    #define UPDATE_LOOP(KIND, name, blocks, varies, ...) case KIND: update_loop(KIND, __VA_ARGS__); break;
    #define each_update_loop(kind, ...) do switch (kind) { UPDATES(UPDATE_LOOP, __VA_ARGS__) \\
        default: __builtin_trap(); } while (0)

    #define OPTIMIZER_KIND(KIND, name, columns, ...) KIND,
    typedef enum { OPTIMIZERS(OPTIMIZER_KIND) N_OPTIMIZERS } Optimizer;
    #define OPTIMIZER_NAME(KIND, name, columns, ...) #name,
    static const char *const OPTIMIZER_NAMES[] = { OPTIMIZERS(OPTIMIZER_NAME) };
    #define OPTIMIZER_COLUMNS_OF(KIND, name, columns, ...) columns,
    static const char *const OPTIMIZER_COLUMNS[] = { OPTIMIZERS(OPTIMIZER_COLUMNS_OF) };
    #define OPTIMIZER_COEFFICIENTS(KIND, name, columns, ...) case KIND: name##_coefficients(__VA_ARGS__); break;
    #define optimizer_coefficients(optimizer, ...) do switch (optimizer) { \\
        OPTIMIZERS(OPTIMIZER_COEFFICIENTS, __VA_ARGS__) default: __builtin_trap(); } while (0)
    #define OPTIMIZER_STATES(KIND, name, columns, optimizer, ...) (optimizer) == KIND ? name##_states(__VA_ARGS__) :
    #define optimizer_states(...) (OPTIMIZERS(OPTIMIZER_STATES, __VA_ARGS__) -1)
    """
    ctypedef int UpdateKind
    const UpdateKind UPDATE_PLAIN
    const UpdateKind UPDATE_SGD
    const UpdateKind UPDATE_MOMENTUM
    const UpdateKind UPDATE_RMSPROP
    const UpdateKind UPDATE_ADAM
    const UpdateKind UPDATE_AMSGRAD
    const int UPDATE_PREFETCHED[]
    const bint UPDATE_VARIABLE[]
    const int OPTIMIZER_SGD
    const int N_OPTIMIZERS
    const char* OPTIMIZER_NAMES[]
    const char* OPTIMIZER_COLUMNS[]

cdef struct Step:           # of which the coefficients are wanted
    double lr
    double momentum
    double weight_decay
    Py_ssize_t before       # steps taken
    bint moved              # one of them with SGD's momentum

cdef struct Update:
    UpdateKind kind
    real lr                 # Adam: divided by 1 - beta1**t
    real weight_decay
    real m_decay            # m = m_decay m + d_to_m d; Adam, RMSprop's a: m = m + d_to_m (d - m)
    real d_to_m
    real m_to_step          # SGD: the step is m_to_step m + d_to_step d; RMSprop: m = m_to_step m + d
    real d_to_step
    real v_decay            # v = v_decay v + d_to_v d**2
    real d_to_v
    real v_scale            # Adam: 1 / sqrt(1 - beta2**t)
    real v_start            # Adagrad: initial_accumulator_value
    real w_decay            # AdamW: what w is multiplied by; Adam: 1
    real eps
    bint centered
    Py_ssize_t state        # elements from a parameter to its first state
    Py_ssize_t block        # elements from a state to the next

cdef extern from *:
    vf updated(int kind, vf w, vf g, real* state, const Update* u) nogil
    void each_update_loop(int kind, Py_ssize_t rows, Py_ssize_t n, real* w, Py_ssize_t w_row, const real* g,
                          Py_ssize_t g_row, const Update* u) nogil
    void optimizer_coefficients(int optimizer, const Step* step, const double* own, Update* u) nogil
    int optimizer_states(int optimizer, bint momentum, const double* own) nogil

# The columns of an optimiser's table of hyper-parameters, float64: row 0 is the optimiser's own, each further one that
# of a group of parameters. Python fills it, and it is read at each step. From HYPER_OWN on stand the optimiser's own.
cdef enum:
    HYPER_OPTIMIZER
    HYPER_LR
    HYPER_MOMENTUM          # Adam: beta1
    HYPER_WEIGHT_DECAY
    HYPER_CLIP_NORM         # of row 0 alone, as the next two; NaN: none
    HYPER_CLIP_VALUE
    HYPER_EMA_DECAY
    HYPER_OWN
    OWN_COLUMNS = 3
    HYPER_COLUMNS = HYPER_OWN + OWN_COLUMNS

cdef enum:
    STATES = 3              # blocks of state that there is room for

# For Python: the shared columns, and for each optimiser its number and the columns of its own.
HYPER_PARAMETERS = {
    "optimizer": HYPER_OPTIMIZER,
    "lr": HYPER_LR,
    "momentum": HYPER_MOMENTUM,
    "weight_decay": HYPER_WEIGHT_DECAY,
    "clip_norm": HYPER_CLIP_NORM,
    "clip_value": HYPER_CLIP_VALUE,
    "ema_decay": HYPER_EMA_DECAY,
}
OPTIMIZERS = {
    OPTIMIZER_NAMES[i].decode("ascii"): (
        i, {name: HYPER_OWN + k for k, name in enumerate(OPTIMIZER_COLUMNS[i].decode("ascii").split())}
    )
    for i in range(N_OPTIMIZERS)
}
TABLE_COLUMNS = HYPER_COLUMNS


# The least v whose root is taken. With eps = 0 a parameter that has had no gradient stays as it is, instead of becoming
# 0 / 0. So does the padding.
cdef real SMALLEST = CNN_PICK(1.1754943508222875e-38, 2.2250738585072014e-308)

# ---- SGD. State: m

cdef inline vf plain_update "plain_update"(vf w, vf g, real* state, const Update* u) noexcept nogil:
    """With neither weight decay nor momentum."""
    return vf_fma(vf_set(-u.lr), g, w)


cdef inline vf sgd_update "sgd_update"(vf w, vf g, real* state, const Update* u) noexcept nogil:
    """Without momentum."""
    return vf_fma(vf_set(-u.lr), vf_fma(vf_set(u.weight_decay), w, g), w)


cdef inline vf momentum_update "momentum_update"(vf w, vf g, real* state, const Update* u) noexcept nogil:
    cdef vf d = vf_fma(vf_set(u.weight_decay), w, g)
    cdef vf m = vf_fma(vf_set(u.m_decay), vf_load(state), vf_set(u.d_to_m) * d)
    vf_store(state, m)
    d = vf_fma(vf_set(u.m_to_step), m, vf_set(u.d_to_step) * d)
    return vf_fma(vf_set(-u.lr), d, w)


cdef inline void sgd_coefficients "sgd_coefficients"(const Step* s, const double* own, Update* u) noexcept nogil:
    cdef bint nesterov = own[1] != 0
    u.kind = UPDATE_MOMENTUM if s.momentum != 0 else UPDATE_SGD if s.weight_decay != 0 else UPDATE_PLAIN
    u.m_decay = <real>(s.momentum if s.moved else 0)
    u.d_to_m = <real>(1 - own[0] if s.moved else 1)         # dampening
    u.d_to_step = 1 if nesterov else 0
    u.m_to_step = <real>(s.momentum if nesterov else 1)


cdef inline int sgd_states "sgd_states"(bint momentum, const double* own) noexcept nogil:
    return 1 if momentum else 0


# ---- Adam, AdamW, AMSGrad. State: m, v, h

cdef inline vf moments(const bint largest, vf w, vf g, real* state, const Update* u) noexcept nogil:
    """largest: AMSGrad. m of a unit that has died fades away to zero, and does not stay subnormal for ever."""
    cdef vf d = vf_fma(vf_set(u.weight_decay), w, g)
    cdef vf m = vf_load(state), v
    m = vf_flush(vf_fma(vf_set(u.d_to_m), d - m, m))
    vf_store(state, m)
    v = vf_fma(vf_set(u.d_to_v) * d, d, vf_set(u.v_decay) * vf_load(state + u.block))
    vf_store(state + u.block, v)
    if largest:
        v = vf_max(vf_load(state + 2 * u.block), v)
        vf_store(state + 2 * u.block, v)
    d = m / vf_fma(vf_sqrt(vf_max(vf_set(SMALLEST), v)), vf_set(u.v_scale), vf_set(u.eps))
    return vf_fma(vf_set(-u.lr), d, vf_set(u.w_decay) * w)


cdef inline vf adam_update "adam_update"(vf w, vf g, real* state, const Update* u) noexcept nogil:
    return moments(False, w, g, state, u)


cdef inline vf amsgrad_update "amsgrad_update"(vf w, vf g, real* state, const Update* u) noexcept nogil:
    return moments(True, w, g, state, u)


cdef inline void adam_coefficients "adam_coefficients"(const Step* s, const double* own, Update* u) noexcept nogil:
    """own: beta2, eps, amsgrad."""
    u.kind = UPDATE_AMSGRAD if own[2] != 0 else UPDATE_ADAM
    u.lr = <real>(s.lr / (1 - pow(s.momentum, s.before + 1)))
    u.d_to_m = <real>(1 - s.momentum)
    u.v_decay = <real>own[0]
    u.d_to_v = <real>(1 - own[0])
    u.v_scale = <real>(1 / sqrt(1 - pow(own[0], s.before + 1)))
    u.eps = <real>own[1]
    u.w_decay = 1


cdef inline int adam_states "adam_states"(bint momentum, const double* own) noexcept nogil:
    return 3 if own[2] != 0 else 2


cdef inline void adamw_coefficients "adamw_coefficients"(const Step* s, const double* own, Update* u) noexcept nogil:
    adam_coefficients(s, own, u)
    u.weight_decay = 0
    u.w_decay = <real>(1 - s.lr * s.weight_decay)


cdef inline int adamw_states "adamw_states"(bint momentum, const double* own) noexcept nogil:
    return adam_states(momentum, own)


# ---- RMSprop and Adagrad. State: v, m, a

cdef inline vf rmsprop_update "rmsprop_update"(vf w, vf g, real* state, const Update* u) noexcept nogil:
    cdef vf d = vf_fma(vf_set(u.weight_decay), w, g)
    cdef vf a, v = vf_fma(vf_set(u.d_to_v) * d, d, vf_set(u.v_decay) * vf_load(state))
    vf_store(state, v)
    v = v + vf_set(u.v_start)
    if u.centered:
        a = vf_load(state + 2 * u.block)
        a = vf_fma(vf_set(u.d_to_m), d - a, a)
        vf_store(state + 2 * u.block, a)
        v = vf_fma(-a, a, v)                        # rounding alone can make it negative
    d = d / (vf_sqrt(vf_max(vf_set(SMALLEST), v)) + vf_set(u.eps))
    if u.m_to_step > 0:
        d = vf_fma(vf_set(u.m_to_step), vf_load(state + u.block), d)
        vf_store(state + u.block, d)
    return vf_fma(vf_set(-u.lr), d, w)


cdef inline void rmsprop_coefficients "rmsprop_coefficients"(const Step* s, const double* own,
                                                             Update* u) noexcept nogil:
    """own: alpha, eps, centered."""
    u.kind = UPDATE_RMSPROP
    u.v_decay = <real>own[0]
    u.d_to_v = u.d_to_m = <real>(1 - own[0])
    u.eps = <real>own[1]
    u.m_to_step = <real>s.momentum
    u.centered = own[2] != 0


cdef inline int rmsprop_states "rmsprop_states"(bint momentum, const double* own) noexcept nogil:
    return 3 if own[2] != 0 else 2 if momentum else 1


cdef inline void adagrad_coefficients "adagrad_coefficients"(const Step* s, const double* own,
                                                             Update* u) noexcept nogil:
    """own: lr_decay, eps, initial_accumulator_value."""
    u.kind = UPDATE_RMSPROP
    u.lr = <real>(s.lr / (1 + s.before * own[0]))
    u.v_decay = u.d_to_v = 1
    u.eps = <real>own[1]
    u.v_start = <real>own[2]


cdef inline int adagrad_states "adagrad_states"(bint momentum, const double* own) noexcept nogil:
    return 1


# Whichever it is ------------------------------------------------------------------------------------------------------

cdef inline void update_loop "update_loop"(const int kind, Py_ssize_t rows, Py_ssize_t n, real* w, Py_ssize_t w_row,
                                           const real* g, Py_ssize_t g_row, const Update* u) noexcept nogil:
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
    each_update_loop(u.kind, rows, n, w, w_row, g, g_row, u)


cdef Update coefficients(const double* hyper, double lr, double momentum, Py_ssize_t steps, Py_ssize_t momentum_steps,
                         Py_ssize_t state, Py_ssize_t block) noexcept nogil:
    """The coefficients of a step after `steps` others, `momentum_steps` of them with SGD's momentum, from one row of an
    optimiser's table; in double until the end. lr and momentum are the row's, or a schedule's."""
    cdef Step s
    cdef Update u
    s.lr, s.momentum, s.weight_decay = lr, momentum, hyper[HYPER_WEIGHT_DECAY]
    s.before, s.moved = steps, momentum_steps > 0
    memset(&u, 0, sizeof(u))
    u.state = state
    u.block = block
    u.lr = <real>s.lr
    u.weight_decay = <real>s.weight_decay
    optimizer_coefficients(<int>hyper[HYPER_OPTIMIZER], &s, hyper + HYPER_OWN, &u)
    return u
