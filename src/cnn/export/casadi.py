"""CasADi's interface of external functions for the output of `to_c`: f, and its derivatives under CasADi's names.

Inputs and outputs are matrices, dense or empty, column after column. CasADi passes NULL for an input that is zero and
for an output that it does not need; w is memory for the call, of the size that NAME_work returns. There is no fwd1_f:
CasADi then computes forward derivatives from jac_f, one Jacobian for all directions, which is faster.
"""

from __future__ import annotations

from typing import NamedTuple

from .c_code import File

HEAD = """
#ifndef casadi_real
#define casadi_real double
#endif
#ifndef casadi_int
#define casadi_int long long int
#endif
#if defined(_WIN32)
#define CNN_EXPORT __declspec(dllexport)
#else
#define CNN_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

"""


class Matrix(NamedTuple):
    """An input or output."""

    name: str
    rows: int
    columns: int = 1
    dense: bool = True  # or empty

    def sparsity(self) -> str:
        """In CasADi's encoding: rows, columns, and 1 or the start of each column."""
        return ", ".join(map(str, [self.rows, self.columns, *([1] if self.dense else (self.columns + 1) * [0])]))


class External(NamedTuple):
    """A function: the prefix of its name, the order of derivatives that it needs, and its body.

    In the body, the first input is in0 and the third is in2, never NULL. With several outputs, the body tests which are
    requested.
    """

    prefix: str
    order: int
    inputs: list[Matrix]
    outputs: list[Matrix]
    body: str


def interface(name: str, file: File, derivatives: int) -> str:
    """The functions that ``casadi.external(name, library)`` looks for; they call those of the file."""
    written = [_written(one, name, file) for one in _externals(file) if one.order <= derivatives]
    zeros = f"static const casadi_real {file.name}_zeros[{max(file.n_in, file.n_out)}] = {{0.0}};\n\n"
    return f"{HEAD}{zeros}{''.join(written)}#ifdef __cplusplus\n}}\n#endif\n"


def _externals(file: File) -> list[External]:
    net, n_in, n_out = file.name, file.n_in, file.n_out
    y, v, g, h = "w", f"w + {n_out}", f"w + {2 * n_out}", f"w + {2 * n_out + n_in}"  # J and H, the largest, in the last
    point = [Matrix("x", n_in), Matrix("out_y", n_out, 1, False)]
    return [
        External("", 0, point[:1], [Matrix("y", n_out)], f"{net}(in0, res[0]);"),
        External(
            "adj1_", 1, [*point, Matrix("adj_y", n_out)], [Matrix("adj_x", n_in)], f"{net}_vjp(in0, in2, {y}, res[0]);"
        ),
        External(
            "jac_",
            1,
            point,
            [Matrix("jac_y_x", n_out, n_in)],
            f"""\
{net}_jacobian(in0, {y}, {h});
    for (i = 0; i < {n_out}; i++)
        for (j = 0; j < {n_in}; j++)
            res[0][j * {n_out} + i] = ({h})[i * {n_in} + j];""",
        ),
        External(
            "jac_adj1_",
            2,
            [*point, Matrix("adj_y", n_out), Matrix("out_adj_x", n_in, 1, False)],
            [
                Matrix("jac_adj_x_x", n_in, n_in),
                Matrix("jac_adj_x_out_y", n_in, n_out, False),
                Matrix("jac_adj_x_adj_y", n_in, n_out),
            ],
            f"""\
if (res[0])
        {net}_hessian(in0, in2, {y}, {g}, res[0]);
    if (res[2])
        {net}_jacobian(in0, {y}, res[2]);""",
        ),
        External(
            "jac_jac_",
            2,
            [*point, Matrix("out_jac_y_x", n_out, n_in, False)],
            [Matrix("jac_jac_y_x_x", n_out * n_in, n_in), Matrix("jac_jac_y_x_out_y", n_out * n_in, n_out, False)],
            f"""\
for (i = 0; res[0] && i < {n_out}; i++) {{
        for (j = 0; j < {n_out}; j++)
            ({v})[j] = i == j ? 1.0 : 0.0;
        {net}_hessian(in0, {v}, {y}, {g}, {h});
        for (j = 0; j < {n_in * n_in}; j++)
            res[0][j * {n_out} + i] = ({h})[j];
    }}""",
        ),
    ]


def _written(one: External, name: str, file: File) -> str:
    full, inputs, outputs = f"{one.prefix}{name}", one.inputs, one.outputs
    shown = [", ".join(matrix.name for matrix in matrices) for matrices in (inputs, outputs)]
    arguments = "const casadi_real **arg, casadi_real **res, casadi_int *iw, casadi_real *w, int mem"
    declared = "".join(
        f"    const casadi_real *in{i} = arg[{i}] ? arg[{i}] : {file.name}_zeros;\n"
        for i in (0, 2)
        if f"in{i}" in one.body
    )
    counters = "    casadi_int i, j;\n" if "for (i" in one.body else ""
    unwanted = "    if (!res[0])\n        return 0;\n" if len(outputs) == 1 else ""
    sizes = {
        "arg": len(inputs),
        "res": len(outputs),
        "iw": 0,
        "w": 2 * file.n_out + file.n_in * (1 + max(file.n_in, file.n_out)),
    }
    text = f"/* ({shown[0]}) -> ({shown[1]}) */\n" + _function(
        f"int {full}({arguments})",
        f"{declared}{counters}    (void)iw;\n    (void)w;\n    (void)mem;\n{unwanted}    {one.body}\n    return 0;\n",
    )
    for kind, matrices in (("in", inputs), ("out", outputs)):
        names = [f'"{matrix.name}"' for matrix in matrices]
        patterns = [f"    static const casadi_int s{i}[] = {{{m.sparsity()}}};\n" for i, m in enumerate(matrices)]
        numbered = [f"s{i}" for i in range(len(matrices))]
        text += _function(f"casadi_int {full}_n_{kind}(void)", f"    return {len(matrices)};\n")
        text += _function(f"const char *{full}_name_{kind}(casadi_int i)", _chosen(names))
        text += _function(
            f"const casadi_int *{full}_sparsity_{kind}(casadi_int i)", "".join(patterns) + _chosen(numbered)
        )
    return text + _function(
        f"int {full}_work({', '.join(f'casadi_int *sz_{what}' for what in sizes)})",
        "".join(f"    if (sz_{what})\n        *sz_{what} = {size};\n" for what, size in sizes.items())
        + "    return 0;\n",
    )


def _chosen(values: list[str]) -> str:
    """Statements that return value i, or NULL."""
    cases = "".join(f"    case {i}:\n        return {value};\n" for i, value in enumerate(values))
    return f"    switch (i) {{\n{cases}    default:\n        return 0;\n    }}\n"


def _function(signature: str, body: str) -> str:
    """The declaration and the definition of a function."""
    return f"CNN_EXPORT {signature};\nCNN_EXPORT {signature}\n{{\n{body}}}\n\n"
