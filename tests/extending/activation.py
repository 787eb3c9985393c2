"""Log-sigmoid: f(z) = -log(1 + exp(-z))."""

EDITS = [
    (
        "src/cnn/kernels/activation.pxi",
        "        X(IDENTITY, identity,",
        "        X(LOG_SIGMOID, log_sigmoid, INPUT, ##__VA_ARGS__) \\\\\n",
    ),
    (
        "src/cnn/kernels/activation.pxi",
        "# ---- selu:",
        """\
# ---- log_sigmoid: -softplus(-z); f' = sigmoid(-z), f'' = -s (1 - s), f''' = -softplus'''

cdef inline vf log_sigmoid_value "log_sigmoid_value"(vf z, vf param) noexcept nogil:
    return -softplus_value(-z, param)


cdef inline vf log_sigmoid_backward "log_sigmoid_backward"(vf dy, bint from_input, vf saved, vf param) noexcept nogil:
    return dy * v_sigmoid(-saved)


cdef inline vf log_sigmoid_second "log_sigmoid_second"(bint from_input, vf saved, vf param) noexcept nogil:
    return -softplus_second(True, saved, param)


cdef inline vf log_sigmoid_third "log_sigmoid_third"(bint from_input, vf saved, vf param) noexcept nogil:
    return -softplus_third(True, saved, param)


""",
    ),
    ("src/cnn/layers/activations.py", '    "Mish",\n', '    "LogSigmoid",\n'),
    (
        "src/cnn/layers/activations.py",
        "class SELU(Activation):",
        '''\
class LogSigmoid(Activation):
    """f(z) = -log(1 + exp(-z))."""

    function = "log_sigmoid"
    gain = None
    torch_name = "LogSigmoid"
    onnx = Onnx()
    c = (("clamp", "-{fabs}(v)"), ("t", "{exp}(t)"), ("v", "(v > {0.0} ? {0.0} : v) - {log1p}(t)"))
    c_derivatives = (("clamp", "x"), ("s", "{1.0} / ({1.0} + {exp}(t))"), ("c", "s * (s - {1.0})"))

    def onnx_formula(self, x):
        return -((-x).op("Max", 0.0) + (1.0 + (-abs(x)).op("Exp")).op("Log"))


''',
    ),
    (
        "tests/grid/activations.py",
        '    "selu": Activation(',
        """\
    "log_sigmoid": Activation(
        cnn.LogSigmoid,
        lambda z: -_softplus(-z),
        lambda z: sigmoid(-z),
        lambda z: -_dsigmoid(z),
        (-INF, 0),
        in_ulp=True,
    ),
""",
    ),
]
