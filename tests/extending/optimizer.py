"""Sign descent, smoothed where the gradient changes its sign: w -= lr d / (|d| + eps), d = g + weight_decay w."""

EDITS = [
    (
        "src/cnn/kernels/optimizer.pxi",
        "        X(UPDATE_PLAIN, plain,",
        "        X(UPDATE_SIGN, sign, 0, 0, ##__VA_ARGS__)                \\\\\n",
    ),
    (
        "src/cnn/kernels/optimizer.pxi",
        "        X(OPTIMIZER_SGD, sgd,",
        '        X(OPTIMIZER_SIGN, sign, "eps", ##__VA_ARGS__)                                      \\\\\n',
    ),
    ("src/cnn/kernels/optimizer.pxi", "    const UpdateKind UPDATE_PLAIN\n", "    const UpdateKind UPDATE_SIGN\n"),
    (
        "src/cnn/kernels/optimizer.pxi",
        "# ---- RMSprop and Adagrad.",
        '''\
# ---- sign descent

cdef inline vf sign_update "sign_update"(vf w, vf g, real* state, const Update* u) noexcept nogil:
    cdef vf d = vf_fma(vf_set(u.weight_decay), w, g)
    return vf_fma(vf_set(-u.lr), d / (vf_abs(d) + vf_set(u.eps)), w)


cdef inline void sign_coefficients "sign_coefficients"(const Step* s, const double* own, Update* u) noexcept nogil:
    """own: eps."""
    u.kind = UPDATE_SIGN
    u.eps = <real>own[0]


cdef inline int sign_states "sign_states"(bint momentum, const double* own) noexcept nogil:
    return 0


''',
    ),
    ("src/cnn/optim/optimizers.py", '"Adagrad", "Adam", "AdamW", "RMSprop"]', '"SignDescent", '),
    (
        "src/cnn/optim/optimizers.py",
        "class Adam(Optimizer):",
        '''\
class SignDescent(Optimizer):
    """Sign descent.

    Parameters
    ----------
    lr, eps, weight_decay : float
        At least 0.
    **common
        As for `Optimizer`.
    """

    kernel = "sign"
    eps = _Hyper()

    def __init__(self, lr=1e-3, eps=1e-8, weight_decay=0.0, **common):
        super().__init__(lr, weight_decay, **common)
        self.eps = eps


''',
    ),
    (
        "tests/grid/optimizers.py",
        "# the table ---",
        """\
def sign_step(param, grad, state=None, *, lr, eps, weight_decay):
    step = grad + weight_decay * param
    return param - lr * step / (np.abs(step) + eps), None


""",
    ),
    (
        "tests/grid/optimizers.py",
        "    Optimizer(\n        cnn.SGD,",
        """\
    Optimizer(cnn.SignDescent, sign_step, {"sign": ({"lr": 0.02, "eps": 0.1, "weight_decay": 0.05}, {})}),
""",
    ),
]
