"""Square: y = x**2, element by element; an op of its own, not an activation."""

EDITS = [
    ("src/cnn/_kernels.pyx", 'include "kernels/ops/softmax.pxi"', 'include "kernels/ops/square.pxi"\n'),
    ("src/cnn/__init__.py", "from .layers.softmax import *", "from .layers.square import *\n"),
    ("src/cnn/layers/__init__.py", "from .softmax import *", "from .square import *\n"),
    ("src/cnn/layers/__init__.py", "from . import activations, branches,", "from . import square\n"),
    ("src/cnn/layers/__init__.py", "__all__ += softmax.__all__", "__all__ += square.__all__\n"),
    (
        "tests/grid/layers.py",
        "class Dropout(Node):",
        """\
class Square(Node):
    def forward(self, x, training):
        self.x = x
        return x**2

    def backward(self, g):
        return 2 * g * self.x


""",
    ),
    (
        "tests/grid/layers.py",
        '    "dropout": Layer(',
        '    "square": Layer((cnn.Square,), lambda n, dtype: cnn.Square(), Square),\n',
    ),
]
FILES = {
    "src/cnn/layers/square.py": '''\
"""`Square`."""

from .base import Layer

__all__ = ["Square"]


class Square(Layer):
    """y = x**2, element by element."""

    op = "square"
    torch_name = None

    def _to_onnx(self, graph, x):
        return x * x

    def _to_c(self, code):
        code.begin()
        code.step("v", "v * v")

    def _c_tangent(self, code, dx, dy):
        code.assign(f"{code.number(2.0)} * {code.sources[0]}[j] * {dx[0]}[j]", dy)

    def _c_backward(self, code, g):
        code.send(0, f"{code.number(2.0)} * {code.sources[0]}[j] * {g}[j]")

    def _c_second(self, code, dx, g):
        code.send(0, f"{code.number(2.0)} * {dx[0]}[j] * {g}[j]")
''',
    "src/cnn/kernels/ops/square.pxi": '''\
# Square: y = x**2, element by element. x, y (batch, n).

cdef void scaled_products(Py_ssize_t batch, Py_ssize_t n, real scale, const real* a, Py_ssize_t a_row, const real* b,
                          Py_ssize_t b_row, real* y, Py_ssize_t y_row) noexcept nogil:
    """scale a b."""
    cdef Py_ssize_t i, j
    for i in range(batch):
        for j from 0 <= j < n by VL:
            vf_store(y + i * y_row + j, vf_set(scale) * vf_load(a + i * a_row + j) * vf_load(b + i * b_row + j))


cdef void square_forward(const Chunk* c, const Op* op) noexcept nogil:
    scaled_products(c.batch, op.n_out, 1, source(c, op.src), source_row(c, op.src), source(c, op.src),
                    source_row(c, op.src), output(c, op), row_size(c, op))


cdef void square_backward(const Chunk* c, const Op* op) noexcept nogil:
    if wants_gradient(c, op.src):
        scaled_products(c.batch, op.n_out, 2, output_gradient(c, op), row_size(c, op), source(c, op.src),
                        source_row(c, op.src), gradient_room(c, op), c.net.buffers[op.src].row)
        gradient_done(c, op)


cdef void square_tangent(const Chunk* c, const Op* op) noexcept nogil:
    """y' = 2 x x'."""
    scaled_products(c.batch, op.n_out, 2, row_of(c.t.value, c.net, op.src, c.first), c.net.buffers[op.src].row,
                    source(c, op.src), source_row(c, op.src), row_of(c.t.value, c.net, op.dst, c.first),
                    row_size(c, op))


cdef void square_second(const Chunk* c, const Op* op) noexcept nogil:
    """The gradient g becomes 2 g x, its tangent g' becomes 2 (g' x + g x'): in place."""
    cdef Py_ssize_t i, j, row = row_size(c, op), x_row = source_row(c, op.src), t_row = c.net.buffers[op.src].row
    cdef const real* x = source(c, op.src)
    cdef const real* x_t = row_of(c.t.value, c.net, op.src, c.first)
    cdef real* g = output_gradient(c, op)
    cdef real* g_t = row_of(c.t.grad, c.net, op.dst, c.first)
    cdef vf two = vf_set(2), product
    for i in range(c.batch):
        for j from 0 <= j < op.n_out by VL:
            product = vf_load(g_t + i * row + j) * vf_load(x + i * x_row + j)
            vf_store(g_t + i * row + j,
                     two * vf_fma(vf_load(g + i * row + j), vf_load(x_t + i * t_row + j), product))
            vf_store(g + i * row + j, two * vf_load(g + i * row + j) * vf_load(x + i * x_row + j))
    pass_gradients_on(c, op)


cdef void square_slopes(const Chunk* c, Py_ssize_t n, const real* x) noexcept nogil:
    """f' = 2 x, f'' = 2, f\'\'\' = 0."""
    cdef Py_ssize_t j
    for j from 0 <= j < n by VL:
        vf_store(c.jets.slopes + j, number(2) * vf_load(x + j))
        vf_store(c.jets.slopes + n + j, vf_set(2))
        vf_store(c.jets.slopes + 2 * n + j, vf_set(0))


cdef void square_jet(const Chunk* c, const Op* op) noexcept nogil:
    cdef Py_ssize_t row = row_size(c, op), n = round_up(op.n_out, VL), i
    cdef const real* x = c.ws.value[op.src]
    cdef real* y = c.ws.value[op.dst]
    scaled_products(c.batch, op.n_out, 1, x, row, x, row, y, row)
    for i in range(c.batch):
        square_slopes(c, n, x + i * row)
        sloped_jet(c.jets, n, c.batch * row, x + i * row, y + i * row)


cdef void square_jet_backward(const Chunk* c, const Op* op) noexcept nogil:
    """In place, as `square_second`."""
    cdef Py_ssize_t row = row_size(c, op), n = round_up(op.n_out, VL), i
    cdef const real* x = c.ws.value[op.src]
    cdef real* g = c.ws.grad[op.dst]
    for i in range(c.batch):
        square_slopes(c, n, x + i * row)
        sloped_jet_backward(c.jets, n, c.batch * row, x + i * row, g + i * row)
    add_rows(c.jets.parts * c.batch, n, g, row, op.adds[0], c.ws.grad[op.src], row)


cdef OpMethods SQUARE = plain_op("square")
SQUARE.forward = square_forward
SQUARE.backward = square_backward
SQUARE.tangent = square_tangent
SQUARE.second = square_second
SQUARE.jet = square_jet
SQUARE.jet_backward = square_jet_backward
define(&SQUARE)
''',
}
