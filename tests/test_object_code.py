"""The compiled kernels, as objdump shows them: what makes the matrix products fast is in the object code.

The inner loop of a tile is to hold its sums in registers and to consist of nothing but loads, broadcasts and fused
multiply-adds. A compiler that puts the sums on the stack, or does not fuse, gives right results several times slower,
and no other test would see it.
"""

import importlib.util
import platform
import re
import shutil
import subprocess
from typing import NamedTuple

import pytest

OBJDUMP = shutil.which("objdump")
pytestmark = [
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="these kernels are of x86-64"),
    pytest.mark.skipif(OBJDUMP is None, reason="objdump (of binutils, as the compiler needs it) is not on PATH"),
]
# TILE_MR and TILE_NV of simd.h, and the registers that hold the sums.
TILES = {"v4": (8, 3, "zmm"), "v3": (6, 2, "ymm")}
MODULES = [(isa, real) for isa in TILES for real in ("f32", "f64")]
SHAPES = [
    (isa, real, mr, nv)
    for isa, real in MODULES
    for mr in range(1, TILES[isa][0] + 1)
    for nv in range(1, TILES[isa][1] + 1)
]


class Loop(NamedTuple):
    """An innermost loop: what it does, counted, and its text."""

    fused: int  # multiply-adds of whole registers
    sums: int  # registers that they add to
    broadcasts: int  # of a number in memory
    loads: int  # addresses of whole vectors that are read, also as an operand of a multiply-add
    stack: int  # instructions that refer to the stack
    text: str


def code_of(isa, real):
    """The module's instructions, as [(address, name, operands)]."""
    spec = importlib.util.find_spec(f"cnn._kernels_{isa}_{real}")
    assert spec is not None, f"the kernels {isa}_{real} are not built"
    command = [OBJDUMP, "-d", "--no-show-raw-insn", spec.origin]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"^\s+([0-9a-f]+):\s+(\S+)[ \t]*([^#<\n]*)", text, re.MULTILINE)
    code = [(int(address, 16), name, operands.strip()) for address, name, operands in lines]
    assert len(code) > 10_000
    return code


def innermost_loops(code):
    """The stretches of code from the target of a jump back to that jump, with no other jump or call between."""
    index = {address: i for i, (address, _, _) in enumerate(code)}
    for i, (_, name, operands) in enumerate(code):
        if not name.startswith("j") or not re.fullmatch("[0-9a-f]+", operands):
            continue
        start = index.get(int(operands, 16), i + 1)
        body = code[start:i]
        if 0 < len(body) < 200 and not any(inner.startswith(("j", "call", "ret")) for _, inner, _ in body):
            yield body


def counted(body, register):
    fused = [operands for _, name, operands in body if re.match(r"vf(n?m(add|sub))", name) and register in operands]
    # Spills are addressed from the stack pointer, or below a frame pointer.
    on_stack = [bool(re.search(r"\(%rsp|-0x[0-9a-f]+\(%rbp\)", operands)) for _, _, operands in body]
    broadcasts, loads = 0, set()
    for (_, name, operands), spill in zip(body, on_stack, strict=True):
        read = re.search(r"([-\w]*\(%[^)]*\))(\{1to\d+\})?,", operands)  # AT&T order: what is written comes last
        if spill or not name.startswith("v") or not read:
            continue
        if name.startswith("vbroadcast") or read[2]:
            broadcasts += 1
        else:
            loads.add(read[1])
    return Loop(
        fused=len(fused),
        sums=len({operands.rpartition(",")[2] for operands in fused}),
        broadcasts=broadcasts,
        loads=len(loads),
        stack=sum(on_stack),
        text="\n".join(f"{address:x}: {name} {operands}" for address, name, operands in body),
    )


@pytest.fixture(scope="module")
def loops():
    """The innermost loops of a module that multiply-add; read once."""
    known = {}

    def read(isa, real):
        if (isa, real) not in known:
            bodies = innermost_loops(code_of(isa, real))
            every = [counted(body, TILES[isa][2]) for body in bodies]
            known[isa, real] = [loop for loop in every if loop.fused]
        return known[isa, real]

    return read


@pytest.mark.parametrize(("isa", "real", "mr", "nv"), SHAPES)
def test_inner_loop_of_each_tile(loops, isa, real, mr, nv):
    """One step of k: nv vectors of B, mr numbers of A, mr * nv multiply-adds into as many registers. No stack.

    Clang repeats that several times in a turn of the loop: times (broadcasts * loads) / multiply-adds.
    """
    found = [
        loop
        for loop in loops(isa, real)
        if loop.sums == mr * nv
        and loop.fused % (mr * nv) == 0
        and loop.broadcasts * nv == loop.loads * mr
        and loop.broadcasts * loop.loads * mr * nv == loop.fused**2
    ]
    assert found, f"no loop with {mr} x {nv} fused multiply-adds"
    for loop in found:
        assert loop.stack == 0, f"the loop of the {mr} x {nv} tile uses the stack:\n{loop.text}"


@pytest.mark.parametrize(("isa", "real"), MODULES)
def test_largest_tile(loops, isa, real):
    """No other loop sums in more registers: the tiles above are all there are."""
    mr, nv, _ = TILES[isa]
    assert max(loop.sums for loop in loops(isa, real)) == mr * nv


@pytest.mark.parametrize(("isa", "real"), [*MODULES, ("baseline", "f32"), ("baseline", "f64")])
def test_the_processors_mode_is_left_alone(isa, real):
    """No flush of denormals to zero (MXCSR) and no x87: what -ffast-math would bring."""
    names = {name for _, name, _ in code_of(isa, real)}
    assert not names & {"ldmxcsr", "vldmxcsr", "stmxcsr", "vstmxcsr", "fldcw", "xrstor"}
    arithmetic = {"fadd", "fsub", "fmul", "fdiv", "fld", "fsqrt", "fsin", "fcos", "f2xm1", "fyl2x"}
    assert not {re.sub(r"(s|l|t|p)$", "", name) for name in names if name.startswith("f")} & arithmetic


@pytest.mark.parametrize(("isa", "real"), MODULES)
def test_vectors_are_as_wide_as_they_should_be(isa, real):
    """v3 has no AVX-512: it would fail on the processors that it is for."""
    registers = " ".join(operands for _, _, operands in code_of(isa, real))
    assert ("%zmm" in registers) == (isa == "v4")
    assert "%ymm" in registers
    if isa == "v3":
        assert not re.search(r"%[xy]mm(1[6-9]|2\d|3[01])\b|%k[0-7]\b", registers)
