"""`to_c`: the header compiles without a warning, computes what `predict` computes, and keeps to what it promises."""

import ctypes
import re
import shutil
import subprocess

import numpy as np
import pytest
from grid import ACTIVATIONS, WITH_PARAMETERS, build, inputs_of, random_model
from networks import run_together

import cnn
from cnn.export.c import _check_name

COMPILERS = [compiler for compiler in ("gcc", "clang") if shutil.which(compiler)]
FLAGS = ["-Wall", "-Wextra", "-Werror", "-pedantic"]
# -ffast-math, less what would change the mode of this process
FAST_MATH = "-ffinite-math-only -fassociative-math -freciprocal-math -fno-signed-zeros -fno-trapping-math"
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
FLOATS = {"float32": ("float", ctypes.c_float), "float64": ("double", ctypes.c_double)}


def run_compiler(compiler, *arguments):
    result = subprocess.run([compiler, *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


def compiled(folder, models, compiler, *flags):
    """A library with the functions of these models, by name: the headers' own are static, so each gets a caller."""
    source = folder / "all.c"
    lines = []
    for name, model in models.items():
        cnn.to_c(model, folder / f"{name}.h")
        real = FLOATS[model.dtype.name][0]
        declaration = f"void run_{name}(const {real} *x, {real} *y)"
        lines.append(f'#include "{name}.h"\n{declaration};\n{declaration} {{ {name}(x, y); }}\n')
    source.write_text("".join(lines))
    library = folder / f"{len(list(folder.iterdir()))}.so"  # a name of its own: libraries are loaded once a name
    run_compiler(compiler, *FLAGS, "-std=c99", *flags, "-shared", "-fPIC", source, "-o", library, "-lm")
    return ctypes.CDLL(str(library))


def call(library, name, x, n_out):
    """The outputs for each row of x. What lies behind them must not be written."""
    function = getattr(library, f"run_{name}")
    outputs = np.full((len(x), n_out + 5), 7.25, x.dtype)
    pointer = ctypes.POINTER(FLOATS[x.dtype.name][1])
    for row, y in zip(x, outputs, strict=True):
        function(row.ctypes.data_as(pointer), y.ctypes.data_as(pointer))
    assert (outputs[:, n_out:] == 7.25).all()
    return outputs[:, :n_out]


@pytest.fixture(scope="module")
def models():
    """name -> model: every activation with every parameter, and random networks, in both dtypes."""
    specs = [[(5, 7, True), (name, param)] for name, param in WITH_PARAMETERS]
    known = {f"net{i}_{dtype}": build(spec, dtype=dtype)[0] for i, spec in enumerate(specs) for dtype in TOLERANCE}
    return known | {
        f"random{i}_{dtype}": random_model(i, dtype) for i, dtype in zip(range(18), 9 * list(TOLERANCE), strict=True)
    }


@pytest.mark.parametrize(
    "command",
    [*(f"{compiler} -O2" for compiler in COMPILERS), "gcc -O3 -march=native", f"gcc -O3 {FAST_MATH}"],
)
def test_agrees_with_predict(models, command, tmp_path):
    compiler, *flags = command.split()
    library = compiled(tmp_path, models, compiler, *flags)
    for name, model in models.items():
        for scale in 1, 30:
            x = inputs_of(model, 4, scale)
            expected = model.predict(x)
            tolerance = TOLERANCE[model.dtype.name]
            np.testing.assert_allclose(
                call(library, name, x, expected.shape[1]),
                expected,
                rtol=tolerance,
                atol=tolerance * max(1, abs(expected).max()),
                err_msg=f"{name}: {model}",
            )


SPECIAL = [
    0.0,
    -0.0,
    1e-30,
    -1e-30,
    1e-5,
    -1e-5,
    0.35,
    -0.35,
    9.0,
    -9.0,
    87.0,
    -87.0,
    88.5,
    -88.5,
    500.0,
    -500.0,
    1e6,
    -1e6,
    -1e15,
    -1e30,
]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_activations_far_out(dtype, tmp_path):
    """Each activation alone, where its parts overflow or cancel; NaN stays NaN."""
    models = {}
    for name in ACTIVATIONS:
        models[name + "_"] = model = cnn.Sequential([cnn.Linear(1, 1), ACTIVATIONS[name].make()], dtype=dtype)
        model.parameters = [1, 0]
    library = compiled(tmp_path, models, COMPILERS[0], "-O2")
    x = np.array([[*SPECIAL, np.nan]], dtype).T
    for name, model in models.items():
        outputs = call(library, name, x, 1)
        assert np.isnan(outputs[-1, 0]), name
        expected = model.predict(x)[:-1]
        # erfc makes x**2 / 2 roundings of one; float32's exp ends at 1e-38, which is multiplied by x.
        np.testing.assert_allclose(outputs[:-1], expected, rtol=1e-5, atol=1e-32, err_msg=name)
        zero = expected == 0  # -0 too
        np.testing.assert_array_equal(np.signbit(outputs[:-1])[zero], np.signbit(expected)[zero], err_msg=name)


@pytest.fixture(scope="module")
def policy():
    model = cnn.Sequential(
        [cnn.Linear(17, 64), cnn.Tanh(), cnn.Linear(64, 64), cnn.Tanh(), cnn.Linear(64, 6), cnn.MSELoss()], seed=0
    )
    return model


def test_header_says_what_it_takes(policy, tmp_path):
    path = tmp_path / "policy.h"
    assert cnn.to_c(policy, path) is None
    text = path.read_text()
    assert text.startswith("/* void policy(const float *x, float *y): ")
    assert " * x: 17 numbers, y: 6 numbers" in text
    arrays = re.findall(r"^    float \w+\[(\d+)\];$", text, re.MULTILINE)
    assert f" {4 * sum(map(int, arrays))} bytes of stack" in text
    assert sum(map(int, arrays)) == 192
    assert max(map(len, text.splitlines())) <= 120
    assert re.findall(r"#include (.*)", text) == ["<math.h>", "<stdint.h>"]
    # no state but constants
    assert all(re.match(r"static (const|inline) ", line) for line in text.splitlines() if line.startswith("static"))


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_needs_nothing_but_libm(compiler, dtype, tmp_path):
    activations = [entry.make() for entry in ACTIVATIONS.values()]
    layers = [part for activation in activations for part in (cnn.Linear(9, 9), activation)]
    cnn.to_c(cnn.Sequential(layers, dtype=dtype, seed=0), tmp_path / "net.h")
    real = FLOATS[dtype][0]
    (tmp_path / "a.c").write_text(f'#include "net.h"\nvoid f({real} *x);\nvoid f({real} *x) {{ net(x, x); }}\n')
    run_compiler(compiler, *FLAGS, "-std=c99", "-O2", "-c", tmp_path / "a.c", "-o", tmp_path / "a.o")
    listed = subprocess.run(["nm", "-u", str(tmp_path / "a.o")], capture_output=True, text=True, check=True).stdout
    allowed = {"exp", "expm1", "erfc", "log1p"}
    called = {name.rstrip("f") for name in re.findall(r"U (\w+)", listed)}
    assert called - {"_GLOBAL_OFFSET_TABLE_", "__stack_chk_ail", "memset", "memcpy"} <= allowed | {"er"}


def test_x_and_y_may_be_one_array_and_threads_may_call(policy, tmp_path):
    library = compiled(tmp_path, {"policy": policy}, COMPILERS[0], "-O2")
    x = inputs_of(policy, 200)
    expected = call(library, "policy", x, 6)
    pointer = ctypes.POINTER(ctypes.c_float)

    def work():
        for row, y in zip(x.copy(), expected, strict=True):
            library.run_policy(row.ctypes.data_as(pointer), row.ctypes.data_as(pointer))
            np.testing.assert_array_equal(row[:6], y)

    run_together(work, work, work)


def test_two_translation_units_and_two_includes(policy, tmp_path):
    """Everything in the header is static."""
    cnn.to_c(policy, tmp_path / "policy.h")
    for name in "a", "b":
        (tmp_path / f"{name}.c").write_text(
            '#include "policy.h"\n#include "policy.h"\n'
            f"void {name}(float *x);\nvoid {name}(float *x) {{ policy(x, x); }}\n"
        )
    (tmp_path / "main.c").write_text(
        "#include <stdio.h>\nvoid a(float *x);\nvoid b(float *x);\n"
        'int main(void) { float x[17] = {1}, y[17] = {1}; a(x); b(y); printf("%.9g %.9g", x[5], y[5]); return 0; }\n'
    )
    sources = [tmp_path / f"{name}.c" for name in ("a", "b", "main")]
    run_compiler(COMPILERS[0], *FLAGS, "-std=c99", *sources, "-o", tmp_path / "main", "-lm")
    first, second = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout.split()
    x = np.zeros((1, 17), np.float32)
    x[0, 0] = 1
    assert first == second
    assert float(first) == pytest.approx(policy.predict(x)[0, 5], abs=1e-6)


@pytest.mark.parametrize("compiler", [c for c in ("g++", "clang++") if shutil.which(c)])
def test_is_cplusplus_too(models, policy, compiler, tmp_path):
    chosen = {"policy": policy, **dict(list(models.items())[:12])}
    for name, model in chosen.items():
        cnn.to_c(model, tmp_path / f"{name}.h")
    (tmp_path / "all.cpp").write_text("".join(f'#include "{name}.h"\n' for name in chosen))
    run_compiler(compiler, *FLAGS, "-std=c++11", "-c", tmp_path / "all.cpp", "-o", tmp_path / "all.o")


def test_sanitizers_find_nothing(models, tmp_path):
    """x is read, and y written, to its end and no further; no integer overflows."""
    chosen = {name: model for name, model in models.items() if name.startswith("random")}
    text = ["#include <stdlib.h>\n"]
    for name, model in chosen.items():
        cnn.to_c(model, tmp_path / f"{name}.h")
        real = FLOATS[model.dtype.name][0]
        x = inputs_of(model, 1)
        n_in, n_out = x.shape[1], model.predict(x).shape[1]
        text.append(
            f'#include "{name}.h"\nstatic void run_{name}({real} a) {{\n'
            f"    {real} *x = malloc({n_in} * sizeof *x), *y = malloc({n_out} * sizeof *y);\n    int i;\n"
            f"    for (i = 0; i < {n_in}; i++) x[i] = i % 2 ? a : -a;\n    {name}(x, y);\n    free(x); free(y);\n}}\n"
        )
    text.append("int main(void) {\n    const float a[] = {1.0f, 1e3f, 1e30f, NAN, INFINITY};\n    int i;\n")
    text.append("    for (i = 0; i < 5; i++) {\n" + "".join(f"        run_{name}(a[i]);\n" for name in chosen))
    text.append("    }\n    return 0;\n}\n")
    (tmp_path / "main.c").write_text("".join(text))
    sanitize = "-fsanitize=address,undefined"
    run_compiler(
        "gcc", *FLAGS, "-std=c99", "-g", sanitize, "-fno-sanitize-recover", tmp_path / "main.c", "-o",
        tmp_path / "main", "-lm",
    )  # fmt: skip
    result = subprocess.run([tmp_path / "main"], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_numbers_are_exact(tmp_path):
    """Smallest, largest and denormal parameters come through the text as they are."""
    numbers = [0.0, 1.0, -1.5, 0.1, 1 / 3, 1e-45, 1.2e-38, -3.4e38, 16777217.0, 5e-10]
    for dtype, real in (("float32", "float"), ("float64", "double")):
        model = cnn.Sequential([cnn.Linear(1, len(numbers))], dtype=dtype)
        model[0].weight, model[0].bias = np.zeros((1, len(numbers))), numbers
        outputs = call(compiled(tmp_path, {f"n_{real}": model}, COMPILERS[0]), f"n_{real}", np.ones((1, 1), dtype), 10)
        np.testing.assert_array_equal(outputs[0], np.array(numbers, dtype))


# names and errors ---------------------------------------------------------------------------------


def test_name_is_the_stem_unless_given(policy, tmp_path):
    cnn.to_c(policy, tmp_path / "a-b.h", name="act_2")
    assert "static inline void act_2(const float *x, float *y)" in (tmp_path / "a-b.h").read_text()
    with pytest.raises(ValueError, match=r"name: expected a C identifier that begins with a letter, got 'a-b'"):
        cnn.to_c(policy, tmp_path / "a-b.h")


@pytest.mark.parametrize("name", ["", "1a", "a b", "a-b", "_a", "__a", "é", "a;", "a\n"])
def test_names_that_are_none(policy, name, tmp_path):
    with pytest.raises(ValueError, match="name: expected a C identifier that begins with a letter, got "):
        cnn.to_c(policy, tmp_path / "x.h", name=name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "int",
        "main",
        "tanh",
        "expf",
        "y0",
        "class",
        "restrict",
        "int8_t",
        "NAN",
        "thread_local",
        "NULL",
        "M_PI",
        "concept",
        "linux",
        "std",
    ],
)
def test_names_that_are_taken(policy, name, tmp_path):
    with pytest.raises(ValueError, match=f"name: '{name}' is taken by C or its library; pass another name"):
        cnn.to_c(policy, tmp_path / f"{name}.h")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["L_net", "P_net", "M_policy", "WALK", "MY_MAX", "FP_policy", "interpreter", "M_PIE"])
def test_names_like_those_of_the_library_are_free(policy, name, tmp_path):
    cnn.to_c(policy, tmp_path / "net.h", name=name)


@pytest.mark.parametrize("standard", ["c99", "c11", "gnu11", "c2x", "c++20", "gnu++20"])
def test_every_accepted_name_compiles(standard):
    """Of all words in the library's headers, those that are accepted can be functions beside these headers."""
    language = "c++" if "++" in standard else "c"
    compiler = shutil.which("g++" if language == "c++" else "gcc")
    headers = ["math.h", "stdint.h"] + ["stdlib.h", "stdio.h", "string.h"] * standard.startswith("c")
    include = "".join(f"#include <{header}>\n" for header in headers)
    command = [compiler, f"-std={standard}", f"-x{language}", "-"]

    def run(*options, text):
        return subprocess.run([*command, *options], input=text, capture_output=True, text=True, check=False)

    words = set(re.findall(r"\b[A-Za-z]\w*", run("-E", "-dD", text=include).stdout))
    accepted, refused = [], 0
    for word in sorted(words):
        try:
            _check_name(word)
            accepted.append(word)
        except ValueError:
            refused += 1
    assert refused > 100
    functions = "".join(f"static inline void {word}(const float *x, float *y);\n" for word in accepted)
    errors = run("-fsyntax-only", text=include + functions).stderr
    assert "error" not in errors, errors[:2000]


def test_what_it_refuses(policy, tmp_path):
    with pytest.raises(TypeError, match="name: expected a str, got 3"):
        cnn.to_c(policy, tmp_path / "x.h", name=3)
    with pytest.raises(TypeError, match=r"model: expected a cnn\.Sequential, got Linear"):
        cnn.to_c(cnn.Linear(2, 3), tmp_path / "x.h")
    model = cnn.Sequential([cnn.Linear(2, 3), cnn.ReLU(), cnn.Linear(3, 1)])
    model[2].bias = [np.inf]
    with pytest.raises(
        ValueError, match=r"layer 2, Linear\(3, 1\): bias: expected finite numbers, got NaN or infinity"
    ):
        cnn.to_c(model, tmp_path / "x.h")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="nowhere"):
        cnn.to_c(policy, tmp_path / "nowhere" / "x.h")
