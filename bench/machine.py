"""The measuring process and the machine: threads and cores, names, versions.

`pin` must come before NumPy or any other library is imported: thread pools read the environment once.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = {
    "numpy": "NumPy",
    "torch": "PyTorch",
    "jax": "JAX",
    "scikit-learn": "scikit-learn",
    "onnxruntime": "ONNX Runtime",
}


def cores() -> list[int]:
    """The cores that this process may use, the last first: the first often serves the system's interrupts."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0), reverse=True)
    return list(range(os.cpu_count() or 1))


def pin(threads: int = 1, isa: str | None = None) -> None:
    """Hold this process, whatever library it imports later, to so many threads and as many cores.

    isa "v3" keeps every library that has a switch for it to AVX2.
    """
    for name in ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM", "NUMEXPR", "CNN"):
        os.environ[f"{name}_NUM_THREADS" if name != "VECLIB_MAXIMUM" else "VECLIB_MAXIMUM_THREADS"] = str(threads)
    flags = []
    if threads == 1:
        flags += ["--xla_cpu_multi_thread_eigen=false", "intra_op_parallelism_threads=1"]
    if isa == "v3":
        flags.append("--xla_cpu_max_isa=AVX2")
        os.environ |= {
            "CNN_ISA": "v3",
            "OPENBLAS_CORETYPE": "Haswell",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "ATEN_CPU_CAPABILITY": "avx2",
        }
    os.environ["XLA_FLAGS"] = " ".join(flags)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(cores()[:threads]))


def describe() -> dict[str, str]:
    """Names of processor, system and Python."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields: dict[str, str] = {}
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
        name = fields.get("model name", name)
        if "cpu family" in fields:
            name += f" (family {fields['cpu family']}, model {fields.get('model', '?')})"
    return {
        "processor": name,
        "cores": str(len(cores())),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Version by name, of cnn and of what is installed beside it."""
    import cnn

    found = {"cnn": cnn.__version__}
    for package, name in PACKAGES.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            continue
    return found
