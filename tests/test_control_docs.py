"""docs/control.md: its code runs or compiles, and its links lead somewhere."""

import re
import subprocess
from pathlib import Path

from compilers import needs_gfortran

import cnn

PAGE = Path(__file__).parents[1] / "docs" / "control.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_python_and_c(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, casadi, _ = blocks("python")
    names = {}
    exec(first + casadi, names)
    model = names["model"]
    for function in re.findall(r"^\| `(net\w*\([^`]*)`", PAGE.read_text(), re.MULTILINE):
        if "gradient" not in function:
            assert f" *     {function}\n" in Path("net.h").read_text()
    cnn.to_c(model, "net.h", derivatives=1, parameters="argument")
    assert "net_gradient(p, x, v, y, dp)" in Path("net.h").read_text()
    (text,) = blocks("c")
    Path("step.c").write_text(text)
    command = ["gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", f"-DN={model.parameters.size}", "-c", "step.c"]
    subprocess.run(command, check=True)
    subprocess.run(re.search(r"^gcc .* f\.c .*$", PAGE.read_text(), re.MULTILINE).group().split(), check=True)
    exported = subprocess.run(["nm", "-D", "f.so"], capture_output=True, text=True, check=True).stdout
    assert {"f", "jac_f", "adj1_f", "jac_adj1_f", "jac_jac_f"} <= set(re.findall(r" T (\w+)", exported))


@needs_gfortran
def test_fortran(tmp_path):
    (text,) = blocks("fortran")
    use, *declared, assigned, called = text.splitlines()
    sizes = "real(c_double) :: x(8, 2) = 0, y(3, 2)"
    kinds = "use, intrinsic :: iso_c_binding, only: c_double"
    lines = ["program p", use, kinds, *declared, sizes, assigned, called, "end program"]
    (tmp_path / "p.f90").write_text("\n".join(lines) + "\n")
    command = ["gfortran", "-fsyntax-only", "-Wall", Path(cnn.get_include(), "cnn.f90"), "p.f90"]
    subprocess.run(command, cwd=tmp_path, check=True)


def test_links():
    for link in re.findall(r"\]\(([^)#:]+)\)", PAGE.read_text()):
        assert (PAGE.parent / link).is_file(), link
