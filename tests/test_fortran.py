"""cnn.f90: Fortran calls what `to_c` writes, in both precisions, with constants and with parameters; it also trains."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from compilers import needs_gfortran

import cnn

pytestmark = needs_gfortran

# Reads x, v, dx of one row, and the parameters; writes what each function gives, in the order of `expected`.
PROGRAM = """
program check
    use, intrinsic :: iso_c_binding, only: KIND
    use cnn
    implicit none
    procedure(cnn_value_FXX), bind(C, name="net") :: net
    procedure(cnn_jacobian_FXX), bind(C, name="net_jacobian") :: net_jacobian
    procedure(cnn_product_FXX), bind(C, name="net_vjp") :: net_vjp
    procedure(cnn_product_FXX), bind(C, name="net_jvp") :: net_jvp
    procedure(cnn_hvp_FXX), bind(C, name="net_hvp") :: net_hvp
    procedure(cnn_hessian_FXX), bind(C, name="net_hessian") :: net_hessian
    procedure(cnn_value_p_FXX), bind(C, name="netp") :: netp
    procedure(cnn_jacobian_p_FXX), bind(C, name="netp_jacobian") :: netp_jacobian
    procedure(cnn_product_p_FXX), bind(C, name="netp_vjp") :: netp_vjp
    procedure(cnn_product_p_FXX), bind(C, name="netp_jvp") :: netp_jvp
    procedure(cnn_hvp_p_FXX), bind(C, name="netp_hvp") :: netp_hvp
    procedure(cnn_hessian_p_FXX), bind(C, name="netp_hessian") :: netp_hessian
    procedure(cnn_gradient_FXX), bind(C, name="netp_gradient") :: netp_gradient
    real(KIND) :: p(PARAMETERS), x(3), v(2), dx(3), y(2), j(3, 2), g(3), dy(2), h(3), hess(3, 3), loss, grad(PARAMETERS)
    real(KIND) :: xs(3, 4), ys(2, 4)
    type(cnn_network_FXX) :: constant
    type(cnn_trainable_FXX) :: learner
    integer :: i
    read *, p, x, v, dx
    call net_jacobian(x, y, j)
    print *, y, j
    call net_vjp(x, v, y, g)
    call net_jvp(x, dx, y, dy)
    print *, g, dy
    call net_hvp(x, v, dx, y, g, h)
    print *, g, h
    call net_hessian(x, v, y, g, hess)
    print *, g, hess
    call netp_jacobian(p, x, y, j)
    print *, y, j
    call netp_vjp(p, x, v, y, g)
    call netp_jvp(p, x, dx, y, dy)
    print *, g, dy
    call netp_hvp(p, x, v, dx, y, g, h)
    print *, g, h
    call netp_hessian(p, x, v, y, g, hess)
    print *, g, hess
    xs = reshape([(i * x, i=1, 4)], [3, 4])
    constant = cnn_network_FXX(3, 2, net)
    call constant%predict(xs, ys)
    print *, ys
    learner = cnn_trainable_FXX(3, 2, p, netp, netp_gradient)
    call learner%predict(xs, ys)
    print *, ys
    call learner%loss_and_grad(xs, 0 * ys, loss, grad)
    print *, loss, grad
end program
"""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_interface(dtype, tmp_path):
    layers = [cnn.Linear(3, 5), cnn.Tanh(), cnn.LayerNorm(5), cnn.Linear(5, 2), cnn.MSELoss()]
    model = cnn.Sequential(layers, dtype=dtype, seed=0)
    cnn.to_c(model, tmp_path / "net.c", derivatives=2)
    cnn.to_c(model, tmp_path / "netp.c", derivatives=2, parameters="argument")
    kind, suffix = {"float32": ("c_float", "f32"), "float64": ("c_double", "f64")}[dtype]
    text = PROGRAM.replace("KIND", kind).replace("FXX", suffix).replace("PARAMETERS", str(model.parameters.size))
    (tmp_path / "check.f90").write_text(text)
    sources = [Path(cnn.get_include(), "cnn.f90"), "check.f90", "net.c", "netp.c"]
    flags = ["-std=f2018", "-Wall", "-Wextra", "-pedantic", "-Werror", "-Wno-compare-reals"]
    objects = []
    for source in sources:  # one by one: the flags are Fortran's alone
        compiler = ["gcc", "-O1"] if str(source).endswith(".c") else ["gfortran", *flags]
        objects.append(Path(source).stem + ".o")
        subprocess.run([*compiler, "-c", source, "-o", objects[-1]], cwd=tmp_path, check=True)
    subprocess.run(["gfortran", *objects, "-o", "check", "-lm"], cwd=tmp_path, check=True)

    random = np.random.default_rng(0)
    x, v, d = (random.standard_normal((1, n)).astype(dtype) for n in (3, 2, 3))
    given = " ".join(str(number) for a in (model.parameters, x, v, d) for number in a.ravel())
    result = subprocess.run([tmp_path / "check"], input=given, capture_output=True, text=True, check=True)
    g = model.vjp(x, v)
    hessian = [model.hvp_input(x, unit[None].astype(dtype), grad_output=v) for unit in np.eye(3)]
    one = [
        model.predict(x),
        model.jacobian(x),
        g,
        model.jvp(x, d),
        g,
        model.hvp_input(x, d, grad_output=v),
        g,
        *hessian,
    ]
    rows = np.arange(1, 5, dtype=dtype)[:, None] * x
    loss, gradient = model.loss_and_grad(rows, np.zeros((4, 2), dtype))
    expected = [*one, *one, model.predict(rows), model.predict(rows), np.array(loss), gradient]
    found = np.array(result.stdout.split(), float)
    tolerance = {"float32": 2e-5, "float64": 1e-12}[dtype]
    np.testing.assert_allclose(found, np.concatenate([a.ravel() for a in expected]), rtol=tolerance, atol=tolerance)
