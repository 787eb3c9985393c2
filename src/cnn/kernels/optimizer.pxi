# The optimisers' update of one vector of parameters: one body for the sweep over the whole parameter block (`step`),
# the epilogue of the weight-gradient product (`train_step`) and the one-sample sweep (`fit` with batch_size=1).
#
# SGD as in PyTorch (torch.optim.SGD), with gradient g, parameter w and momentum buffer m:
#
#     d = g + weight_decay w
#     m = momentum m + (1 - dampening) d            m = d at the first step
#     s = m, or d + momentum m with Nesterov's
#     w = w - lr s
#
# In an Update these are coefficients, so that no case needs a branch: m = keep m + take d, s = direct d + ahead m.
# 2 to 5 multiply-adds an element; w and m are read and written once.

cdef enum UpdateKind:
    UPDATE_PLAIN            # neither weight decay nor momentum: w = w - lr g
    UPDATE_SGD              # without momentum: m is neither read nor written
    UPDATE_MOMENTUM


cdef struct Update:
    UpdateKind kind
    real lr
    real weight_decay
    real keep
    real take
    real direct
    real ahead
    Py_ssize_t state        # elements from a parameter to its momentum


cdef inline vf updated(int kind, vf w, vf g, real* momentum, const Update* u) noexcept nogil:
    """The new value of the parameters w with gradient g; their momentum is updated in place. `kind` is a literal."""
    cdef vf d, m
    if kind == UPDATE_PLAIN:
        return vf_fma(vf_set(-u.lr), g, w)
    d = vf_fma(vf_set(u.weight_decay), w, g)
    if kind == UPDATE_MOMENTUM:
        m = vf_fma(vf_set(u.keep), vf_load(momentum), vf_set(u.take) * d)
        vf_store(momentum, m)
        d = vf_fma(vf_set(u.ahead), m, vf_set(u.direct) * d)
    return vf_fma(vf_set(-u.lr), d, w)


cdef void update_block(Py_ssize_t n, real* w, const real* g, const Update* u) noexcept nogil:
    """Update the n parameters at w, n a multiple of VL, from the gradients at g."""
    cdef Py_ssize_t i
    if u.kind == UPDATE_PLAIN:
        for i from 0 <= i < n by VL:
            vf_store(w + i, updated(UPDATE_PLAIN, vf_load(w + i), vf_load(g + i), NULL, u))
    elif u.kind == UPDATE_SGD:
        for i from 0 <= i < n by VL:
            vf_store(w + i, updated(UPDATE_SGD, vf_load(w + i), vf_load(g + i), NULL, u))
    else:
        for i from 0 <= i < n by VL:
            vf_store(w + i, updated(UPDATE_MOMENTUM, vf_load(w + i), vf_load(g + i), w + i + u.state, u))


cdef Update sgd_coefficients(double lr, double momentum, double dampening, double weight_decay, bint nesterov,
                             bint first, Py_ssize_t state) noexcept nogil:
    """The coefficients of one SGD step. first: whether the momentum buffer is still empty."""
    cdef Update u
    u.kind = UPDATE_MOMENTUM if momentum != 0 else UPDATE_SGD if weight_decay != 0 else UPDATE_PLAIN
    u.lr = <real>lr
    u.weight_decay = <real>weight_decay
    u.keep = <real>(0 if first else momentum)
    u.take = <real>(1 if first else 1 - dampening)
    u.direct = <real>(1 if nesterov else 0)
    u.ahead = <real>(momentum if nesterov else 1)
    u.state = state
    return u
