"""CasADi's interface of external functions for what `to_c` writes: f, and its derivatives by CasADi's names.

Inputs and outputs are matrices, dense or empty, column after column. CasADi passes NULL for an input that is zero and
for an output that it does not want; w is memory for the call, of the size that NAME_work says.
"""

from __future__ import annotations

import re

from .c_code import File

# prefix of the name: (the derivatives that it needs, inputs, outputs); the functions' bodies are in `interface`
EXTERNALS = {
    "": (0, "x", "y"),
    "jac_": (1, "x out_y", "jac_y_x"),
    "adj1_": (1, "x out_y adj_y", "adj_x"),
    "fwd1_": (2, "x out_y fwd_x", "fwd_y"),
    "jac_fwd1_": (2, "x out_y fwd_x out_fwd_y", "jac_fwd_y_x jac_fwd_y_out_y jac_fwd_y_fwd_x"),
    "jac_adj1_": (2, "x out_y adj_y out_adj_x", "jac_adj_x_x jac_adj_x_out_y jac_adj_x_adj_y"),
}
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


def interface(name: str, file: File, derivatives: int) -> str:
    """The functions that ``casadi.external(name, library)`` looks for; those of the file do the work."""
    net, n_in, n_out = file.name, file.n_in, file.n_out
    y, v, g, h = "w", f"w + {n_out}", f"w + {2 * n_out}", f"w + {2 * n_out + n_in}"  # and J from g on
    jacobian = f"""\
{net}_jacobian(in0, {y}, {g});
    for (i = 0; i < {n_out}; i++)
        for (j = 0; j < {n_in}; j++)
            res[K][j * {n_out} + i] = ({g})[i * {n_in} + j];"""
    bodies = {
        "": f"{net}(in0, res[0]);",
        "jac_": jacobian.replace("K", "0"),
        "adj1_": f"{net}_vjp(in0, in2, {y}, res[0]);",
        "fwd1_": f"{net}_jvp(in0, in2, {y}, res[0]);",
        "jac_fwd1_": f"""\
for (i = 0; res[0] && i < {n_out}; i++) {{
        for (j = 0; j < {n_out}; j++)
            ({v})[j] = i == j ? 1.0 : 0.0;
        {net}_hvp(in0, {v}, in2, {y}, {g}, {h});
        for (j = 0; j < {n_in}; j++)
            res[0][j * {n_out} + i] = ({h})[j];
    }}
    if (!res[2])
        return 0;
    {jacobian.replace("K", "2")}""",
        "jac_adj1_": f"""\
if (res[0])
        {net}_hessian(in0, in2, {y}, {g}, res[0]);
    if (res[2])
        {net}_jacobian(in0, {y}, res[2]);""",
    }
    zeros = f"static const casadi_real {net}_zeros[{max(n_in, n_out)}] = {{0.0}};\n\n"
    written = [
        _external(prefix, name, file, bodies[prefix]) for prefix in EXTERNALS if EXTERNALS[prefix][0] <= derivatives
    ]
    return f"{HEAD}{zeros}{''.join(written)}#ifdef __cplusplus\n}}\n#endif\n"


def _external(prefix: str, name: str, file: File, body: str) -> str:
    full, (_, inputs, outputs) = f"{prefix}{name}", EXTERNALS[prefix]
    declared = "".join(
        f"    const casadi_real *in{i} = arg[{i}] ? arg[{i}] : {file.name}_zeros;\n" for i in (0, 2) if f"in{i}" in body
    )
    counters = "    casadi_int i, j;\n" if "for (i" in body else ""
    only = "" if len(outputs.split()) > 1 else "    if (!res[0])\n        return 0;\n"
    names = (("in", inputs.split()), ("out", outputs.split()))
    return f"""\
/* ({", ".join(inputs.split())}) -> ({", ".join(outputs.split())}) */
CNN_EXPORT int {full}(const casadi_real **arg, casadi_real **res, casadi_int *iw, casadi_real *w, int mem);
CNN_EXPORT int {full}(const casadi_real **arg, casadi_real **res, casadi_int *iw, casadi_real *w, int mem)
{{
{declared}{counters}    (void)iw;
    (void)w;
    (void)mem;
{only}    {body}
    return 0;
}}

{"".join(_facts(full, kind, listed, file) for kind, listed in names)}\
CNN_EXPORT int {full}_work(casadi_int *sz_arg, casadi_int *sz_res, casadi_int *sz_iw, casadi_int *sz_w);
CNN_EXPORT int {full}_work(casadi_int *sz_arg, casadi_int *sz_res, casadi_int *sz_iw, casadi_int *sz_w)
{{
    if (sz_arg)
        *sz_arg = {len(inputs.split())};
    if (sz_res)
        *sz_res = {len(outputs.split())};
    if (sz_iw)
        *sz_iw = 0;
    if (sz_w)
        *sz_w = {2 * file.n_out + max(2, file.n_out) * file.n_in};
    return 0;
}}

"""


def _facts(full: str, kind: str, names: list[str], file: File) -> str:
    """How many inputs or outputs there are, what they are called, and their sparsity."""
    returned = {"n": "casadi_int", "name": "const char *", "sparsity": "const casadi_int *"}
    patterns = [f"    static const casadi_int s{i}[] = {{{_sparsity(name, file)}}};\n" for i, name in enumerate(names)]
    cases = {
        "name": "".join(f'    case {i}:\n        return "{name}";\n' for i, name in enumerate(names)),
        "sparsity": "".join(f"    case {i}:\n        return s{i};\n" for i in range(len(names))),
    }
    text = ""
    for what, result in returned.items():
        signature = f"CNN_EXPORT {result}{'' if result.endswith('*') else ' '}{full}_{what}_{kind}"
        if what == "n":
            text += f"{signature}(void);\n{signature}(void)\n{{\n    return {len(names)};\n}}\n\n"
            continue
        text += f"{signature}(casadi_int i);\n{signature}(casadi_int i)\n{{\n"
        text += "".join(patterns) if what == "sparsity" else ""
        text += f"    switch (i) {{\n{cases[what]}    default:\n        return 0;\n    }}\n}}\n\n"
    return text


def _sparsity(name: str, file: File) -> str:
    """Of an input or output by CasADi's name, as CasADi encodes it: rows, columns, 1 (dense) or the columns' ends."""
    sizes = {"x": file.n_in, "y": file.n_out}
    kind, *of = re.sub("jac_(adj|fwd)", "jac", name).split("_")
    if kind == "jac":
        rows, columns = sizes[of[0]], sizes[of[-1]]
    else:
        rows, columns = sizes[of[-1] if of else kind], 1
    ends = (columns + 1) * ["0"] if "out" in (kind, *of) else ["1"]
    return ", ".join([str(rows), str(columns), *ends])
