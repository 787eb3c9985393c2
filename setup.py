"""Builds the extension modules of cnn; everything else about the package stands in pyproject.toml.

src/cnn/_kernels.pyx is translated to C once. That C file is compiled once for each instruction set
and dtype, into the modules cnn._kernels_{isa}_{real}; src/cnn/_dispatch.py picks one at import.

Switches (environment):
    CNN_VARIANTS=v4_f32,v3_f64   build these modules only
    CNN_DEBUG=1                  -O1 -g, bounds and initialisation checked, guard bytes, annotated HTML
    CNN_SANITIZE=address         -O1 -g, guard bytes, address and undefined-behaviour sanitizers (make sanitize)
    CNN_SANITIZE=thread          -O1 -g, thread sanitizer (make tsan)
    CNN_ANNOTATE=1               annotated HTML beside the C file (build/cython*/src/cnn/)
"""

import copy
import glob
import os
import re
import subprocess
import sysconfig
from pathlib import Path

import numpy
from Cython import __version__ as cython_version
from Cython.Build import cythonize
from Cython.Compiler import Options
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Instruction set -> processor features. Each is a compiler flag (-mavx2) of the kernels and a
# question that _cpu.pyx asks at import, so that what is checked is what was compiled.
V3 = ["avx2", "fma", "bmi", "bmi2"]
V4 = [*V3, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"]
FEATURES = {"baseline": [], "v3": V3, "v4": V4}
TUNING = {"v4": ["-mprefer-vector-width=512"]}
REALS = {"f32": 0, "f64": 1}  # -> CNN_REAL64

# Of the machine that the package is built for (a universal2 macOS build holds the baseline only).
PLATFORM = sysconfig.get_platform()
X86_64 = PLATFORM.endswith(("x86_64", "amd64"))
ISAS = list(FEATURES) if X86_64 else ["baseline"]

DEBUG, ANNOTATE = (os.environ.get(name, "0") not in ("", "0") for name in ("CNN_DEBUG", "CNN_ANNOTATE"))
SANITIZERS = {
    "": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
}
SANITIZE = os.environ.get("CNN_SANITIZE", "")
if SANITIZE not in SANITIZERS:
    raise SystemExit(f"CNN_SANITIZE: expected address or thread, got {SANITIZE!r}")

COMPILE = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fvisibility=hidden"]
COMPILE_GCC = [
    "-fno-version-loops-for-strides",  # one loop for each tile shape, with no spilled pointers
    # what -O3 multiplies beside the kernels: a fifth of the wheel
    *("-fno-tree-vectorize", "-fno-ipa-cp-clone", "-fno-inline-functions", "-fno-unswitch-loops"),
    *("-fno-tree-pre", "-fno-code-hoisting", "-fno-split-paths"),
    *("-fno-unwind-tables", "-fno-asynchronous-unwind-tables"),
    *("-falign-functions=16", "-falign-jumps=1", "-falign-labels=1"),
    *("--param", "max-completely-peeled-insns=4000"),
    *("--param", "max-completely-peel-times=64"),
]
LINK = []
if DEBUG or SANITIZE:
    COMPILE += ["-O1", "-g", "-fno-omit-frame-pointer"]
else:
    COMPILE += ["-O3", "-g0"]
    LINK += [] if PLATFORM.startswith("macosx") else ["-s"]
COMPILE += SANITIZERS[SANITIZE]
LINK += SANITIZERS[SANITIZE]

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": DEBUG,
    "initializedcheck": DEBUG,
    "cdivision": True,
    "binding": False,
    "embedsignature": True,
    # private modules: no pickles, and one argument by position; 5 kB a module in the wheel
    "auto_pickle": False,
    "always_allow_keywords": False,
    "freethreading_compatible": False,
}

# A file whose date changes with the switches: all modules depend on it.
SETTINGS = Path("build/settings.txt")
KERNELS = sorted(glob.glob("src/cnn/kernels/**/*.*", recursive=True))
DEPENDS = [str(SETTINGS), "setup.py", *KERNELS, "src/cnn/include/cnn.h"]


def extension(name, source, macros=(), flags=()):
    return Extension(
        f"cnn.{name}",
        [source],
        include_dirs=["src/cnn", "src/cnn/kernels", "src/cnn/include", numpy.get_include()],
        define_macros=[
            ("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"),
            ("CNN_GUARDS", int(DEBUG or SANITIZE == "address")),
            *macros,
        ],
        extra_compile_args=[*COMPILE, *flags],
        extra_link_args=LINK,
        depends=DEPENDS,
    )


def cpu_extension():
    """cnn._cpu, compiled for the baseline: asks which instruction sets the processor can run."""
    asks = {isa: " && ".join(f'__builtin_cpu_supports("{feature}")' for feature in FEATURES[isa]) for isa in ISAS}
    macros = [(f"CNN_RUNS_{isa.upper()}", f"({ask})") for isa, ask in asks.items() if ask]
    return extension("_cpu", "src/cnn/_cpu.pyx", macros)


def kernel_extensions():
    """cnn._kernels_{isa}_{real}: one source, told apart by flags and the init function's name."""
    wanted = os.environ.get("CNN_VARIANTS", "").replace(",", " ").split()
    known = {f"{isa}_{real}": (isa, real) for isa in ISAS for real in REALS}
    if unknown := set(wanted) - set(known):
        raise SystemExit(f"CNN_VARIANTS: unknown {sorted(unknown)}; this platform has {[*known]}")
    return [
        extension(
            f"_kernels_{variant}",
            "src/cnn/_kernels.pyx",
            macros=[
                ("CNN_REAL64", REALS[real]),
                ("CNN_MODULE", f"_kernels_{variant}"),
                ("PyInit__kernels", f"PyInit__kernels_{variant}"),
            ],
            flags=[*(f"-m{feature}" for feature in FEATURES[isa]), *TUNING.get(isa, [])],
        )
        for variant, (isa, real) in known.items()
        if variant in (wanted or known)
    ]


class BuildExt(build_ext):
    """Translates each .pyx once, then compiles the modules, two at a time."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or 2

    def run(self):
        self.write_settings()
        build_dir = "build/cython-debug" if DEBUG else "build/cython"
        Options.docstrings = DEBUG  # of private functions and classes: six copies in the wheel
        names = sorted({extension.sources[0] for extension in self.extensions})
        translated = cythonize(
            [Extension(f"cnn.{os.path.basename(name)[:-4]}", [name]) for name in names],
            build_dir=build_dir,
            compiler_directives=DIRECTIVES,
            annotate=ANNOTATE or DEBUG,
            force=ANNOTATE or bool(self.force),
        )
        c_file = {name: module.sources[0] for name, module in zip(names, translated, strict=True)}
        for path in c_file.values():
            self.mark_cold(path)
        for extension in self.extensions:
            extension.sources = [c_file[extension.sources[0]]]
        super().run()

    def mark_cold(self, path):
        """Have the functions that Python calls, and those that make a program, compiled for size, a third of the code;
        but not those of a step and of a prediction."""
        cold = "__attribute__((cold)) "

        def marked(function):
            hot = function[1].endswith(("train_step", "train_batches", "predict", "inputs", "targets"))
            return function[0] if hot else cold + function[0]

        code = Path(path).read_text()
        if cold not in code:
            made = r"__pyx_f_\w*(?:compile_network|define|share_memory|unpack|packed|as_block|as_out|counters|_place)"
            made += (
                r"|__pyx_tp_new_vectorcall\w*|__pyx_f_\w*_(?:\w*jets?(?:_\w+)?|activation_slopes|batch_norm_shard_\w+)"
                r"|__pyx_f_\w*Derivatives_\w+"
            )
            called = rf"^static (?:PyObject \*|PyArrayObject \*|int |void )(__pyx_(?:pw|pf|pymod_exec)\w*|{made})(?=\()"
            code, count = re.subn(called, marked, code, flags=re.MULTILINE)
            if count < 2:  # the module's own and a function's at least: Cython names them in another way now
                raise SystemExit(f"{path}: expected functions that Python calls, found {count}")
            Path(path).write_text(code)

    def write_settings(self):
        settings = f"{cython_version} {numpy.__version__} {DEBUG} {SANITIZE}\n" + "".join(
            f"{name}={os.environ.get(name, '')}\n" for name in ("CC", "CFLAGS", "LDFLAGS")
        )
        if not SETTINGS.exists() or SETTINGS.read_text() != settings:
            SETTINGS.parent.mkdir(exist_ok=True)
            SETTINGS.write_text(settings)

    def build_extensions(self):
        if self.compiler.compiler_type != "unix":
            raise SystemExit(f"cnn needs GCC or Clang, not {self.compiler.compiler_type}")
        command = [*self.compiler.compiler_so, "--version"]
        version = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        if "Free Software Foundation" in version:
            for extension in self.extensions:
                extension.extra_compile_args += COMPILE_GCC
        super().build_extensions()

    def build_extension(self, ext):
        # A build_temp for each module, since they share a source; a copy, since this is a thread.
        job = copy.copy(self)
        job.build_temp = os.path.join(self.build_temp, ext.name)
        super(BuildExt, job).build_extension(ext)


setup(ext_modules=[cpu_extension(), *kernel_extensions()], cmdclass={"build_ext": BuildExt})
