"""Softsign: f(z) = z / (1 + |z|)."""

EDITS = [
    (
        "src/cnn/kernels/activation.pxi",
        "        X(IDENTITY, identity,",
        "        X(SOFTSIGN, softsign, INPUT, ##__VA_ARGS__)       \\\\\n",
    ),
    (
        "src/cnn/kernels/activation.pxi",
        "# ---- softplus:",
        """\
# ---- softsign: z / (1 + |z|); f' = s**2 with s = 1 / (1 + |z|), f'' = -2 s**3 for z > 0 and 2 s**3 for z < 0

cdef inline vf softsign_scale(vf z) noexcept nogil:
    return number(1) / (number(1) + vf_abs(z))


cdef inline vf softsign_value "softsign_value"(vf z, vf param) noexcept nogil:
    return vf_select_gt(vf_abs(z), number(1e30), vf_copysign(number(1), z), z * softsign_scale(z))


cdef inline vf softsign_backward "softsign_backward"(vf dy, bint from_input, vf saved, vf param) noexcept nogil:
    cdef vf s = softsign_scale(saved)
    return dy * s * s


cdef inline vf softsign_second "softsign_second"(bint from_input, vf saved, vf param) noexcept nogil:
    cdef vf s = softsign_scale(saved)
    return -vf_copysign(number(2) * s * s * s, saved)


""",
    ),
    ("src/cnn/layers/activations.py", '    "Tanh",\n]', '    "Softsign",\n'),
    (
        "src/cnn/layers/activations.py",
        "class Softplus(Activation):",
        '''\
class Softsign(Activation):
    """f(z) = z / (1 + abs(z))."""

    function = "softsign"
    gain = None
    torch_name = "Softsign"
    onnx = Onnx("Softsign", float64=False)
    c = (("v", "v / ({1.0} + {fabs}(v))"),)

    def onnx_formula(self, x):
        return x / (x.op("Abs") + 1.0)


''',
    ),
    (
        "tests/grid/activations.py",
        '    "softplus": Activation(',
        """\
    "softsign": Activation(
        cnn.Softsign,
        lambda z: z / (1 + np.abs(z)),
        lambda z: 1 / (1 + np.abs(z)) ** 2,
        lambda z: -2 * np.sign(z) / (1 + np.abs(z)) ** 3,
        (-1, 1),
        kinked=True,
        jax=lambda nn, z: nn.soft_sign(z),
    ),
""",
    ),
]
