"""`to_c` with derivatives: equal to the library's own in float64, without a warning, and enough to train in C."""

import ctypes
import re
import shutil
import subprocess

import mpmath
import numpy as np
import pytest
from grid import ACTIVATIONS, LAYERS, WITH_PARAMETERS, build

import cnn

COMPILERS = [compiler for compiler in ("gcc", "clang") if shutil.which(compiler)]
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}
RESULTS = {  # of each function: its other arguments, and the shapes of its results behind y
    "": ("x", {}),
    "_jacobian": ("x", {"J": ("out", "in")}),
    "_vjp": ("xv", {"g": ("in",)}),
    "_gradient": ("xv", {"dp": ("p",)}),
    "_jvp": ("xd", {"dy": ("out",)}),
    "_hvp": ("xvd", {"g": ("in",), "h": ("in",)}),
    "_hessian": ("xv", {"g": ("in",), "H": ("in", "in")}),
}


def run_compiler(*arguments):
    result = subprocess.run([*map(str, arguments)], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def library_of(folder, *flags):
    """All files of a folder as one translation unit."""
    source, library = folder / "all.c", folder / "all.so"
    source.write_text("".join(f'#include "{path.name}"\n' for path in sorted(folder.glob("[!a]*.c"))))
    run_compiler("gcc", *WARNINGS, "-std=c99", *flags, "-shared", "-fPIC", source, "-o", library, "-lm")
    return ctypes.CDLL(str(library))


def call(library, name, function, model, x, v, d, argument):
    """What the function gives, by name. Behind each result nothing is written."""
    names, results = RESULTS[function]
    sizes = {"in": x.size, "out": v.size, "p": model.parameters.size}
    given = [{"x": x, "v": v, "d": d}[key] for key in names]
    given = [np.array(a, model.dtype) for a in ([model.parameters, *given] if argument else given)]
    shapes = {"y": (v.size,)} | {key: tuple(sizes[n] for n in shape) for key, shape in results.items()}
    rooms = [np.full(np.prod(shape) + 5, 0.0 if key == "dp" else 7.25, model.dtype) for key, shape in shapes.items()]
    getattr(library, f"{name}{function}")(*(a.ctypes.data_as(ctypes.c_void_p) for a in (*given, *rooms)))
    for key, room in zip(shapes, rooms, strict=True):
        assert (room[-5:] == (0.0 if key == "dp" else 7.25)).all()
    return {k: room[:-5].reshape(shape) for (k, shape), room in zip(shapes.items(), rooms, strict=True)}


def truth(model, x, v, d):
    """The same in float64, by the library."""
    twin = cnn.Sequential.from_config(model.get_config() | {"dtype": "float64"})
    twin.load_weights(model.state_dict())
    x, v, d = x[None], v[None], d[None]
    h = [twin.hvp_input(x, unit[None], grad_output=v)[0] for unit in np.eye(x.size)]
    g, dp = twin.vjp(x, v, parameters=True)
    y, dy, along = twin.predict(x)[0], twin.jvp(x, d)[0], twin.hvp_input(x, d, grad_output=v)[0]
    return {"y": y, "J": twin.jacobian(x)[0], "g": g[0], "dp": dp, "dy": dy, "h": along, "H": np.array(h)}


def networks():
    """name -> (model, whether its parameters are an argument): each layer and each activation, in every form."""
    parts = [[(name, param)] for name, param in WITH_PARAMETERS]
    specs = {
        "every": [(3, 4, True), ("concat", parts), (4 * len(parts), 1, True)],
        "widening": [(2, 7, True), ("tanh", None), (7, 13, False), ("silu", None), (13, 5, True)],
        "lanes": [(9, 21, True), ("sigmoid", None), (21, 16, False), ("gelu", None), (16, 2, True)],
        "shared": [(3, 4, True), ("multiply", [[("identity", None)], [("identity", None)], [("tanh", None)]])],
        "flat": [("concat", [[(3, 2, True)], [("concat", [[("identity", None)], [("tanh", None)]])]]), ("softmax", 8)],
    }
    for i, (name, entry) in enumerate(LAYERS.items()):
        specs[f"layer{i}"] = [(4, 7, True), ("tanh", None), (name, 7), (entry.width(7), 3, True)]
    fixed = [cnn.Linear(2, 3), cnn.Constant(4, init=0.5), cnn.Tanh(), cnn.LayerNorm(4), cnn.Linear(4, 2)]
    found = {"fixed": (cnn.Sequential(fixed, dtype="float64", seed=0), True)}  # y does not depend on x
    for i, (name, spec) in enumerate(specs.items()):
        for j, dtype in enumerate(TOLERANCE):
            if not name.startswith("layer") or i // 2 % 2 == j:
                found[f"{name}_{dtype}"] = build(spec, dtype=dtype, seed=i)[0], (i + j) % 2 == 1
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The networks, the folder of their files, and the library of them."""
    folder, models = tmp_path_factory.mktemp("written"), networks()
    write(folder, models)
    return folder, models, library_of(folder, "-O0")


def write(folder, models):
    for name, (model, argument) in models.items():
        parameters = "argument" if argument else "const"
        cnn.to_c(model, folder / f"{name}.c", derivatives=2, parameters=parameters)


def compare(library, models):
    for name, (model, argument) in models.items():
        random = np.random.default_rng(len(name))
        n_in, n_out = model._in_features(), model.predict(np.zeros((1, model._in_features()))).shape[1]
        x, v, d = (random.standard_normal(n).astype(model.dtype) for n in (n_in, n_out, n_in))
        expected = truth(model, x.astype(float), v.astype(float), d.astype(float))
        for function in RESULTS if argument else [f for f in RESULTS if f != "_gradient"]:
            for key, found in call(library, name, function, model, x, v, d, argument).items():
                tolerance = TOLERANCE[model.dtype.name] * max(1, abs(expected[key]).max(initial=0))
                what = f"{name}{function} {key}"
                np.testing.assert_allclose(found, expected[key], rtol=0, atol=tolerance, err_msg=what)


def test_agrees_with_the_library(written):
    _, models, library = written
    compare(library, models)


def test_agrees_when_compiled_for_speed(tmp_path):
    models = {name: one for name, one in networks().items() if name == "lanes_float32"}
    write(tmp_path, models)
    compare(library_of(tmp_path, "-O3", "-march=native"), models)


@pytest.mark.parametrize(
    "command",
    [
        command
        for command in ("gcc -std=c11", "g++ -std=c++17", "clang -std=c99 -Wunused", "clang++ -std=c++17")
        if shutil.which(command.split()[0])
    ],
)
def test_no_compiler_warns(written, command):
    """C99 is that of the other tests."""
    compiler, *flags = command.split()
    folder, _, _ = written
    source = folder / "warned.cpp"
    source.write_text("".join(f'#include "{path.name}"\n' for path in sorted(folder.glob("[!a]*_float*.c"))))
    language = "c++" if "++" in compiler else "c"
    run_compiler(compiler, *WARNINGS, *flags, "-fsyntax-only", "-x", language, source)


def test_activations_far_out(tmp_path):
    """f' and f'' of each by NAME_hvp where its parts overflow or cancel, to the accuracy of numbers about 1."""
    models = {}
    for dtype in TOLERANCE:
        parts = [ACTIVATIONS[name].make(param) for name, param in WITH_PARAMETERS]
        models[dtype] = model = cnn.Sequential([cnn.Concat(cnn.Linear(1, 1), *parts)], dtype=dtype, seed=0)
    write(tmp_path, {f"far_{dtype}": (model, False) for dtype, model in models.items()})
    library = library_of(tmp_path, "-O0")
    points = [0.0, 1e-30, 1e-5, 0.35, 5.0, 9.0, 21.0, 3.0, 6.0, 36.0, 87.0, 88.5, 500.0, 710.0, 1e6, 1e20, 1e37]
    for dtype, model in models.items():
        z = np.array([sign * point for sign in (1, -1) for point in points], dtype).astype(np.longdouble)
        for i, (name, param) in enumerate(WITH_PARAMETERS):
            v, one = np.eye(1 + len(WITH_PARAMETERS))[1 + i], np.ones(1)
            results = [call(library, f"far_{dtype}", "_hvp", model, x, v, one, False) for x in z[:, None]]
            g, h = (np.array([float(result[key][0]) for result in results]) for key in "gh")
            with np.errstate(all="ignore"):
                slope, curvature = (
                    f(z, param).astype(float) for f in (ACTIVATIONS[name].slope, ACTIVATIONS[name].curvature)
                )
            atol = {"float32": 4e-6, "float64": 1e-14}[dtype]  # 1 - f is a difference, multiplied by z at most
            np.testing.assert_allclose(g, slope, rtol=0, atol=atol, err_msg=f"{name} {param} {dtype}")
            smooth = ~np.isin(z, ACTIVATIONS[name].kinks)
            np.testing.assert_allclose(
                h[smooth], curvature[smooth], rtol=0, atol=atol, err_msg=f"{name} {param} {dtype}"
            )
        nan, v = np.array([np.nan]), np.ones(1 + len(WITH_PARAMETERS))
        slopes = call(library, f"far_{dtype}", "_jacobian", model, nan, v, None, False)["J"]
        np.testing.assert_array_equal(np.isnan(slopes), np.isnan(model.jacobian(nan[None])[0]))


def test_hessian_is_that_of_mpmath(tmp_path):
    """With 50 digits."""
    model = cnn.Sequential(
        [cnn.Linear(3, 8), cnn.Tanh(), cnn.Linear(8, 8), cnn.Tanh(), cnn.Linear(8, 1)], dtype="float64", seed=4
    )
    write(tmp_path, {"net": (model, False)})
    x, one = np.array([0.3, -0.7, 0.2]), np.ones(1)
    found = call(library_of(tmp_path, "-O2"), "net", "_hessian", model, x, one, x, False)
    weights = [(layer.weight, layer.bias) for layer in model.layers if isinstance(layer, cnn.Linear)]

    def value(*point):
        h = mpmath.matrix([point])
        for i, (weight, bias) in enumerate(weights):
            h = h * mpmath.matrix(weight.tolist()) + mpmath.matrix([bias.tolist()])
            h = h.apply(mpmath.tanh) if i < 2 else h
        return h[0]

    with mpmath.workdps(50):
        for i in range(3):
            orders = [int(i == k) for k in range(3)]
            np.testing.assert_allclose(
                found["g"][i], float(mpmath.diff(value, tuple(x), tuple(orders))), rtol=0, atol=1e-14
            )
            for j in range(3):
                both = tuple(n + int(j == k) for k, n in enumerate(orders))
                exact = float(mpmath.diff(value, tuple(x), both))
                np.testing.assert_allclose(found["H"][i, j], exact, rtol=0, atol=1e-12)


TRAINING = """
#include "net.h"

/* One step of gradient descent on the mean squared error of n rows; g has room for the gradient. */
void step(float *p, const float *x, const float *t, int n, float lr, float *g);
void step(float *p, const float *x, const float *t, int n, float lr, float *g)
{
    float y[2], v[2];
    int i, j;

    for (i = 0; i < PARAMETERS; i++)
        g[i] = 0.0f;
    for (i = 0; i < n; i++) {
        net(p, x + 3 * i, y);
        for (j = 0; j < 2; j++)
            v[j] = 2.0f * (y[j] - t[2 * i + j]) / (float)(2 * n);
        net_gradient(p, x + 3 * i, v, y, g);
    }
    for (i = 0; i < PARAMETERS; i++)
        p[i] -= lr * g[i];
}
"""


def test_training_in_c(tmp_path):
    """Steps in C change the parameters as those of the library do."""
    layers = [cnn.Linear(3, 9), cnn.Tanh(), cnn.LayerNorm(9), cnn.Linear(9, 2), cnn.MSELoss()]
    model = cnn.Sequential(layers, cnn.SGD(lr=0.1), seed=0)
    cnn.to_c(model, tmp_path / "net.h", derivatives=1, parameters="argument")
    (tmp_path / "step.c").write_text(TRAINING.replace("PARAMETERS", str(model.parameters.size)))
    library = library_of(tmp_path, "-O1")
    random = np.random.default_rng(0)
    x, t = random.standard_normal((16, 3)).astype("f"), random.standard_normal((16, 2)).astype("f")
    p = model.parameters.copy()
    g = np.empty_like(p)
    pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (p, x, t, g)]
    losses = []
    for _ in range(50):
        library.step(*pointers[:3], 16, ctypes.c_float(0.1), pointers[3])
        losses.append(model.train_step(x, t))
    assert losses[-1] < 0.7 * losses[0]
    np.testing.assert_allclose(p, model.parameters, rtol=0, atol=1e-5)


def test_header_says_what_it_takes(tmp_path):
    model = cnn.Sequential([cnn.Linear(17, 64), cnn.Tanh(), cnn.Linear(64, 6)], seed=0)
    cnn.to_c(model, tmp_path / "policy.h", derivatives=2)
    text = (tmp_path / "policy.h").read_text()
    said = [int(n.replace(",", "")) for n in re.findall(r"Takes (?:at most )?([\d,]+) bytes of stack", text)]
    bodies = re.split(r"^static inline void ", text, flags=re.MULTILINE)[1:]
    taken = [4 * sum(map(int, re.findall(r"^    float \w+\[(\d+)\];$", body, re.MULTILINE))) for body in bodies]
    assert said == [max(taken), *taken[1:]]
    assert max(map(len, text.splitlines())) <= 120
    assert "policy_hessian(x, v, y, g, H)" in text
    assert "gradient(" not in text
    assert not re.search(r"malloc|while|goto|static (?!const|inline)", text)


def test_needs_nothing_but_libm_and_has_no_state(written):
    folder, _, _ = written
    listed = subprocess.run(["nm", folder / "all.so"], capture_output=True, text=True, check=True).stdout
    symbols = [line.split()[-2:] for line in listed.splitlines()]
    called = {name.partition("@")[0].rstrip("f") for kind, name in symbols if kind == "U"}
    assert called <= {
        "copysign",
        "exp",
        "expm1",
        "er",
        "erfc",
        "log",
        "log1p",
        "sqrt",
        "memset",
        "memcpy",
        "__stack_chk_ail",
    }
    assert [name for kind, name in symbols if kind in "bBdDC" and "_float" in name] == []


def test_options(tmp_path, monkeypatch):
    model = cnn.Sequential([cnn.Linear(2, 3), cnn.Tanh(), cnn.Linear(3, 1)])
    path = tmp_path / "x.h"
    for wrong in (3, -1, "1", True, 1.5):
        with pytest.raises(ValueError, match=f"derivatives: expected 0, 1 or 2, got {wrong!r}"):
            cnn.to_c(model, path, derivatives=wrong)
    with pytest.raises(ValueError, match="parameters: expected one of 'const', 'argument', got 'p'"):
        cnn.to_c(model, path, parameters="p")
    with pytest.raises(ValueError, match="abi: expected one of 'c', 'casadi', got 'rust'"):
        cnn.to_c(model, path, abi="rust")
    for name, options in (("x", {}), ("x.cpp", {}), ("x.h", {"abi": "casadi"})):
        with pytest.raises(ValueError, match=r"path: expected a name that ends in \.c"):
            cnn.to_c(model, tmp_path / name, **options)
    monkeypatch.setattr(cnn.Tanh, "c_derivatives", cnn.Tanh.c_derivatives[:1])
    with pytest.raises(
        NotImplementedError, match=r"layer 1, Tanh\(\): has no second derivative in C: pass derivatives=1"
    ):
        cnn.to_c(model, path, derivatives=2)
    cnn.to_c(model, tmp_path / "y.h", derivatives=1)
    monkeypatch.setattr(cnn.Tanh, "c_derivatives", ())
    with pytest.raises(NotImplementedError, match=r"layer 1, Tanh\(\): has no derivative in C: pass derivatives=0"):
        cnn.to_c(model, path, derivatives=1)
    assert not path.exists()
