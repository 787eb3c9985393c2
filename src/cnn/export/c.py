"""`to_c`: a model as C99 without dependencies: its value, and its derivatives.

This file has the functions of a C file. Each is a walk over the model's graph, in which the layers write their
statements with the methods of `Code` (c_code.py). casadi.py has the interface of CasADi.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from .._about import __version__
from .._checks import choice
from ..files.atomic_write import replace
from ..layers import Layer
from .c_code import Code, File
from .casadi import interface
from .graph import Node

# Names that a header may not have: keywords of C and C++, names that the C library reserves, macros of its headers.
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

CONSTANT = ("constant",)  # ops whose result does not depend on what they read
NOT_IN_PLACE = ("linear", "concat")  # ops that read a number again after they have written one


def to_c(
    model: Any,
    path: str | os.PathLike[str],
    name: str | None = None,
    *,
    derivatives: int | None = None,
    parameters: str = "const",
    abi: str = "c",
) -> None:
    """Write a model as C99: a function `void NAME(const float *x, float *y)` and, optionally, its derivatives.

    The function computes `predict` for one row: y is the output of the last layer, without the loss. A float64 model
    uses double instead of float. The file contains the weights and depends only on libm. Its functions allocate no
    memory, keep no state and are thread-safe. A comment at the top lists them and their stack use. Derivatives are
    exact, for the model in evaluation mode, and exclude penalties.

    Parameters
    ----------
    model : Sequential
    path : str or path
        The file. "policy.h" is a header with static functions; "policy.c" is a source file to compile separately, whose
        functions other files and other languages can call.
    name : str, optional
        Name of the function, a C identifier and the prefix of all other names in the file. None: the file's stem.
    derivatives : {0, 1, 2}, optional
        None: 0; with CasADi's interface, 2. 1: the Jacobian `NAME_jacobian` and its product with a vector from the
        left, `NAME_vjp`. 2: also its product from the right, `NAME_jvp`, and the Hessian of v y, `NAME_hessian`, with
        its product with a vector, `NAME_hvp` (with one output, pass v = 1).
    parameters : {"const", "argument"}
        "argument": all functions take the parameters as their first argument, `const float *p`, in the order of
        `model.parameters`; with derivatives there is `NAME_gradient`, which adds the gradient of v y in the parameters
        to an array. Running statistics stay constants.
    abi : {"c", "casadi"}
        "casadi": the file, "f.c", also has CasADi's interface, and the functions above are static. As a library it
        is ``casadi.external("f", "./f.so")``, with exact derivatives up to `derivatives`. Its numbers are double,
        whatever the model's dtype is.

    Raises
    ------
    ValueError
        If the name is not an identifier, or is reserved by C or libm; if a parameter is infinite or NaN, naming its
        layer; if an option is unknown.
    NotImplementedError
        If a layer has no such derivative in C; the message names the layer.
    TypeError
        If model is not a Sequential.
    OSError
        If the file cannot be written.

    Notes
    -----
    Results agree with `predict` up to rounding, because the order of sums differs. Compilers vectorise the loops from
    -O2 on; -O3 -march=native uses the machine's vector instructions.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> model = Sequential([Linear(2, 3), Tanh(), Linear(3, 1)], seed=0)
    >>> path = pathlib.Path(tempfile.mkdtemp(), "policy.h")
    >>> to_c(model, path, derivatives=1)
    >>> "void policy(const float *x, float *y)" in path.read_text()
    True
    >>> "void policy_jacobian(const float *x, float *y, float *J)" in path.read_text()
    True
    """
    stem, extension = os.path.splitext(os.path.basename(os.fspath(path)))
    name = stem if name is None else name
    _check_name(name)
    wanted = (".c",) if abi == "casadi" else (".c", ".h", ".hpp")
    if extension not in wanted:
        raise ValueError(f"path: expected a name that ends in {' or '.join(wanted)}, got {os.fspath(path)!r}")
    if derivatives is None:
        derivatives = 2 if abi == "casadi" else 0
    if derivatives not in (0, 1, 2) or isinstance(derivatives, bool):
        raise ValueError(f"derivatives: expected 0, 1 or 2, got {derivatives!r}")
    argument = choice("parameters", parameters, ("const", "argument")) == "argument"
    if choice("abi", abi, ("c", "casadi")) == "casadi":
        if argument:
            raise ValueError("parameters: expected 'const' with abi='casadi', whose functions have one input, x")
        file = File(f"{name}_net", model, dtype="float64")
        text = _text(file, derivatives, "static") + interface(name, file, derivatives)
    else:
        text = _text(File(name, model, argument), derivatives, "extern" if extension == ".c" else "header")
    replace(path, [text.encode()])


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name: expected a str, got {name!r}")
    taken = {*KEYWORDS, *LIBM, *LIBRARY, *(f"{function}{suffix}" for function in LIBM for suffix in "fl")}
    if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name):
        raise ValueError(f"name: expected a C identifier that begins with a letter, got {name!r}")
    if name in taken or name.endswith("_t") or re.fullmatch(MACROS, name):
        raise ValueError(f"name: {name!r} is taken by C or its library; pass another name")


# the functions --------------------------------------------------------------------------------------------------------


class Walks:
    """The walks over the model's graph that functions consist of; `code` is the current function.

    Values: v. Tangents: d, along a direction of x. Adjoints: g, of v y. Tangents of adjoints: e. Each has its own
    array, except for the values of a function that returns nothing else.
    """

    def __init__(self, file: File) -> None:
        self.code, self.file = Code(file), file
        nodes, self.widths, self.output = file.computation
        self.nodes: list[Node] = []  # that y depends on
        reached = {self.output}
        for node in reversed(nodes):
            if node.target in reached:
                node = node._replace(sources=() if node.kind in CONSTANT else node.sources)
                self.nodes.insert(0, node)
                reached.update(node.sources)
        self.place: dict[int, str] = {}

    def forward(self, order: int | None = None, parameters: bool = False) -> None:
        """From x to y; with an order, also what its derivatives in x, or in the parameters, need. None: values
        overwrite one another."""
        code = self.code
        code.wanted = set() if parameters else {0}
        for node in self.nodes:
            if not code.wanted.isdisjoint(node.sources) or (parameters and node.layer.n_parameters):
                code.wanted.add(node.target)
        self.place = self._arrays_used_again() if order is None else self._arrays()
        if self.place[0] != "x":
            code.copy("x", self.place[0], self.widths[0], self.file.padded(self.widths[0]))
        for node in self.nodes:
            code.at(node, self.place)
            node.layer._to_c(code)
            if order is not None and node.target in code.wanted:
                node.layer._c_slopes(code, order)
        code.write("")
        code.copy(self.place[self.output], "y", self.file.n_out, self.file.n_out)

    def _reads_in_order(self) -> bool:
        """Whether x is only read number by number, in place."""
        return self.output != 0 and all(node.kind == "linear" for node in self.nodes if 0 in node.sources)

    def _arrays(self) -> dict[int, str]:
        written = [node.target for node in self.nodes]
        if self._reads_in_order():
            return {0: "x"} | {value: self.code.local("v", value) for value in written}
        return {value: self.code.local("v", value) for value in (0, *written)}

    def _arrays_used_again(self) -> dict[int, str]:
        """An array is reused when no later node reads its value."""
        arrays = self.code.arrays
        last = {value: i for i, node in enumerate(self.nodes) for value in node.sources}
        last[self.output] = len(self.nodes)
        place: dict[int, str] = {}
        owner: dict[int, str] = {}
        free: list[str] = []

        def take(value: int) -> None:
            array = free.pop() if free else f"h{len(arrays)}"
            arrays[array] = max(arrays.get(array, 0), self.file.padded(self.widths[value]))
            owner[value] = place[value] = array

        if self._reads_in_order():
            place[0] = "x"
        else:
            take(0)
        for i, node in enumerate(self.nodes):
            ended = [value for value in set(node.sources) if last[value] == i and value in owner]
            if node.kind not in NOT_IN_PLACE:
                free += [owner.pop(value) for value in ended]
            take(node.target)
            free += [owner.pop(value) for value in ended if value in owner]
        return place

    def tangent(self, seed: str | None = None, second: bool = False) -> None:
        """From the tangent of x (the argument `seed`, or the unit vector r) to that of y, or to those that `second`
        needs."""
        needed = set() if second else {self.output}
        for node in reversed(self.nodes):
            curved = type(node.layer)._c_second is not Layer._c_no_second
            if node.target in self.code.wanted and (node.target in needed or (second and curved)):
                needed.update(node.sources)
        if 0 in needed:
            self._start("d", 0, seed)
        for node in self.nodes:
            if node.target not in needed:
                continue
            self.code.at(node, self.place)
            if node.target in self.code.wanted:
                node.layer._c_tangent(self.code, self._tangents(node), self.code.local("d", node.target))
            else:
                self.code.assign(self.file.number(0.0), self.code.local("d", node.target))

    def backward(self, seed: str | None = None, parameters: bool = False) -> None:
        """From the adjoint of y (the argument `seed`, or the unit vector r) to that of x, or of the parameters."""
        code = self.code
        code.adjoint = "g"
        if self.output in code.wanted:
            code.written.add(self._start("g", self.output, seed))
        for node in reversed(self.nodes):
            if (g := f"g{node.target}") in code.written:
                code.at(node, self.place)
                if parameters:
                    node.layer._c_gradient(code, g)
                node.layer._c_backward(code, g)

    def second(self) -> None:
        """After `tangent` and `backward`: the tangents of the adjoints, from that of y, which is 0, to that of x."""
        code = self.code
        code.adjoint = "e"
        for node in reversed(self.nodes):
            if (g := f"g{node.target}") in code.written:
                code.at(node, self.place)
                if (e := f"e{node.target}") in code.written:
                    node.layer._c_backward(code, e)
                if type(node.layer)._c_second is not Layer._c_no_second:
                    node.layer._c_second(code, self._tangents(node), g)

    def _tangents(self, node: Node) -> list[str]:
        return [self.code.local("d", source) for source in node.sources]

    def _start(self, kind: str, value: int, seed: str | None) -> str:
        code, array, n = self.code, self.code.local(kind, value), self.widths[value]
        code.write("")
        if seed is not None:
            code.copy(seed, array, n, self.file.padded(n))
        else:
            code.loop(self.file.padded(n), f"{array}[j] = {self.file.number(0.0)};")
            code.write(f"{array}[r] = {self.file.number(1.0)};")
        return array

    def give(self, kind: str, value: int, result: str, at: str = "j") -> None:
        """Copy an array to an argument of the function."""
        known = kind == "d" or f"{kind}{value}" in self.code.written
        number = f"{kind}{value}[j]" if known else self.file.number(0.0)  # y does not depend on x
        self.code.loop(self.widths[value], f"{result}[{at}] = {number};")


def _jacobian(w: Walks) -> None:
    w.forward(1)
    n_in, n_out = w.file.n_in, w.file.n_out
    w.code.open(f"for (r = 0; r < {min(n_in, n_out)}; r++)")
    if n_out <= n_in:
        w.backward()
        w.give("g", 0, "J", f"r * {n_in} + j")
    else:
        w.tangent()
        w.give("d", w.output, "J", f"j * {n_in} + r")
    w.code.close()


def _vjp(w: Walks) -> None:
    w.forward(1)
    w.backward("v")
    w.give("g", 0, "g")


def _gradient(w: Walks) -> None:
    w.forward(1, parameters=True)
    w.backward("v", parameters=True)


def _jvp(w: Walks) -> None:
    w.forward(1)
    w.tangent("dx")
    w.give("d", w.output, "dy")


def _hvp(w: Walks) -> None:
    w.forward(2)
    w.tangent("dx", second=True)
    w.backward("v")
    w.second()
    w.give("g", 0, "g")
    w.give("e", 0, "h")


def _hessian(w: Walks) -> None:
    w.forward(2)
    w.backward("v")
    w.give("g", 0, "g")
    w.code.open(f"for (r = 0; r < {w.file.n_in}; r++)")
    w.tangent(second=True)
    w.second()
    w.give("e", 0, "H", f"r * {w.file.n_in} + j")
    w.code.close()


class Function(NamedTuple):
    """A function of the file: its suffix after NAME, its arguments after p (results follow a semicolon), and so on."""

    suffix: str
    arguments: str
    order: int  # of the derivatives that it needs
    write: Callable[[Walks], None]
    says: str  # about its results, in the comment before it
    trains: bool = False  # only if the parameters are an argument


FUNCTIONS = (
    Function("", "x; y", 0, Walks.forward, ""),
    Function("_jacobian", "x; y, J", 1, _jacobian, "J ({n_out}, {n_in}), row after row: the derivative of y in x"),
    Function("_vjp", "x, v; y, g", 1, _vjp, "g ({n_in}): the gradient in x of v y, v ({n_out})"),
    Function(
        "_gradient", "x, v; y, dp", 1, _gradient, "adds to dp ({n_p}) the gradient in p of v y, v ({n_out})", True
    ),
    Function("_jvp", "x, dx; y, dy", 2, _jvp, "dy ({n_out}): the derivative of y along dx ({n_in})"),
    Function(
        "_hvp",
        "x, v, dx; y, g, h",
        2,
        _hvp,
        "g ({n_in}): the gradient in x of v y, v ({n_out}); h ({n_in}): its derivative along dx ({n_in})",
    ),
    Function(
        "_hessian",
        "x, v; y, g, H",
        2,
        _hessian,
        "g ({n_in}): the gradient in x of v y, v ({n_out}); H ({n_in}, {n_in}): its Hessian",
    ),
)


def _text(file: File, derivatives: int, linkage: str) -> str:
    """The file. Linkage: "header" and "static" for static functions, "extern"."""
    for node in file.computation.nodes:
        if (order := node.layer._c_order()) < derivatives:
            what = "second derivative" if order else "derivative"
            raise NotImplementedError(f"{node.where}: has no {what} in C: pass derivatives={order}")
    wanted = [f for f in FUNCTIONS if f.order <= derivatives and (file.argument or not f.trains)]
    written, stack = zip(*(_function(file, function, linkage) for function in wanted), strict=True)
    name, real, p = file.name, file.real, f"const {file.real} *p, " if file.argument else ""
    most, more, parameters, guard, end, prototypes = "", "", "", "", "", ""
    if len(wanted) > 1:
        most = "at most "
        listed = "".join(f" *     {name}{f.suffix}({', '.join(_names(file, f))})\n" for f in wanted)
        more = f" *\n * With its derivatives; results begin with y and overlap nothing:\n{listed}"
    if p:
        parameters = f"p: {file.n_parameters} numbers, in the order of model.parameters; "
    if linkage == "header":
        guard, end = f"#ifndef CNN_{name}_H\n#define CNN_{name}_H\n\n", "\n#endif\n"
    if linkage == "extern":
        declared = "".join(f"{_signature(file, f)};\n" for f in wanted)
        prototypes = f'#ifdef __cplusplus\nextern "C" {{\n#endif\n{declared}#ifdef __cplusplus\n}}\n#endif\n\n'
    return f"""\
/* void {name}({p}const {real} *x, {real} *y): a neural network, written by cnn {__version__}.
 *
 * {parameters}x: {file.n_in} numbers, y: {file.n_out} numbers; they may be the same array.
 * Needs nothing but libm (link with -lm). Allocates nothing and keeps no state: any number of threads may call it.
 * Takes {most}{max(stack):,} bytes of stack for its arrays, and {file.constant_bytes:,} bytes of constants.
{more} */
{guard}#include <math.h>
#include <stdint.h>

{prototypes}{"".join(file.constants.values())}{"".join(text + chr(10) for text in file.functions.values())}\
{chr(10).join(written)}{end}"""


def _names(file: File, function: Function) -> list[str]:
    return [*(["p"] if file.argument else []), *re.split("[,;] ", function.arguments)]


def _signature(file: File, function: Function) -> str:
    given = len(function.arguments.split(";")[0].split(",")) + file.argument
    const = given * ["const "] + 9 * [""]
    arguments = ", ".join(f"{c}{file.real} *{name}" for c, name in zip(const, _names(file, function), strict=False))
    return f"void {file.name}{function.suffix}({arguments})"


def _function(file: File, function: Function, linkage: str) -> tuple[str, int]:
    """A function, and the bytes of stack of its arrays."""
    walks = Walks(file)
    function.write(walks)
    code = walks.code
    stack = sum(code.arrays.values()) * file.dtype.itemsize
    says = function.says.format(n_in=file.n_in, n_out=file.n_out, n_p=file.n_parameters)
    comment = f"/* y; {says}. Takes {stack:,} bytes of stack. */\n" if says else ""
    arrays = "".join(f"    {file.real} {array}[{size}];\n" for array, size in code.arrays.items())
    text = "\n".join([*code.views.values(), *code.body])
    unused = [f"    (void){name};" for name in _names(file, function) if not re.search(rf"\b{name}\b", text)]
    body = "\n".join([*unused, *code.body])
    counters = [c for c in "ijkr" if re.search(rf"\bfor \({c} =", body)]
    static = "" if linkage == "extern" else "static inline "
    declared = f"{''.join(code.views.values())}{arrays}    int {', '.join(counters)};\n"
    return f"{comment}{static}{_signature(file, function)}\n{{\n{declared}{body}\n}}\n", stack


__all__ = ["to_c"]
