"""`to_c`: a model as one C99 header without dependencies.

The products are sums of rows of W, written so that compilers make vectors of them at -O2: W as (in, out), its rows
padded with zeros to whole groups of GROUP numbers, ROWS rows in one pass over the sums. For the same reason float32
headers bring their own exp and expm1, from which sigmoid, tanh and softmax are made: libm's take one number at a time.
What is in the padding is finite, unless it overflows, and never read into a result.
"""

from __future__ import annotations

import math
import os
import re
from typing import Any

import numpy as np

from .._about import __version__
from ..files.atomic_write import replace
from .graph import Graph, Node, graph_of

GROUP = 4  # numbers in the smallest vectors (SSE, NEON)
ROWS = 4  # of W that are added up before the sums are stored

# What a header may not be called: words of C and C++, and what <math.h> and <stdint.h> declare.
KEYWORDS = """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl const constexpr continue
    decltype default delete do double else enum explicit export extern false float for friend goto if inline int long
    main mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public register restrict
    return short signed sizeof static struct switch template this throw true try typedef typeid typename union unsigned
    using virtual void volatile wchar_t while xor xor_eq
""".split()  # noqa: SIM905
LIBM = """
    acos asin atan atan2 cos sin tan acosh asinh atanh cosh sinh tanh exp exp2 expm1 frexp ilogb ldexp log log10 log1p
    log2 logb modf scalbn scalbln cbrt fabs hypot pow sqrt erf erfc lgamma tgamma ceil floor nearbyint rint lrint llrint
    round lround llround trunc fmod remainder remquo copysign nan nextafter nexttoward fdim fmax fmin fma j0 j1 jn y0 y1
    yn gamma drem significand scalb exp10 pow10 signgam isnan isinf isfinite isnormal signbit fpclassify isgreater
    isless isunordered INFINITY NAN HUGE_VAL
""".split()  # noqa: SIM905

FLOAT_FUNCTIONS = {
    "exp_parts": """\
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
    "exp": """\
static inline float NAME_exp(float v)
{
    float power;
    const float p = NAME_exp_parts(v, &power);
    return power + power * p;
}
""",
    "expm1": """\
static inline float NAME_expm1(float v)
{
    float power;
    const float p = NAME_exp_parts(v, &power);
    return power - 1.0f + power * p;
}
""",
}
LOW, HIGH = -87.3, 88.3  # where float32's exp neither overflows nor becomes denormal

# Activations: what happens to each number v, loop after loop; t is a second array. Numbers and functions in braces get
# the form of the type, {a} is the parameter; "clamp" keeps t in the range of float32's exp. A choice between v and a
# computed number stands in a loop of its own: GCC makes a branch of it otherwise, and no vectors.
ACTIVATIONS: dict[str, list[tuple[str, str]]] = {
    "relu": [("v", "v < {0.0} ? {0.0} : v")],
    "leaky_relu": [("t", "v * {a}"), ("v", "v > {0.0} ? v : t")],
    "elu": [("clamp", "v > {0.0} ? {0.0} : v"), ("t", "{a} * {expm1}(t)"), ("v", "v > {0.0} ? v : t")],
    "sigmoid": [("clamp", "-v"), ("v", "{1.0} / ({1.0} + {exp}(t))")],
    "tanh": [
        ("clamp", "{-2.0} * {fabs}(v)"),
        ("t", "{expm1}(t)"),
        ("v", "{copysign}(t / ({-2.0} - t), v)"),
    ],
    "gelu": [("v", "{0.5} * v * {erfc}(v * {-0.7071067811865476})")],
    "gelu_tanh": [
        ("clamp", "v * ({-1.5957691216057308} - {0.07135481627260025} * v * v)"),
        ("v", "v / ({1.0} + {exp}(t))"),
    ],
    "silu": [("clamp", "-v"), ("v", "v / ({1.0} + {exp}(t))")],
    "softplus": [
        ("clamp", "-{fabs}(v)"),
        ("t", "{exp}(t)"),
        ("v", "(v < {0.0} ? {0.0} : v) + {log1p}(t)"),
    ],
}


def to_c(model, path, name: str | None = None) -> None:
    """Write a model as a C99 header with one function, `void NAME(const float *x, float *y)`.

    The function computes what `predict` computes for one row: y are the outputs of the last layer, without the loss.
    A float64 model has double in place of float. The header holds the weights, needs nothing but libm, allocates
    nothing, and may be called from several threads at once; x and y may be the same array. Its first lines say how
    much stack it takes.

    Parameters
    ----------
    model : Sequential
    path : str or path
        The file, as "policy.h".
    name : str, optional
        Of the function; None: the file's stem. A C identifier; everything else in the header begins with it.

    Raises
    ------
    ValueError
        If the name is no identifier, or one that C or libm has taken; if a parameter is infinite or NaN, naming its
        layer.
    TypeError
        If model is no Sequential.
    OSError
        If the file cannot be written.

    Notes
    -----
    Results agree with `predict` to rounding errors: sums run in another order. Compilers make vectors of the loops
    from -O2 on; -O3 -march=native takes those of the machine.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> model = Sequential([Linear(2, 3), Tanh(), Linear(3, 1)], seed=0)
    >>> path = pathlib.Path(tempfile.mkdtemp(), "policy.h")
    >>> to_c(model, path)
    >>> "void policy(const float *x, float *y)" in path.read_text()
    True
    """
    if name is None:
        name = os.path.splitext(os.path.basename(os.fspath(path)))[0]
    _check_name(name)
    replace(path, [_Header(name, model).text().encode()])


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name: expected a str, got {name!r}")
    taken = {*KEYWORDS, *LIBM, *(f"{function}{suffix}" for function in LIBM for suffix in "fl")}
    if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name):
        raise ValueError(f"name: expected a C identifier that begins with a letter, got {name!r}")
    if name in taken or name.endswith("_t"):
        raise ValueError(f"name: {name!r} is taken by C or its library; pass another name")


class _Header:
    """One header while it is being written: constants, functions and the statements of the body."""

    def __init__(self, name: str, model: Any) -> None:
        self.name = name
        self.model = model
        self.graph: Graph = graph_of(model)
        self.double = model.dtype == np.float64
        self.real = "double" if self.double else "float"
        self.suffix = "" if self.double else "f"
        self.constants: list[str] = []
        self.constant_bytes = 0
        self.functions: dict[str, str] = {}
        self.body: list[str] = []
        self.slots: list[int] = []  # elements of each local array
        self.temporary = 0  # and of the array t
        self.place: dict[int, str] = {}  # value -> the array that holds it

    def text(self) -> str:
        nodes, widths, output = self.graph
        self._allot()
        if self.place.get(0) != "x":
            self._copy("x", self.place[0], widths[0], _padded(widths[0]))
        for node in nodes:
            self.body.append(f"\n    /* {node.where} */")
            getattr(self, f"_{node.kind}")(node)
        self.body.append("")
        self._copy(self.place[output], "y", widths[output], widths[output])
        return self._assembled()

    def _assembled(self) -> str:
        name, real = self.name, self.real
        n_in, n_out = self.graph.widths[0], self.graph.widths[self.graph.output]
        sizes = {f"h{i}": size for i, size in enumerate(self.slots)} | ({"t": self.temporary} if self.temporary else {})
        stack = sum(sizes.values()) * self.model.dtype.itemsize
        arrays = "".join(f"    {real} {array}[{size}];\n" for array, size in sizes.items())
        counters = [c for c in "ij" if re.search(rf"\bfor \({c} =", "\n".join(self.body))]
        return f"""\
/* void {name}(const {real} *x, {real} *y): a neural network, written by cnn {__version__}.
 *
 * x: {n_in} numbers, y: {n_out} numbers; they may be the same array.
 * Needs nothing but libm (link with -lm). Allocates nothing and keeps no state: any number of threads may call it.
 * Takes {stack:,} bytes of stack for its arrays, and {self.constant_bytes:,} bytes of constants.
 */
#ifndef CNN_{name}_H
#define CNN_{name}_H

#include <math.h>
#include <stdint.h>

{"".join(self.constants)}{"".join(text + chr(10) for text in self.functions.values())}\
static inline void {name}(const {real} *x, {real} *y)
{{
{arrays}    int {", ".join(counters)};
{chr(10).join(self.body)}
}}

#endif
"""

    # where values lie -------------------------------------------------------------------------------------------------

    def _allot(self) -> None:
        """Give each value an array; one is used again when nobody reads its value any more."""
        nodes, widths, output = self.graph
        last = {value: i for i, node in enumerate(nodes) for value in node.sources}
        last[output] = len(nodes)
        owner: dict[int, int] = {}
        free: list[int] = []

        def take(value: int) -> None:
            slot = free.pop() if free else len(self.slots)
            if slot == len(self.slots):
                self.slots.append(0)
            self.slots[slot] = max(self.slots[slot], _padded(widths[value]))
            owner[value] = slot
            self.place[value] = f"h{slot}"

        if all(node.kind == "linear" for node in nodes if 0 in node.sources) and output != 0:
            self.place[0] = "x"  # read number by number where it lies
        else:
            take(0)
        for i, node in enumerate(nodes):
            ended = [value for value in set(node.sources) if last[value] == i and value in owner]
            if node.kind not in ("linear", "concat"):  # may work in place
                free += [owner.pop(value) for value in ended]
            take(node.target)
            free += [owner.pop(value) for value in ended if value in owner]

    # pieces of C ------------------------------------------------------------------------------------------------------

    def _number(self, value: float) -> str:
        """A constant that is read back as the same number."""
        text = repr(float(value)) if self.double else str(np.float32(value))
        return f"{text}{self.suffix}"

    def _constant(self, node: Node, what: str, array: Any) -> str:
        """A static array of a parameter, its rows padded with zeros; its name."""
        array = np.asarray(array, self.model.dtype)
        if not np.isfinite(array).all():
            raise ValueError(f"{node.where}: {what} has infinite numbers or NaN")
        rows = np.atleast_2d(array)
        padded = np.zeros((len(rows), _padded(rows.shape[1])), self.model.dtype)
        padded[:, : rows.shape[1]] = rows
        self.constant_bytes += padded.nbytes
        name = f"{self.name}_{what}_{node.key.replace('.', '_')}"
        shape = "".join(f"[{n}]" for n in padded.shape[2 - array.ndim :])
        lines = []
        for row in padded:
            cells = [self._number(value) for value in row]
            text = ",\n".join("    " + ", ".join(cells[i : i + 6]) for i in range(0, len(cells), 6))
            lines.append(f"{{\n{text}\n}}" if array.ndim == 2 else text)
        self.constants.append(f"static const {self.real} {name}{shape} = {{\n" + ",\n".join(lines) + "\n};\n\n")
        return name

    def _function(self, name: str) -> str:
        """What a function of float or double is called here; its definition is added where it is not libm's."""
        if self.double or name not in FLOAT_FUNCTIONS:
            return name + self.suffix
        for needed in ("exp_parts", name):
            self.functions.setdefault(needed, FLOAT_FUNCTIONS[needed].replace("NAME", self.name))
        return f"{self.name}_{name}"

    def _filled(self, template: str, param: float = 0.0) -> str:
        """A template with its numbers and functions."""

        def fill(match: re.Match) -> str:
            word = match[1]
            if word == "a":
                return self._number(param)
            return self._function(word) if word.isidentifier() else self._number(float(word))

        return re.sub(r"\{([^{}\s]+)\}", fill, template)

    def _loop(self, n: int, statement: str, variable: str = "j") -> None:
        self.body.append(f"    for ({variable} = 0; {variable} < {n}; {variable}++)\n        {statement}")

    def _copy(self, source: str, target: str, n: int, room: int) -> None:
        if source != target:
            self._loop(n, f"{target}[j] = {source}[j];")
        for j in range(n, room):
            self.body.append(f"    {target}[{j}] = {self._number(0.0)};")

    # layers -----------------------------------------------------------------------------------------------------------

    def _linear(self, node: Node) -> None:
        layer = node.layer
        weight = self._constant(node, "weight", layer.weight)
        x, y = self.place[node.sources[0]], self.place[node.target]
        n_in, n = layer.in_features, _padded(layer.out_features)
        start = f"{self._constant(node, 'bias', layer.bias)}[j]" if layer.has_bias else self._number(0.0)
        self._loop(n, f"{y}[j] = {start};")
        whole = n_in - n_in % ROWS
        if whole:
            self.body.append(
                f"    for (i = 0; i < {whole}; i += {ROWS})\n"
                f"        for (j = 0; j < {n}; j++)\n"
                f"            {y}[j] += {_terms(x, weight, 'i', ROWS)};"
            )
        if whole < n_in:
            self._loop(n, f"{y}[j] += {_terms(x, weight, whole, n_in - whole)};")

    def _activation(self, node: Node) -> None:
        v, n = self._in_place(node)
        for target, formula in ACTIVATIONS[node.function]:
            self._step(n, v, target, self._filled(formula, node.param))

    def _softmax(self, node: Node) -> None:
        self._exponentials(node, "v", "v / s")

    def _log_softmax(self, node: Node) -> None:
        self._exponentials(node, "t", f"v - m - log{self.suffix}(s)")

    def _exponentials(self, node: Node, target: str, formula: str) -> None:
        """m, the largest number, exp(v - m) in `target`, s, their sum, and with these a formula for v."""
        v, n = self._in_place(node)
        width = self.graph.widths[node.target]
        self.body.append(f"    {{\n    {self.real} m = {v}[0], s = {self._number(0.0)};")
        self._loop(width, f"m = {v}[j] > m ? {v}[j] : m;")
        self._step(n, v, "clamp", "v - m")
        self._step(n, v, target, self._filled("{exp}(t)"))
        self._loop(width, f"s += {v if target == 'v' else 't'}[j];")
        self._step(n, v, "v", formula)
        self.body.append("    }")

    def _batch_norm(self, node: Node) -> None:
        layer = node.layer
        mean, deviation = layer.running_mean, np.sqrt(np.asarray(layer.running_var, np.float64) + layer.eps)
        scale = 1 / deviation if layer.weight is None else layer.weight / deviation
        v, n = self._in_place(node)
        bias = "" if layer.bias is None else f" + {self._constant(node, 'bias', layer.bias)}[j]"
        mean, scale = self._constant(node, "mean", mean), self._constant(node, "scale", scale)
        self._step(n, v, "v", f"(v - {mean}[j]) * {scale}[j]{bias}")

    def _layer_norm(self, node: Node) -> None:
        layer, width = node.layer, self.graph.widths[node.target]
        v, n = self._in_place(node)
        scale = "" if layer.weight is None else f" * {self._constant(node, 'weight', layer.weight)}[j]"
        bias = "" if layer.bias is None else f" + {self._constant(node, 'bias', layer.bias)}[j]"
        zero, columns = self._number(0.0), self._number(width)
        self.body.append(f"    {{\n    {self.real} m = {zero}, s = {zero};")
        self._loop(width, f"m += {v}[j];")
        self.body.append(f"    m /= {columns};")
        self._loop(width, f"s += ({v}[j] - m) * ({v}[j] - m);")
        self.body.append(f"    s = {self._number(1.0)} / sqrt{self.suffix}(s / {columns} + {self._number(layer.eps)});")
        self._step(n, v, "v", f"(v - m) * s{scale}{bias}")
        self.body.append("    }")

    def _add(self, node: Node) -> None:
        self._elementwise(node, " + ")

    def _multiply(self, node: Node) -> None:
        self._elementwise(node, " * ")

    def _elementwise(self, node: Node, sign: str) -> None:
        y, n = self.place[node.target], _padded(self.graph.widths[node.target])
        self._loop(n, f"{y}[j] = {sign.join(f'{self.place[source]}[j]' for source in node.sources)};")

    def _maximum(self, node: Node) -> None:
        """NaN wins. In t, as the result may lie where a source is."""
        y, n = self.place[node.target], _padded(self.graph.widths[node.target])
        first, *others = (self.place[source] for source in node.sources)
        self._step(n, first, "t", "v")
        for other in others:
            self._step(n, other, "t", "((v < t) | (t != t)) ? t : v")
        self._step(n, y, "v", "t")

    def _concat(self, node: Node) -> None:
        y, at = self.place[node.target], 0
        for source in node.sources:
            width = self.graph.widths[source]
            self._loop(width, f"{y}[{at} + j] = {self.place[source]}[j];")
            at += width
        self._copy(y, y, at, _padded(at))

    def _in_place(self, node: Node) -> tuple[str, int]:
        """The array of a node's result, which holds a copy of its source, and its padded width."""
        x, y = self.place[node.sources[0]], self.place[node.target]
        n = _padded(self.graph.widths[node.target])
        self._copy(x, y, n, n)
        return y, n

    def _step(self, n: int, v: str, target: str, formula: str) -> None:
        """One loop over the numbers of array v and, beside it, t."""
        formula = re.sub(r"\b([vt])\b(?!\()", lambda match: f"{v if match[1] == 'v' else 't'}[j]", formula)
        if target != "v" and n > self.temporary:
            self.temporary = n
        if target != "clamp" or self.double:
            self._loop(n, f"{v if target == 'v' else 't'}[j] = {formula};")
            return
        low, high = self._number(LOW), self._number(HIGH)
        self.body.append(
            f"    for (j = 0; j < {n}; j++) {{\n"
            f"        const float a = {formula}, b = a < {low} ? {low} : a;\n"
            f"        t[j] = b > {high} ? {high} : b;\n"
            "    }"
        )


def _padded(n: int) -> int:
    return math.ceil(n / GROUP) * GROUP


def _terms(x: str, weight: str, first: int | str, count: int) -> str:
    """x[i] * W[i][j] + x[i + 1] * W[i + 1][j] + ..."""
    rows = [str(first) if k == 0 else f"{first} + {k}" if first == "i" else str(int(first) + k) for k in range(count)]
    return "\n                + ".join(f"{x}[{row}] * {weight}[{row}][j]" for row in rows)


__all__ = ["to_c"]
