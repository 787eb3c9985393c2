"""`to_c`: a model as one C99 header without dependencies.

The products are sums of rows of W, written so that compilers make vectors of them at -O2: W as (in, out), its rows
padded with zeros to whole groups of GROUP numbers, ROWS rows in one pass over the sums. For the same reason float32
headers bring their own exp and expm1, from which sigmoid, tanh and softmax are made: libm's take one number at a time.
What is in the padding is finite, unless it overflows, and never read into a result.

Each layer says what its statements are (`Layer._to_c`), by the methods of `Code`.
"""

from __future__ import annotations

import math
import os
import re
from typing import Any

import numpy as np

from .._about import __version__
from ..files.atomic_write import replace
from .graph import Computation, graph_of

GROUP = 4  # numbers in the smallest vectors (SSE, NEON)
ROWS = 4  # of W that are added up before the sums are stored

# What a header may not be called: words of C and C++, what C's library reserves, and macros of its headers.
KEYWORDS = """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl const constexpr continue
    decltype default delete do double else enum explicit export extern false float for friend goto if inline int long
    main mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public register restrict
    return short signed sizeof static struct switch template this throw true try typedef typeid typename union unsigned
    using virtual void volatile wchar_t while xor xor_eq
    char8_t char16_t char32_t co_await co_return co_yield concept consteval constinit const_cast dynamic_cast linux
    reinterpret_cast requires static_assert static_cast std thread_local typeof typeof_unqual unix
""".split()  # noqa: SIM905
LIBM = """
    acos asin atan atan2 cos sin tan acosh asinh atanh cosh sinh tanh exp exp2 expm1 frexp ilogb ldexp log log10 log1p
    log2 logb modf scalbn scalbln cbrt fabs hypot pow sqrt erf erfc lgamma tgamma ceil floor nearbyint rint lrint llrint
    round lround llround trunc fmod remainder remquo copysign nan nextafter nexttoward fdim fmax fmin fma j0 j1 jn y0 y1
    yn gamma drem significand scalb exp10 pow10 signgam isnan isinf isfinite isnormal signbit fpclassify isgreater
    isless isunordered INFINITY NAN HUGE_VAL
    canonicalize fadd fdiv ffma fmul fsqrt fsub finite fmaximum fmaximum_mag fmaximum_mag_num fmaximum_num fminimum
    fminimum_mag fminimum_mag_num fminimum_num fromfp fromfpx lgamma_r llogb nextdown nextup roundeven
    ufromfp ufromfpx
""".split()  # noqa: SIM905
LIBRARY = """
    FILE NULL lgammaf_r lgammal_r va_list fd_mask fd_set u_char u_int u_long u_short uint ushort ulong
    abort abs aligned_alloc alloca at_quick_exit atexit atof atoi atol atoll bsearch calloc div exit free getenv
    labs ldiv llabs lldiv malloc mblen mbstowcs mbtowc qsort quick_exit rand realloc srand strfromd strfromf
    strfroml strtod strtof strtol strtold strtoll strtoul strtoull system wcstombs wctomb clearerr fclose feof
    ferror fflush fgetc fgetpos fgets fopen fprintf fputc fputs fread freopen fscanf fseek fsetpos ftell fwrite getc
    getchar gets perror printf putc putchar puts remove rename rewind scanf setbuf setvbuf snprintf sprintf sscanf
    stderr stdin stdout tmpfile tmpnam ungetc vfprintf vfscanf vprintf vscanf vsnprintf vsprintf vsscanf memccpy
    memchr memcmp memcpy memmove memset memset_explicit free_sized free_aligned_sized memalignment strcat strchr
    strcmp strcoll strcpy strcspn strdup strdupa strerror strlen strncat strncmp strncpy strndup strndupa strpbrk
    strrchr strspn strstr strtok strxfrm be16toh be32toh be64toh htobe16 htobe32 htobe64 htole16 htole32 htole64
    le16toh le32toh le64toh daddl ddivl dfmal dmull dsqrtl dsubl i386 errno assert offsetof setjmp va_arg
    math_errhandling iscanonical iseqsig isgreaterequal islessequal islessgreater issignaling issubnormal iszero
    import module
""".split()  # noqa: SIM905
# Macros of the headers, in families
MACROS = (
    r"U?INT(8|16|32|64|MAX|PTR|_(FAST|LEAST)(8|16|32|64))_(C|MAX|MIN|WIDTH)|"
    r"(S?CHAR|UCHAR|U?SHRT|U?INT|U?L?LONG|S?SIZE|PTRDIFF|SIG_ATOMIC|WCHAR|WINT|RAND|TMP|FOPEN|FILENAME)_(MAX|MIN|WIDTH)|"
    r"M_(E|LOG2E|LOG10E|LN2|LN10|PI|PI_2|PI_4|1_PI|2_PI|2_SQRTPI|SQRT2|SQRT1_2)(l|f|f\d+x?)?|"
    r"FP_(ILOGB0|ILOGBNAN|LLOGB0|LLOGBNAN|INFINITE|NAN|NORMAL|SUBNORMAL|ZERO|INT_\w+|FAST_\w+)|MATH_ERR(NO|EXCEPT)|"
    r"(HUGE_VAL|SNAN)(L|_?F\d*X?)?|FD_(CLR|ISSET|SET|SETSIZE|ZERO)|EXIT_(FAILURE|SUCCESS)|SEEK_(CUR|END|SET|DATA|HOLE)|"
    r"RENAME_(NOREPLACE|EXCHANGE|WHITEOUT)|L_(ctermid|cuserid|tmpnam)|P_(tmpdir|ALL|PID|PGID|PIDFD)|"
    r"W(CONTINUED|COREDUMP|EXITED|EXITSTATUS|NOHANG|NOWAIT|STOPPED|STOPSIG|TERMSIG|UNTRACED)|"
    r"WIF(CONTINUED|EXITED|SIGNALED|STOPPED)|(BIG|LITTLE|PDP)_ENDIAN|"
    r"BYTE_ORDER|BUFSIZ|EOF|MAXFLOAT|MB_CUR_MAX|MB_LEN_MAX|NFDBITS"
)

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
NOT_IN_PLACE = ("linear", "concat")  # ops that read a number again after they have written
LOW, HIGH = -87.3, 88.3  # where float32's exp neither overflows nor becomes denormal


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
    replace(path, [Code(name, model).text().encode()])


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name: expected a str, got {name!r}")
    taken = {*KEYWORDS, *LIBM, *LIBRARY, *(f"{function}{suffix}" for function in LIBM for suffix in "fl")}
    if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name):
        raise ValueError(f"name: expected a C identifier that begins with a letter, got {name!r}")
    if name in taken or name.endswith("_t") or re.fullmatch(MACROS, name):
        raise ValueError(f"name: {name!r} is taken by C or its library; pass another name")


class Code:
    """One header while it is being written: constants, functions and the statements of the body.

    Attributes
    ----------
    real : str
        C's type of the numbers.
    sources : list of str
        The arrays that the layer which is being written reads, and in `source_widths` how many numbers each has.
    target : str
        The array that it writes, `width` numbers; it may be one of the sources, unless the op is in NOT_IN_PLACE.
    """

    def __init__(self, name: str, model: Any) -> None:
        self.name = name
        self.model = model
        self.computation: Computation = graph_of(model)
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
        """The header."""
        nodes, widths, output = self.computation
        self._allot()
        if self.place.get(0) != "x":
            self._copy("x", self.place[0], widths[0], _padded(widths[0]))
        for node in nodes:
            self.body.append(f"\n    /* {node.where} */")
            self.node = node
            self.sources = [self.place[source] for source in node.sources]
            self.source_widths = [widths[source] for source in node.sources]
            self.target, self.width = self.place[node.target], widths[node.target]
            node.layer._to_c(self)
        self.body.append("")
        self._copy(self.place[output], "y", widths[output], widths[output])
        return self._assembled()

    def _assembled(self) -> str:
        name, real = self.name, self.real
        n_in, n_out = self.computation.widths[0], self.computation.widths[self.computation.output]
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
        nodes, widths, output = self.computation
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
            if node.kind not in NOT_IN_PLACE:
                free += [owner.pop(value) for value in ended]
            take(node.target)
            free += [owner.pop(value) for value in ended if value in owner]

    # pieces of C ------------------------------------------------------------------------------------------------------

    def number(self, value: float) -> str:
        """A constant that is read back as the same number."""
        text = repr(float(value)) if self.double else str(np.float32(value))
        return f"{text}{self.suffix}"

    def constant(self, what: str, array: Any) -> str:
        """A static array of a parameter of the layer, its rows padded with zeros; its name."""
        array = np.asarray(array, self.model.dtype)
        if not np.isfinite(array).all():
            raise ValueError(f"{self.node.where}: {what} has infinite numbers or NaN")
        rows = np.atleast_2d(array)
        padded = np.zeros((len(rows), _padded(rows.shape[1])), self.model.dtype)
        padded[:, : rows.shape[1]] = rows
        self.constant_bytes += padded.nbytes
        name = f"{self.name}_{what}_{self.node.key.replace('.', '_')}"
        shape = "".join(f"[{n}]" for n in padded.shape[2 - array.ndim :])
        lines = []
        for row in padded:
            cells = [self.number(value) for value in row]
            text = ",\n".join("    " + ", ".join(cells[i : i + 6]) for i in range(0, len(cells), 6))
            lines.append(f"{{\n{text}\n}}" if array.ndim == 2 else text)
        self.constants.append(f"static const {self.real} {name}{shape} = {{\n" + ",\n".join(lines) + "\n};\n\n")
        return name

    def function(self, name: str) -> str:
        """What a function of float or double is called here; its definition is added where it is not libm's."""
        if self.double or name not in FLOAT_FUNCTIONS:
            return name + self.suffix
        for needed in ("exp_parts", name):
            self.functions.setdefault(needed, FLOAT_FUNCTIONS[needed].replace("NAME", self.name))
        return f"{self.name}_{name}"

    def write(self, statement: str) -> None:
        """A statement."""
        self.body.append(f"    {statement}")

    def loop(self, n: int, statement: str) -> None:
        """A statement for j from 0 to n - 1."""
        self.body.append(f"    for (j = 0; j < {n}; j++)\n        {statement}")

    def begin(self) -> None:
        """Copy the source to the target, which the next steps change, if they are not one array."""
        n = _padded(self.width)
        self._copy(self.sources[0], self.target, n, n)

    def step(self, to: str, formula: str, param: float = 0.0, v: str = "") -> None:
        """One loop over the numbers v of the target, or of the array `v`, and, beside it, t.

        Parameters
        ----------
        to : {"v", "t", "clamp"}
            What the formula's value is assigned to: the target, or t; "clamp" brings it into the range of float32's exp
            before.
        formula : str
            In C; numbers and functions in braces get the form of the type, {a} is `param`.
        """
        arrays = {"v": v or self.target, "t": "t"}
        formula = re.sub(r"\b([vt])\b(?!\()", lambda match: f"{arrays[match[1]]}[j]", formula)
        formula = re.sub(r"\{([^{}\s]+)\}", lambda match: self._filled(match[1], param), formula)
        n = _padded(self.width)
        if to != "v":
            self.temporary = max(self.temporary, n)
        if to != "clamp" or self.double:
            self.loop(n, f"{self.target if to == 'v' else 't'}[j] = {formula};")
            return
        low, high = self.number(LOW), self.number(HIGH)
        self.body.append(
            f"    for (j = 0; j < {n}; j++) {{\n"
            f"        const float a = {formula}, b = a < {low} ? {low} : a;\n"
            f"        t[j] = b > {high} ? {high} : b;\n"
            "    }"
        )

    def _filled(self, word: str, param: float) -> str:
        if word == "a":
            return self.number(param)
        return self.function(word) if word.isidentifier() else self.number(float(word))

    def assign(self, formula: str) -> None:
        """One loop that assigns a formula of the sources, at [j], to the target."""
        self.loop(_padded(self.width), f"{self.target}[j] = {formula};")

    def product(self, weight: str, n_in: int, bias: str | None) -> None:
        """The source times the constant `weight`, of n_in rows, plus the constant `bias`."""
        x, y, n = self.sources[0], self.target, _padded(self.width)
        self.loop(n, f"{y}[j] = {bias}[j];" if bias else f"{y}[j] = {self.number(0.0)};")
        grouped = n_in - n_in % ROWS
        if grouped:
            self.body.append(
                f"    for (i = 0; i < {grouped}; i += {ROWS})\n"
                f"        for (j = 0; j < {n}; j++)\n"
                f"            {y}[j] += {_terms(x, weight, 'i', ROWS)};"
            )
        if grouped < n_in:
            self.loop(n, f"{y}[j] += {_terms(x, weight, grouped, n_in - grouped)};")

    def clear_padding(self, used: int) -> None:
        """Set what lies behind the first `used` numbers of the target to zero."""
        self._copy(self.target, self.target, used, _padded(self.width))

    def _copy(self, source: str, target: str, n: int, room: int) -> None:
        if source != target:
            self.loop(n, f"{target}[j] = {source}[j];")
        for j in range(n, room):
            self.body.append(f"    {target}[{j}] = {self.number(0.0)};")


def _padded(n: int) -> int:
    return math.ceil(n / GROUP) * GROUP


def _terms(x: str, weight: str, first: int | str, count: int) -> str:
    """x[i] * W[i][j] + x[i + 1] * W[i + 1][j] + ..."""
    rows = [str(first) if k == 0 else f"{first} + {k}" if first == "i" else str(int(first) + k) for k in range(count)]
    return "\n                + ".join(f"{x}[{row}] * {weight}[{row}][j]" for row in rows)


__all__ = ["to_c"]
