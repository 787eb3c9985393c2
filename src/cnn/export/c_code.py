"""`Code`: writes one C function, statement by statement.

Products are sums of rows of W, written so that compilers vectorise them at -O2: W is (in, out), its rows are padded
with zeros to a multiple of GROUP numbers, and one pass over the sums adds ROWS rows. In the backward direction the sums
run along the rows of W, in LANES partial sums. For the same reason a file has its own exp and expm1, from which it
computes sigmoid, tanh and softmax: those of libm take one number at a time. Padding is finite, unless it overflows, and
no result depends on it; parameters that are an argument have none.

A layer writes its statements with the methods of `Code`: `_to_c` for the value, and for derivatives `_c_tangent`,
`_c_backward`, `_c_second` and, if it has parameters, `_c_gradient` (`Layer` documents each).
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from .graph import Node, graph_of

GROUP = 4  # numbers in the smallest vectors (SSE, NEON)
ROWS = 4  # of W that are added up before the sums are stored
LANES = 8  # partial sums of a sum along a row

EXP_PARTS = {
    "float": """\
/* exp(v) = power (1 + p), p returned, for v from LOW to HIGH: v = n log(2) + r, power = 2^n, p = exp(r) - 1 by a
 * polynomial (Cephes, expf.c). A NaN makes some n (C99, F.4) and comes out in p. No branch: it would keep compilers
 * from making vectors of the loops that call this. */
static inline float NAME_exp_parts(float v, float *power)
{
    const int n = (int)(v * 1.44269504f + copysignf(0.5f, v));
    const float r = v - (float)n * 0.693359375f + (float)n * 2.12194440e-4f;
    const float p = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r
                     + 1.6666665459e-1f) * r + 5.0000001201e-1f;
    union { uint32_t bits; float number; } two;
    two.bits = ((uint32_t)n + 127) << 23;
    *power = two.number;
    return p * r * r + r;
}
""",
    "double": """\
/* exp(v) = power (1 + p), p returned, for v from LOW to HIGH: v = n log(2) + r, power = 2^n, p = exp(r) - 1 by Taylor's
 * series to r^13, whose rest is 1e-17 of p. A NaN makes some n (C99, F.4) and comes out in p. No branch: it would keep
 * compilers from making vectors of the loops that call this. */
static inline double NAME_exp_parts(double v, double *power)
{
    const int n = (int)(v * 1.4426950408889634 + copysign(0.5, v));
    const double r = v - (double)n * 6.93147180369123816490e-01 - (double)n * 1.90821492927058770002e-10;
    const double s = r * r;
    const double p = (0.5 + r * 0.16666666666666666)
                   + s * ((0.041666666666666664 + r * 0.008333333333333333)
                   + s * ((0.001388888888888889 + r * 0.0001984126984126984)
                   + s * ((2.48015873015873e-05 + r * 2.7557319223985893e-06)
                   + s * ((2.755731922398589e-07 + r * 2.505210838544172e-08)
                   + s * (2.08767569878681e-09 + r * 1.6059043836821613e-10)))));
    union { uint64_t bits; double number; } two;
    two.bits = ((uint64_t)(uint32_t)n + 1023) << 52;
    *power = two.number;
    return p * s + r;
}
""",
}
EXPONENTIALS = {
    "exp": """\
static inline REAL NAME_exp(REAL v)
{
    REAL power;
    const REAL p = NAME_exp_parts(v, &power);
    return power + power * p;
}
""",
    "expm1": """\
static inline REAL NAME_expm1(REAL v)
{
    REAL power;
    const REAL p = NAME_exp_parts(v, &power);
    return power - ONE + power * p;
}
""",
}
LIMITS = {"float": (-87.3, 88.3), "double": (-708.0, 709.0)}  # where exp neither overflows nor becomes denormal


class File:
    """What the functions of one file have in common.

    Attributes
    ----------
    name : str
        The prefix of all names in the file.
    real : str
        The C type of the numbers; `dtype` is the NumPy type.
    argument : bool
        Whether the parameters are an argument, p, instead of constants.
    constants, functions : dict of str to str
        Definitions by name.
    """

    def __init__(self, name: str, model: Any, argument: bool = False, dtype: Any = None) -> None:
        self.name: str = name
        self.model: Any = model
        self.argument: bool = argument
        self.computation: Any = graph_of(model)
        self.dtype: np.dtype = np.dtype(dtype or model.dtype)
        self.double: bool = self.dtype == np.float64
        self.real, self.suffix = ("double", "") if self.double else ("float", "f")
        self.n_in: int = self.computation.widths[0]
        self.n_out: int = self.computation.widths[self.computation.output]
        self.constants: dict[str, str] = {}
        self.constant_bytes = 0
        self.functions: dict[str, str] = {}
        self.offsets: dict[str, int] = {}  # of the parameters in p, by their names in state_dict
        self.n_parameters: int = 0
        for _, place in model._core.graph.parameters():
            for parameter, shape in place.layer.parameter_shapes().items():
                self.offsets[f"{place.key}.{parameter}"] = self.n_parameters
                self.n_parameters += math.prod(shape)

    def padded(self, n: int) -> int:
        """The size of an array of n numbers with its padding."""
        return n if self.argument else math.ceil(n / GROUP) * GROUP

    def number(self, value: float) -> str:
        """A C constant that a compiler reads as exactly this number."""
        text = repr(float(value)) if self.double else str(np.float32(value))
        return f"{text}{self.suffix}"


class Code:
    """A C function that is being written: its local arrays and the statements of its body.

    Attributes
    ----------
    real : str
        The C type of the numbers.
    sources : list of str
        The arrays that the current layer reads; `source_widths` has their sizes.
    target : str
        The array that it writes, `width` numbers. In the function of the value it may be one of the sources, unless
        the op is in NOT_IN_PLACE.
    arrays : dict of str to int
        The function's arrays and their sizes.
    """

    node: Node
    sources: list[str]
    source_widths: list[int]
    target: str
    width: int

    def __init__(self, file: File) -> None:
        self.file = file
        self.real, self.number = file.real, file.number
        self.arrays: dict[str, int] = {}
        self.views: dict[str, str] = {}  # declarations of parameters in p, and of their gradients in dp
        self.body: list[str] = []
        self.depth = 1  # of the statements in blocks
        self.written: set[str] = set()  # adjoints that have been assigned
        self.adjoint = "g"  # their names begin with it: "e" when they are tangents of adjoints
        self.wanted: set[int] = set()  # values whose adjoints are needed

    def at(self, node: Node, place: dict[int, str]) -> None:
        """Make a layer the current one; `place` has the array of each value."""
        widths = self.file.computation.widths
        self.write("", f"/* {node.where} */")
        self.node = node
        self.sources, self.source_widths = [place[s] for s in node.sources], [widths[s] for s in node.sources]
        self.target, self.width = place[node.target], widths[node.target]

    # constants and functions ------------------------------------------------------------------------------------------

    def constant(self, what: str, array: Any) -> str:
        """Add a static array of the layer, its rows padded with zeros, and return its name."""
        file = self.file
        name = f"{file.name}_{what}_{self.node.key.replace('.', '_')}"
        if name in file.constants:
            return name
        array = np.asarray(array, file.dtype)
        if not np.isfinite(array).all():
            raise ValueError(f"{self.node.where}: {what}: expected finite numbers, got NaN or infinity")
        rows = np.atleast_2d(array)
        padded = np.zeros((len(rows), file.padded(rows.shape[1])), file.dtype)
        padded[:, : rows.shape[1]] = rows
        file.constant_bytes += padded.nbytes
        shape = "".join(f"[{n}]" for n in padded.shape[2 - array.ndim :])
        lines = []
        for row in padded:
            cells = [self.number(value) for value in row]
            text = ",\n".join("    " + ", ".join(cells[i : i + 6]) for i in range(0, len(cells), 6))
            lines.append(f"{{\n{text}\n}}" if array.ndim == 2 else text)
        file.constants[name] = f"static const {self.real} {name}{shape} = {{\n" + ",\n".join(lines) + "\n};\n\n"
        return name

    def parameter(self, name: str) -> str:
        """The array of a parameter of the layer: a constant, or a part of p."""
        if not self.file.argument:
            return self.constant(name, getattr(self.node.layer, name))
        return self._view(f"{name}_{self.node.key.replace('.', '_')}", name, f"const {self.real}", "p")

    def gradient(self, name: str) -> str:
        """The array to which the gradient of a parameter of the layer is added: a part of dp."""
        return self._view(f"d{name}_{self.node.key.replace('.', '_')}", name, self.real, "dp")

    def _view(self, view: str, name: str, real: str, block: str) -> str:
        layer: Any = self.node.layer
        columns = "".join(f"[{n}]" for n in layer.parameter_shapes()[name][1:])
        start = f"{block} + {self.file.offsets[f'{self.node.key}.{name}']}"
        declared = (
            f"(*const {view}){columns} = ({real} (*){columns})({start})" if columns else f"*const {view} = {start}"
        )
        self.views[view] = f"    {real} {declared};\n"
        return view

    def function(self, name: str) -> str:
        """The name of a function for the type of the file; adds its definition if it is not one of libm."""
        file = self.file
        if name not in EXPONENTIALS:
            return name + file.suffix
        for needed, text in (("exp_parts", EXP_PARTS[file.real]), (name, EXPONENTIALS[name])):
            text = text.replace("NAME", file.name).replace("REAL", file.real).replace("ONE", self.number(1.0))
            file.functions.setdefault(needed, text)
        return f"{file.name}_{name}"

    # statements -------------------------------------------------------------------------------------------------------

    def write(self, *lines: str) -> None:
        """Add lines, indented to the depth of their block."""
        self.body += [f"{'    ' * self.depth}{line}".rstrip() for text in lines for line in text.split("\n")]

    def open(self, line: str) -> None:
        """Begin a block."""
        self.write(f"{line} {{" if line else "{")
        self.depth += 1

    def close(self) -> None:
        """End a block."""
        self.depth -= 1
        self.write("}")

    def loop(self, n: int, statement: str) -> None:
        """A statement for j from 0 to n - 1."""
        self.write(f"for (j = 0; j < {n}; j++)", f"    {statement}")

    def assign(self, formula: str, target: str = "", sign: str = "=") -> None:
        """A loop that assigns a formula of arrays, at [j], to the target, or to another array of its width."""
        self.loop(self.file.padded(self.width), f"{target or self.target}[j] {sign} {formula};")

    def copy(self, source: str, target: str, n: int, room: int) -> None:
        """Copy n numbers, and fill up to `room` with zeros."""
        if source != target:
            self.loop(n, f"{target}[j] = {source}[j];")
        for j in range(n, room):
            self.write(f"{target}[{j}] = {self.number(0.0)};")

    def clear_padding(self, used: int, target: str = "") -> None:
        """Set all but the first `used` numbers of the target, or of another array of its width, to zero."""
        self.copy(target or self.target, target or self.target, used, self.file.padded(self.width))

    def begin(self) -> None:
        """Copy the source to the target, which the next steps change, if they are two arrays."""
        n = self.file.padded(self.width)
        self.copy(self.sources[0], self.target, n, n)

    def step(self, to: str, formula: str, param: float = 0.0, v: str = "", **arrays: str) -> None:
        """A loop over the numbers v of the target, or of the array `v`, and over the temporary array t.

        Parameters
        ----------
        to : str
            Where the value is assigned: "v", the target; "t"; one of `arrays`; or "clamp": t, clipped to the range of
            exp.
        formula : str
            In C; numbers and functions in braces are written for the type, {a} is `param`.
        **arrays : str
            Further arrays, by their names in the formula.
        """
        arrays |= {"v": v or self.target, "t": "t"}
        formula = re.sub(rf"\b([{''.join(arrays)}])\b(?!\()", lambda match: f"{arrays[match[1]]}[j]", formula)
        formula = re.sub(r"\{([^{}\s]+)\}", lambda match: self._filled(match[1], param), formula)
        n = self.file.padded(self.width)
        if to in ("t", "clamp"):
            self.arrays["t"] = max(n, self.arrays.get("t", 0))
        if to != "clamp":
            self.loop(n, f"{self.target if to == 'v' else arrays.get(to, 't')}[j] = {formula};")
            return
        low, high = map(self.number, LIMITS[self.real])
        self.open(f"for (j = 0; j < {n}; j++)")
        self.write(
            f"const {self.real} a = {formula}, b = a < {low} ? {low} : a;",
            f"t[j] = b > {high} ? {high} : b;",
        )
        self.close()

    def _filled(self, word: str, param: float) -> str:
        if word == "a":
            return self.number(param)
        return self.function(word) if word.isidentifier() else self.number(float(word))

    # products ---------------------------------------------------------------------------------------------------------

    def product(self, x: str, y: str, weight: str, n_in: int, bias: str | None) -> None:
        """y = x W + bias; W has n_in rows."""
        n = self.file.padded(self.width)
        self.loop(n, f"{y}[j] = {bias}[j];" if bias else f"{y}[j] = {self.number(0.0)};")
        grouped = n_in - n_in % ROWS
        if grouped:
            self.write(
                f"for (i = 0; i < {grouped}; i += {ROWS})",
                f"    for (j = 0; j < {n}; j++)",
                f"        {y}[j] += {_terms(x, weight, 'i', ROWS)};",
            )
        if grouped < n_in:
            self.loop(n, f"{y}[j] += {_terms(x, weight, grouped, n_in - grouped)};")

    def product_back(self, g: str, weight: str, n_in: int) -> None:
        """Add g W^T to the adjoint of the source; W has n_in rows."""
        if (sent := self.sent(0)) is None:
            return
        to, sign = sent
        n = self.file.padded(self.width)
        whole = n - n % LANES
        rest = [f"{weight}[i][{j}] * {g}[{j}]" for j in range(whole, n)]
        self.open(f"for (i = 0; i < {n_in}; i++)")
        if whole:
            zeros = ", ".join(LANES * [self.number(0.0)])
            lanes = [f"s[{k}]" for k in range(LANES)]
            self.write(
                f"{self.real} s[{LANES}] = {{{zeros}}};",
                f"for (j = 0; j < {whole}; j += {LANES})",
                f"    for (k = 0; k < {LANES}; k++)",
                f"        s[k] += {weight}[i][j + k] * {g}[j + k];",
            )
            while len(lanes) > 1:
                lanes = [f"({a} + {b})" for a, b in zip(lanes[::2], lanes[1::2], strict=True)]
            rest.insert(0, lanes[0][1:-1])
        self.write(f"{to}[i] {sign} " + "\n    + ".join(rest) + ";")
        self.close()
        self.copy(to, to, n_in, self.file.padded(n_in))

    def outer(self, gradient: str, n_in: int, g: str) -> None:
        """Add x^T g to the gradient of a weight of n_in rows."""
        self.write(
            f"for (i = 0; i < {n_in}; i++)",
            f"    for (j = 0; j < {self.width}; j++)",
            f"        {gradient}[i][j] += {self.sources[0]}[i] * {g}[j];",
        )

    # derivatives ------------------------------------------------------------------------------------------------------

    def local(self, kind: str, value: int) -> str:
        """The array of a kind for a value: v the value itself, d its tangent, g its adjoint, e the adjoint's tangent; s
        and c: the first and second derivatives of an activation."""
        name = f"{kind}{value}"
        self.arrays[name] = self.file.padded(self.file.computation.widths[value])
        return name

    def sent(self, i: int) -> tuple[str, str] | None:
        """The array of the adjoint of source i, and "=", or "+=" if it has been assigned; None if it is not needed."""
        value = self.node.sources[i]
        if value not in self.wanted:
            return None
        name = self.local(self.adjoint, value)
        sign = "+=" if name in self.written else "="
        self.written.add(name)
        return name, sign

    def send(self, i: int, formula: str, exact: bool = False) -> None:
        """Add a formula of arrays, at [j], to the adjoint of source i; exact: they have no padding."""
        if (sent := self.sent(i)) is None:
            return
        to, sign = sent
        room = self.file.padded(self.source_widths[i])
        n = self.source_widths[i] if exact else room
        self.loop(n, f"{to}[j] {sign} {formula};")
        self.copy(to, to, n, room)

    def send_to_columns(self, i: int, start: int, g: str) -> None:
        """Add g to the columns of the adjoint of source i from `start` on."""
        if (sent := self.sent(i)) is None:
            return
        to, sign = sent
        if sign == "=":
            self.loop(self.file.padded(self.source_widths[i]), f"{to}[j] = {self.number(0.0)};")
        self.loop(self.width, f"{to}[{start} + j] += {g}[j];")

    def sums(self, **formulas: str) -> None:
        """Local variables, each the sum over the features of a formula of arrays at [j]."""
        for name, formula in formulas.items():
            self.write(f"{self.real} {name} = {self.number(0.0)};")
            self.loop(self.width, f"{name} += {formula};")

    def means(self, **formulas: str) -> None:
        """As `sums`, divided by the number of features."""
        for name, formula in formulas.items():
            self.sums(**{name: formula})
            self.write(f"{name} /= {self.number(self.width)};")


def _terms(x: str, weight: str, first: int | str, count: int) -> str:
    """x[i] * W[i][j] + x[i + 1] * W[i + 1][j] + ..."""
    rows = [str(first) if k == 0 else f"{first} + {k}" if first == "i" else str(int(first) + k) for k in range(count)]
    return "\n            + ".join(f"{x}[{row}] * {weight}[{row}][j]" for row in rows)
