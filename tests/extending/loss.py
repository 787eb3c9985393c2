"""Log-cosh: log(cosh(y - t))."""

EDITS = [
    (
        "src/cnn/kernels/loss.pxi",
        "        X(LOSS_MSE, mse,",
        "        X(LOSS_LOG_COSH, log_cosh, 0, ##__VA_ARGS__)    \\\\\n",
    ),
    (
        "src/cnn/kernels/loss.pxi",
        "# L1: |y - t|\n",
        '''\
# Log-cosh: log(cosh(d)) = |d| + log1p(exp(-2 |d|)) - log(2), d = y - t; tanh(d); 1 - tanh(d)**2

cdef inline vf log_cosh_slope(vf d, vf e) noexcept nogil:
    """tanh(d), with e = exp(-2 |d|)."""
    return vf_copysign((number(1) - e) / (number(1) + e), d)


cdef inline vf log_cosh_element "log_cosh_element"(const LossSpec* spec, vf y, vf t, vf c,
                                                   vf* derivative) noexcept nogil:
    cdef vf d = y - t
    cdef vf e = v_exp(minus_abs(d + d))
    derivative[0] = log_cosh_slope(d, e)
    return vf_abs(d) + v_log1p(e) - number(0.6931471805599453)


cdef inline vf log_cosh_curvature "log_cosh_curvature"(const LossSpec* spec, vf y, vf t, vf c) noexcept nogil:
    cdef vf d = y - t
    cdef vf slope = log_cosh_slope(d, v_exp(minus_abs(d + d)))
    return number(1) - slope * slope


''',
    ),
    ("src/cnn/losses.py", '    "MSELoss",\n', '    "LogCoshLoss",\n'),
    (
        "src/cnn/losses.py",
        "class HuberLoss(_OfChosen):",
        '''\
class LogCoshLoss(_OfChosen):
    """log(cosh(outputs - targets)).

    Parameters
    ----------
    reduction : {"mean", "sum"}
    """

    kind = "log_cosh"
    outputs = "values"
    targets = "numbers"
    convex = True


''',
    ),
    (
        "tests/grid/losses.py",
        "    Loss(cnn.CallableLoss,",
        '    Loss(cnn.LogCoshLoss, log_cosh, {"log_cosh": {}, "log_cosh sum": {"reduction": "sum"}}, torch=False),\n',
    ),
]
