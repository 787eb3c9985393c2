"""The limit: fused multiply-adds that one core does in registers, measured, in FLOP/s.

    python bench/peak.py

A few lines of C are compiled with the machine's C compiler ($CC or gcc) and called through ctypes. Each loop turn
does one multiply-add on each of 12 or more independent accumulators, which covers the instruction's latency (4
or 5 cycles, two a cycle); an empty asm statement keeps every accumulator in its register.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SOURCE = r"""
typedef REAL vf __attribute__((vector_size(WIDTH)));

#if ACCUMULATORS == 24
#define ALL(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) \
               F(12) F(13) F(14) F(15) F(16) F(17) F(18) F(19) F(20) F(21) F(22) F(23)
#else
#define ALL(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11)
#endif

#define DECLARE(i) vf c##i = {0};
#define MULTIPLY_ADD(i) c##i = c##i * a + b; __asm__ volatile("" : REGISTER(c##i));
#define SUM(i) total += c##i;

/* turns * ACCUMULATORS vector multiply-adds; returns something that depends on them all. */
REAL run(long turns)
{
    vf a = {0}, b = {0}, total = {0};
    a += (REAL)0.999;
    b += (REAL)0.001;
    __asm__ volatile("" : REGISTER(a), REGISTER(b));
    ALL(DECLARE)
    for (long i = 0; i < turns; i++) {
        ALL(MULTIPLY_ADD)
    }
    ALL(SUM)
    return total[0];
}
"""

# (bytes of a vector, accumulators, compiler flags, asm constraint of a vector register)
VECTORS = {
    "v4": (64, 24, ["-mavx512f", "-mfma"], '"+v"'),
    "v3": (32, 12, ["-mavx2", "-mfma"], '"+x"'),
    "baseline": (16, 12, [], '"+x"'),
}
NEON = (16, 24, [], '"+w"')


class Peak:
    """The loop for one instruction set and dtype. Calling it for `seconds` gives the best FLOP/s so far; `turn` is a
    stretch of it, to be timed like a contender's.

    Raises
    ------
    RuntimeError
        If there is no C compiler.
    """

    def __init__(self, isa: str, dtype: str):
        x86 = platform.machine() in ("x86_64", "AMD64")
        width, accumulators, flags, constraint = VECTORS[isa] if x86 else NEON
        size = {"float32": 4, "float64": 8}[dtype]
        command = shlex.split(os.environ.get("CC", "gcc"))
        if shutil.which(command[0]) is None:
            raise RuntimeError("the peak of the processor is measured in C: set CC to a compiler, or install gcc")
        with tempfile.TemporaryDirectory() as folder:
            source, library = Path(folder, "peak.c"), Path(folder, "peak.so")
            source.write_text(SOURCE)
            subprocess.run(
                [
                    *command,
                    *("-O2", "-shared", "-fPIC", "-ffp-contract=fast", *flags),
                    f"-DREAL={'float' if size == 4 else 'double'}",
                    f"-DWIDTH={width}",
                    f"-DACCUMULATORS={accumulators}",
                    f"-DREGISTER={constraint}",
                    *(str(source), "-o", str(library)),
                ],
                check=True,
            )
            self._run = ctypes.CDLL(str(library)).run
        self._run.argtypes = [ctypes.c_long]
        self._run.restype = ctypes.c_float if size == 4 else ctypes.c_double
        self._flops = 2 * accumulators * width // size  # a turn
        self.best = 0.0

    def __call__(self, seconds: float = 0.05) -> float:
        turns = 50_000
        stop = time.perf_counter() + seconds
        while (start := time.perf_counter()) < stop:
            self._run(turns)
            self.best = max(self.best, turns * self._flops / (time.perf_counter() - start))
        return self.best

    def turn(self, seconds: float) -> tuple[Callable[[], float], int]:
        """A call that takes about `seconds`, and its FLOPs."""
        turns = max(1, round(seconds * (self.best or self(0.01)) / self._flops))
        return lambda: self._run(turns), turns * self._flops


def main() -> None:
    import machine

    machine.pin()
    import cnn
    from cnn._dispatch import AVAILABLE

    print(f"{machine.describe()['processor']}, one core, cnn {cnn.__version__}")
    for isa in AVAILABLE:
        for dtype in "float32", "float64":
            print(f"{isa:8}  {dtype}  {Peak(isa, dtype)(1.0) / 1e9:.1f} GFLOP/s")


if __name__ == "__main__":
    main()
