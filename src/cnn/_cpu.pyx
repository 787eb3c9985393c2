"""The instruction sets that this processor and operating system can run.

Compiled for the baseline, so that it can be imported everywhere. CNN_RUNS_V3 and CNN_RUNS_V4 come
from setup.py: questions for exactly the processor features that the kernels of that name are
compiled with. Only feature flags are asked, never the processor's maker or model. An instruction
set whose registers the operating system does not save is not reported (__builtin_cpu_supports looks
at XCR0 as well).
"""

cdef extern from *:
    """
    #ifndef CNN_RUNS_V3
    #define CNN_RUNS_V3 0
    #endif
    #ifndef CNN_RUNS_V4
    #define CNN_RUNS_V4 0
    #endif
    #ifdef __clang__
    #define CNN_COMPILER "Clang " __clang_version__
    #else
    #define CNN_COMPILER "GCC " __VERSION__
    #endif
    """
    const char* CNN_COMPILER
    bint CNN_RUNS_V3
    bint CNN_RUNS_V4

COMPILER = CNN_COMPILER.decode("ascii").strip()


def supported():
    """The instruction sets of this build that can run here, best first."""
    available = ["baseline"]
    if CNN_RUNS_V3:
        available.insert(0, "v3")
    if CNN_RUNS_V4:
        available.insert(0, "v4")
    return tuple(available)
