"""The build and the import: which kernels are picked, what errors say, what an import leaves alone.

What depends on the state of a fresh interpreter runs in a subprocess.
"""

import os
import platform
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import cnn
from cnn import _cpu, _dispatch, _threads

RUNNABLE = _cpu.supported()
FEATURES = {
    "v3": {"avx2", "fma", "bmi1", "bmi2"},
    "v4": {"avx2", "fma", "bmi1", "bmi2"} | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"},
}


def run(code, **environment):
    """Run `code` in a fresh interpreter with some environment variables set, or removed by None."""
    env = {**os.environ, "PYTHONPATH": str(Path(cnn.__file__).parents[1])}
    for name, value in environment.items():
        env.pop(name, None)
        if value is not None:
            env[name] = value
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def output(code, **environment):
    result = run(code, **environment)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout.strip()


def last_line_of_error(code, **environment):
    result = run(code, **environment)
    assert result.returncode == 1
    return result.stderr.strip().splitlines()[-1]


def test_package_under_test():
    """`make test` tests the installed wheel and says so by CNN_TEST_WHEEL."""
    package = Path(cnn.__file__).parent
    if os.environ.get("CNN_TEST_WHEEL"):
        assert package == Path(sysconfig.get_path("platlib"), "cnn")
        source = Path(__file__).parents[1] / "src" / "cnn"
        kinds = {".py", ".pyi", ".pxd", ".h", ".f90", ".typed"}  # no sources of the modules
        modules = {f"_kernels_{isa}_{real}" for isa in ("baseline", "v3", "v4") for real in ("f32", "f64")} | {"_cpu"}
        if platform.machine() not in ("x86_64", "AMD64"):
            modules = {name for name in modules if not re.search("v[34]", name)}
        wanted = {str(path.relative_to(source)) for path in source.rglob("*") if path.suffix in kinds}
        wanted = {path for path in wanted if not path.startswith("kernels")}
        wanted |= {name + sysconfig.get_config_var("EXT_SUFFIX") for name in modules}
        files = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
        assert {path for path in files if not path.endswith(".pyc")} == wanted
        assert output("import importlib.metadata as m; print(m.version('cnn'))") == cnn.__version__
    else:
        assert package == Path(__file__).parents[1] / "src" / "cnn"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the names of glibc's versions")
def test_modules_need_an_old_c_library_alone():
    """manylinux_2_28: no name that came to glibc after 2.28, whatever the system that built them; nothing but glibc."""
    modules = list(Path(cnn.__file__).parent.glob("*.so"))
    assert modules
    for module in modules:
        content = module.read_bytes()
        versions = {tuple(map(int, found)) for found in re.findall(rb"GLIBC_(\d+)\.(\d+)", content)}
        assert max(versions, default=(0, 0)) <= (2, 28), module
        assert not re.search(rb"GLIBCXX|GOMP|libgomp|libiomp|libstdc", content), module
        libraries = set(re.findall(rb"\0(lib[\w+-]+\.so[.\d]*)(?=\0)", content))
        assert libraries <= {b"libc.so.6", b"libm.so.6", b"libpthread.so.0"}, (module, libraries)


def test_instruction_sets_agree_with_the_operating_system():
    if sys.platform == "linux":
        flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
        runs = [isa for isa in ("v4", "v3") if flags >= FEATURES[isa]]
        assert (*runs, "baseline") == RUNNABLE
    assert RUNNABLE in (("v4", "v3", "baseline"), ("v3", "baseline"), ("baseline",))
    assert _dispatch.AVAILABLE == RUNNABLE


@pytest.mark.parametrize("isa", [*RUNNABLE, None, ""])
def test_isa_is_honoured(isa):
    """Only kernels of the one instruction set are loaded; the best one where none is named."""
    code = (
        "import sys, cnn; from cnn import _dispatch as d;"
        "print(d.ISA, *(name for name in sys.modules if name.startswith('cnn._kernels_')),"
        " d.kernels('float32').__name__, d.kernels('float64').__name__)"
    )
    expected = isa or RUNNABLE[0]
    f32, f64 = f"cnn._kernels_{expected}_f32", f"cnn._kernels_{expected}_f64"
    assert output(code, CNN_ISA=isa).split() == [expected, f32, f32, f64]


@pytest.mark.parametrize("isa", ["v5", "V3", " ", "baseline,v3"])
def test_unknown_isa(isa):
    assert last_line_of_error("import cnn", CNN_ISA=isa) == (
        f"ImportError: CNN_ISA={isa!r}: unknown instruction set "
        f"(known: v4, v3, baseline; can run here: {', '.join(RUNNABLE)})"
    )


@pytest.mark.parametrize("isa", ["v3", "v4"])
def test_isa_that_the_processor_cannot_run(isa):
    """A processor with the baseline alone is played by a stand-in for cnn._cpu."""
    code = (
        "import sys, types; cpu = sys.modules['cnn._cpu'] = types.ModuleType('cnn._cpu');"
        "cpu.COMPILER = ''; cpu.supported = lambda: ('baseline',);"
        "from cnn._dispatch import ISA; print(ISA)"
    )
    assert last_line_of_error(code, CNN_ISA=isa) == (
        f"ImportError: CNN_ISA='{isa}': this processor cannot run it (known: v4, v3, baseline; can run here: baseline)"
    )
    assert output(code, CNN_ISA=None) == "baseline"


def test_missing_kernels_are_an_error():
    """No fall-back to a slower instruction set."""
    name = f"cnn._kernels_{RUNNABLE[0]}_f32"
    code = f"import sys; sys.modules['{name}'] = None; import cnn"
    assert name in last_line_of_error(code, CNN_ISA=None)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernels_accepts_names_dtypes_and_scalar_types(dtype):
    module = _dispatch.kernels(dtype)
    assert module.__name__ == f"cnn._kernels_{_dispatch.ISA}_f{dtype[-2:]}"
    assert _dispatch.kernels(np.dtype(dtype)) is module
    assert _dispatch.kernels(getattr(np, dtype)) is module


@pytest.mark.parametrize(
    ("dtype", "error"),
    [
        ("float16", ValueError),
        ("f4", ValueError),
        (np.int32, ValueError),
        (float, ValueError),
        (np.dtype("float32").newbyteorder(), ValueError),
        (None, TypeError),
        (32, TypeError),
        (["float32"], TypeError),
    ],
    ids=str,
)
def test_kernels_rejects(dtype, error):
    message = re.escape(f"dtype: expected float32 or float64, got {dtype!r}")
    with pytest.raises(error, match=f"^{message}$"):
        _dispatch.kernels(dtype)


def test_show_config():
    lines = output("import cnn; cnn.show_config()", CNN_ISA="baseline").splitlines()
    assert lines[0] == f"cnn {cnn.__version__}"
    facts = dict(re.fullmatch(r"  (\S+(?: \S+)*)  +(\S.*)", line).groups() for line in lines[1:])
    assert facts == {
        "instruction set": f"baseline (available: {', '.join(RUNNABLE)})",
        "dtypes": "float32, float64",
        "threads": f"{cnn.get_num_threads()} (processors for this process: {_threads.available()})",
        "compiler": _cpu.COMPILER,
        "NumPy": np.__version__,
        "Python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    assert re.match(r"(GCC|Clang) \d+\.\d+", facts["compiler"])


def test_import_loads_no_optional_package():
    code = "import sys, cnn; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = set(output(code).split())
    assert {"cnn", "numpy"} <= loaded
    assert not loaded & {"safetensors", "matplotlib", "tqdm", "sklearn", "scipy", "torch", "jax"}


def test_import_loads_no_module_that_few_need():
    """They would take as long to load as the library."""
    code = "import sys, numpy; before = set(sys.modules); import cnn; print(*sorted(set(sys.modules) - before))"
    assert not set(output(code).split()) & {"subprocess", "logging", "html", "shutil", "hashlib"}


@pytest.mark.parametrize("isa", RUNNABLE)
def test_import_keeps_denormals(isa):
    """A library linked with -ffast-math would make the whole process flush them to zero."""
    code = (
        "import numpy as np, cnn; from cnn import _dispatch as d; d.kernels('float64');"
        "small = np.array([1.4e-45], 'f4'), np.array([5e-324], 'f8');"
        "print(*((x * x.dtype.type(1))[0] > 0 for x in small),"
        " (np.finfo('f4').tiny / np.float32(2)) > 0, float('2.3e-308') / 4 > 0)"
    )
    assert output(code, CNN_ISA=isa) == "True True True True"
