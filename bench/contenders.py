"""The contenders: each library in the form that serves it best, behind one protocol.

A contender prepares a workload's problem once and returns a `Run`. Calling the run does one unit of measurement,
`run.steps` steps, and returns its answer: the mean loss ("fit" and "step"), the loss and the gradient
("gradient"), the outputs ("predict"). `run.parameters()` gives the parameters as one vector. Everything that a
user would do once (building, compiling, moving data) is done in `prepare`; what is left is what is timed.

Where a library has several forms and none is always the fastest, `prepare` tries them and keeps the fastest.
Libraries are imported in `prepare`, so that only the ones that are measured are loaded.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from problems import ADAM, LR, Problem, flatten
from workloads import Workload


@dataclass
class Run:
    """One contender on one problem, ready to be timed."""

    call: Callable[[], Any]
    parameters: Callable[[], np.ndarray]
    steps: int
    restart: Callable[[], None] = lambda: None  # back to the initial parameters
    form: str = ""  # which of several was taken
    tried: dict[str, float] = field(default_factory=dict)  # form -> seconds a step, where several were tried

    def __call__(self):
        return self.call()


class Contender:
    """What the runner knows of a library."""

    label: str
    package: str
    sparse = False  # takes CSR
    python_loop = True  # each step costs a trip through Python: a unit is shorter
    epsilon_hat = False  # Adam's epsilon is added to sqrt(v) before the bias is corrected, not after

    def __init__(self, threads: int = 1):
        self.threads = threads

    def can(self, workload: Workload) -> bool:
        """Whether the library is installed and has this."""
        return find_spec(self.package) is not None and (self.sparse or not workload.entries)

    def prepare(self, workload: Workload, problem: Problem, form: str = "") -> Run:
        """form: one of the forms there are, without trying which is the fastest."""
        raise NotImplementedError


def batches(workload: Workload, problem: Problem) -> list[slice]:
    """The rows of each step of a unit."""
    if len(problem.x) == workload.batch:
        return [slice(0, workload.batch)] * problem.steps
    return [slice(i, i + workload.batch) for i in range(0, len(problem.x), workload.batch)]


def fastest(forms: dict[str, Callable[[], Run]]) -> Run:
    """The run whose call takes the least time, each being tried three times after a first."""
    runs, tried = {}, {}
    for name, make in forms.items():
        runs[name] = run = make()
        run.form = name
        if len(forms) == 1:
            return run
        run()
        times = []
        for _ in range(3):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        tried[name] = min(times) / run.steps
    chosen = runs[min(tried, key=lambda name: tried[name])]
    chosen.tried = tried
    chosen.restart()
    return chosen


# ---- cnn ---------------------------------------------------------------------------------------------------------


class Cnn(Contender):
    """The library: NumPy arrays in, NumPy arrays out, through its public methods."""

    label = "cnn"
    package = "cnn"
    sparse = True
    python_loop = False

    @staticmethod
    def model(workload: Workload, problem: Problem) -> Any:
        import cnn

        activation = {"relu": cnn.ReLU, "tanh": cnn.Tanh}[workload.activation]
        layers: list = []
        for weight, bias in problem.weights:
            layer = [cnn.Linear(*weight.shape, bias=bias is not None), activation()]
            layers += [cnn.Add(cnn.Identity(), cnn.Sequential(layer))] if workload.residual else layer
        layers[(len(layers) if workload.residual else -1) :] = [cnn.MSELoss()]
        if workload.optimizer == "adam":
            optimizer = cnn.Adam(ADAM["lr"], (ADAM["beta1"], ADAM["beta2"]), ADAM["eps"])
        else:
            optimizer = cnn.SGD(LR)
        model = cnn.Sequential(layers, optimizer=optimizer, dtype=workload.dtype)
        model.parameters = problem.flat
        return model

    def prepare(self, workload, problem, form=""):
        model = self.model(workload, problem)
        x, y, steps = problem.x, problem.y, range(problem.steps)
        threads = self.threads

        def fit():
            epochs = problem.steps if workload.full_batch else 1
            history = model.fit(
                x, y, epochs=epochs, batch_size=workload.batch, shuffle=False, threads=threads, progress=False
            )
            return sum(history["loss"]) / epochs

        def step():
            total = 0.0
            for _ in steps:
                total += model.train_step(x, y)
            return total / len(steps)

        def gradient():
            for _ in steps:
                result = model.loss_and_grad(x, y)
            return result

        def predict():
            for _ in steps:
                outputs = model.predict(x, threads=threads)
            return outputs

        def repeated(product):
            def call():
                for _ in steps:
                    result = product()
                return result

            return call

        if workload.kind in ("jvp", "hvp"):
            t, v = problem.direction("x"), problem.direction("parameters")
        call = {
            "fit": fit,
            "step": step,
            "gradient": gradient,
            "predict": predict,
            "jvp": repeated(lambda: model.jvp(x, t, v)),
            "hvp": repeated(lambda: model.hvp(x, y, v)),
            "grad_input": repeated(lambda: model.grad_input(x, y)),
        }[workload.kind]
        return Run(call, lambda: np.asarray(model.parameters, np.float64), problem.steps)


class CnnC(Contender):
    """The header that `cnn.to_c` writes, compiled for this machine: the loop over the calls is in C too."""

    label = "cnn.to_c"
    package = "cnn"
    python_loop = False

    def can(self, workload):
        return workload.kind == "predict" and workload.batch == 1 and shutil.which("cc") is not None

    def prepare(self, workload, problem, form=""):
        import cnn

        model = Cnn.model(workload, problem)
        real = {"float32": "float", "float64": "double"}[workload.dtype]
        with tempfile.TemporaryDirectory() as folder:
            cnn.to_c(model, Path(folder, "policy.h"))
            Path(folder, "policy.c").write_text(
                f'#include "policy.h"\n'
                f"void run(const {real} *x, {real} *y, long n) {{ while (n-- > 0) policy(x, y); }}\n"
            )
            flags = ["-std=c99", "-O3", "-march=native", "-shared", "-fPIC"]  # it runs here, and is thrown away
            command = ["cc", *flags, "policy.c", "-o", "policy.so", "-lm"]
            subprocess.run(command, cwd=folder, check=True)
            library = ctypes.CDLL(str(Path(folder, "policy.so")))
        x, outputs = problem.x, np.empty((1, workload.widths[-1]), workload.dtype)
        steps = ctypes.c_long(problem.steps)
        pointers = ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(outputs.ctypes.data)

        def call():
            library.run(*pointers, steps)
            return outputs

        return Run(call, lambda: problem.flat, problem.steps)


# ---- NumPy -------------------------------------------------------------------------------------------------------


class NumPy(Contender):
    """Forward, backward and update written by hand, the way a careful user would."""

    label = "NumPy"
    package = "numpy"

    def prepare(self, workload, problem, form=""):
        weights = [(w.copy(), None if b is None else b.copy()) for w, b in problem.weights]
        params = [a for pair in weights for a in pair if a is not None]
        tanh = workload.activation == "tanh"
        real = np.dtype(workload.dtype).type
        moments = [(np.zeros_like(p), np.zeros_like(p)) for p in params]
        taken = 0

        def forward(x):
            inputs = []
            for w, b in weights:
                inputs.append(x)
                z = x @ w
                if b is not None:
                    z += b
                if len(inputs) < len(weights):
                    x = np.tanh(z, out=z) if tanh else np.maximum(z, 0, out=z)
            return inputs, z

        def gradients(x, y):
            inputs, outputs = forward(x)
            difference = outputs - y
            flat = difference.ravel()
            loss = float(flat @ flat) / flat.size
            grad = difference
            grad *= real(2 / flat.size)
            grads: list[np.ndarray] = []
            for i in reversed(range(len(weights))):
                w, b = weights[i]
                a = inputs[i]
                if b is not None:
                    grads.append(grad.sum(axis=0))
                grads.append(a.T @ grad)
                if i:
                    grad = grad @ w.T
                    grad *= 1 - a * a if tanh else a > 0
            return loss, grads[::-1]

        def sgd(grads):
            for p, g in zip(params, grads, strict=True):
                g *= real(LR)
                p -= g

        def adam(grads):
            nonlocal taken
            taken += 1
            beta1, beta2 = ADAM["beta1"], ADAM["beta2"]
            size = real(ADAM["lr"] / (1 - beta1**taken))
            correction = real(1 / (1 - beta2**taken))
            for p, g, (m, v) in zip(params, grads, moments, strict=True):
                m += real(1 - beta1) * (g - m)
                v += real(1 - beta2) * (g * g - v)
                p -= size * m / (np.sqrt(v * correction) + real(ADAM["eps"]))

        update = adam if workload.optimizer == "adam" else sgd
        data = [(problem.x[rows], problem.y[rows]) for rows in batches(workload, problem)]

        def train():
            total = 0.0
            for x, y in data:
                loss, grads = gradients(x, y)
                update(grads)
                total += loss
            return total / len(data)

        def gradient():
            for x, y in data:
                loss, grads = gradients(x, y)
                vector = np.concatenate([g.ravel() for g in grads])
            return loss, vector

        def predict():
            for x, _ in data:
                outputs = forward(x)[1]
            return outputs

        call = {"fit": train, "step": train, "gradient": gradient, "predict": predict}[workload.kind]
        return Run(call, lambda: flatten(weights), problem.steps)


# ---- PyTorch -----------------------------------------------------------------------------------------------------


class PyTorch(Contender):
    """Eager, as most people run it; Adam in its fused form, data in tensors beforehand."""

    label = "PyTorch"
    package = "torch"

    def prepare(self, workload, problem, form=""):
        import torch

        torch.set_num_threads(self.threads)
        activation = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}[workload.activation]
        layers: list = []
        for weight, bias in problem.weights:
            linear = torch.nn.Linear(*weight.shape, bias=bias is not None, dtype=getattr(torch, workload.dtype))
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(weight.T))
                if bias is not None:
                    linear.bias.copy_(torch.from_numpy(bias))
            layers += [linear, activation()]
        model = torch.nn.Sequential(*layers[:-1])
        params = list(model.parameters())
        criterion = torch.nn.MSELoss()
        if workload.optimizer == "adam":
            betas = ADAM["beta1"], ADAM["beta2"]
            optimizer = torch.optim.Adam(params, ADAM["lr"], betas, ADAM["eps"], fused=True)
        else:
            optimizer = torch.optim.SGD(params, LR)
        data = [
            (torch.from_numpy(problem.x[rows]), torch.from_numpy(problem.y[rows]))
            for rows in batches(workload, problem)
        ]

        def fit():
            total = torch.zeros((), dtype=params[0].dtype)
            for x, y in data:
                optimizer.zero_grad()
                loss = criterion(model(x), y)
                loss.backward()
                optimizer.step()
                total += loss.detach()
            return float(total) / len(data)

        def step():
            total = 0.0
            for _ in range(problem.steps):
                x, y = torch.from_numpy(problem.x), torch.from_numpy(problem.y)
                optimizer.zero_grad()
                loss = criterion(model(x), y)
                loss.backward()
                optimizer.step()
                total += loss.item()
            return total / problem.steps

        def gradient():
            for x, y in data:
                loss = criterion(model(x), y)
                grads = torch.autograd.grad(loss, params)
            pairs = [g.numpy().T if g.ndim == 2 else g.numpy() for g in grads]
            return loss.item(), flatten([pairs])

        @torch.inference_mode()
        def predict():
            for _ in range(problem.steps):
                outputs = model(torch.from_numpy(problem.x)).numpy()
            return outputs

        def parameters():
            return flatten([[p.detach().numpy().T if p.ndim == 2 else p.detach().numpy() for p in params]])

        if workload.kind in ("jvp", "hvp", "grad_input"):
            return Run(self._product(workload, problem, model), parameters, problem.steps)
        call = {"fit": fit, "step": step, "gradient": gradient, "predict": predict}[workload.kind]
        return Run(call, parameters, problem.steps)

    @staticmethod
    def _product(workload, problem, model):
        """torch.func: a Hessian product is the jvp of a gradient."""
        import torch

        weights = {name: p.detach() for name, p in model.named_parameters()}
        x, y, t = (torch.from_numpy(a) for a in (problem.x, problem.y, problem.direction("x")))
        v, at, tangents = problem.direction("parameters"), 0, {}
        for name, p in weights.items():
            part = torch.from_numpy(v[at : at + p.numel()])
            tangents[name] = part.reshape(p.shape[::-1]).T.contiguous() if p.ndim == 2 else part
            at += p.numel()

        def outputs(weights, x):
            return torch.func.functional_call(model, weights, x)

        def loss(weights, x):
            return ((outputs(weights, x) - y) ** 2).mean()  # mse_loss has no jvp of its gradient

        product = {
            "jvp": lambda: torch.func.jvp(outputs, (weights, x), (tangents, t))[1],
            "hvp": lambda: torch.func.jvp(torch.func.grad(lambda w: loss(w, x)), (weights,), (tangents,))[1],
            "grad_input": lambda: torch.func.grad(loss, 1)(weights, x),
        }[workload.kind]

        def call():
            for _ in range(problem.steps):
                result = product()
            if workload.kind == "hvp":
                return flatten([[g.numpy().T if g.ndim == 2 else g.numpy() for g in result.values()]])
            return result.detach().numpy()

        return call


# ---- JAX ---------------------------------------------------------------------------------------------------------


class Jax(Contender):
    """A pass over the data as one jitted `lax.scan` with donated parameters; dispatch without a second thread.

    Forms for training: samples in rows, as most people write it, or in columns, which makes products and tanh of
    narrow networks faster; for small batches also with four steps unrolled into one turn of the loop. In single calls
    from Python the parameters are one vector, which costs less to pass than a tree.
    """

    label = "JAX"
    package = "jax"
    python_loop = False

    def prepare(self, workload, problem, form=""):
        import jax

        jax.config.update("jax_enable_x64", workload.dtype == "float64")
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        forms = {
            "fit": self._fit_forms,
            "step": lambda *both: {"one vector": lambda: self._step(*both)},
            "gradient": lambda *both: {
                name: lambda columns=name == "columns": self._gradient(*both, columns) for name in ("rows", "columns")
            },
            **dict.fromkeys(("jvp", "hvp", "grad_input"), lambda *both: {"one vector": lambda: self._product(*both)}),
            "predict": lambda *both: {
                name: lambda constant=name == "constants": self._predict(*both, constant)
                for name in ("arguments", "constants")
            },
        }[workload.kind](workload, problem)
        return fastest({form: forms[form]} if form else forms)

    def _fit_forms(self, workload, problem):
        names = ["rows"]
        if workload.flops < 1e10:  # beyond, compiling and trying costs more than there is to gain
            names.append("columns")
        if workload.batch <= 32:
            names += [f"{name}, unrolled" for name in names]
        return {
            name: lambda columns="columns" in name, unroll=4 if "unrolled" in name else 1: self._fit(
                workload, problem, columns, unroll
            )
            for name in names
        }

    def _functions(self, workload, columns):
        """The outputs and the mean square, of a list of (weight, bias) and of data laid out as they are."""
        import jax
        import jax.numpy as jnp

        activation = {"relu": jax.nn.relu, "tanh": jnp.tanh}[workload.activation]

        def forward(params, x):
            for i, (w, b) in enumerate(params):
                z = w @ x if columns else x @ w
                if b is not None:
                    z = z + b
                if workload.residual:
                    z = x + activation(z)
                elif i < len(params) - 1:
                    z = activation(z)
                x = z
            return x

        def mean_square(params, x, y):
            return jnp.mean((forward(params, x) - y) ** 2)

        return forward, mean_square

    def _weights(self, problem, columns):
        """Arrays of the device: (in, out) and (out,), or in columns (out, in) and (out, 1)."""
        import jax.numpy as jnp

        if not columns:
            return [(jnp.array(w), None if b is None else jnp.array(b)) for w, b in problem.weights]
        return [(jnp.array(w.T.copy()), None if b is None else jnp.array(b[:, None])) for w, b in problem.weights]

    def _flat(self, params, columns):
        return flatten([(np.asarray(w).T if columns else w, b) for w, b in params])

    def _fit(self, workload, problem, columns, unroll):
        """The whole unit is one call of one compiled function."""
        import jax
        import jax.numpy as jnp

        _, mean_square = self._functions(workload, columns)

        def sgd(params, batch):
            loss, grads = jax.value_and_grad(mean_square)(params, *batch)
            return jax.tree.map(lambda p, g: p - LR * g, params, grads), loss

        def adam(state, batch):
            params, m, v, t = state
            loss, grads = jax.value_and_grad(mean_square)(params, *batch)
            beta1, beta2 = ADAM["beta1"], ADAM["beta2"]
            t = t + 1
            m = jax.tree.map(lambda m, g: m + (1 - beta1) * (g - m), m, grads)
            v = jax.tree.map(lambda v, g: v + (1 - beta2) * (g * g - v), v, grads)
            size = ADAM["lr"] / -jnp.expm1(t * np.log(beta1))  # 1 - beta**t, which float32 would round
            correction = 1 / -jnp.expm1(t * np.log(beta2))
            params = jax.tree.map(lambda p, m, v: p - size * m / (jnp.sqrt(v * correction) + ADAM["eps"]), params, m, v)
            return (params, m, v, t), loss

        update = adam if workload.optimizer == "adam" else sgd
        state = None

        def restart():
            nonlocal state
            state = self._weights(problem, columns)
            if update is adam:
                m, v = (jax.tree.map(jnp.zeros_like, state) for _ in range(2))
                state = (state, m, v, jnp.zeros((), workload.dtype))

        restart()
        arrays = [a.reshape(-1, workload.batch, a.shape[1]) for a in (problem.x, problem.y)]
        data = tuple(jnp.array(a.transpose(0, 2, 1).copy() if columns else a) for a in arrays)
        if workload.full_batch:
            data = tuple(a[0] for a in data)

        def train(state, data):
            if workload.full_batch:
                return jax.lax.scan(lambda s, _: update(s, data), state, length=problem.steps, unroll=unroll)
            return jax.lax.scan(update, state, data, unroll=unroll)

        compiled = jax.jit(train, donate_argnums=0)

        def call():
            nonlocal state
            state, losses = jax.block_until_ready(compiled(state, data))
            return float(losses.mean())

        def parameters():
            return self._flat(state[0] if update is adam else state, columns)

        return Run(call, parameters, problem.steps, restart)

    def _tree(self, problem, vector, columns=False):
        """The pairs that a vector of all parameters consists of."""
        params, at = [], 0
        for w, b in problem.weights:
            weight = vector[at : at + w.size].reshape(w.shape[::-1] if columns else w.shape)
            at += w.size
            bias = None
            if b is not None:
                bias = vector[at : at + b.size]
                bias = bias[:, None] if columns else bias
                at += b.size
            params.append((weight, bias))
        return params

    def _step(self, workload, problem):
        """NumPy in, a float out."""
        import jax
        import jax.numpy as jnp

        _, mean_square = self._functions(workload, columns=False)

        def update(vector, x, y):
            loss, grad = jax.value_and_grad(lambda v: mean_square(self._tree(problem, v), x, y))(vector)
            return vector - LR * grad, loss

        compiled = jax.jit(update, donate_argnums=0)
        vector = None

        def restart():
            nonlocal vector
            vector = jnp.array(problem.flat, workload.dtype)

        restart()

        def call():
            nonlocal vector
            total = 0.0
            for _ in range(problem.steps):
                vector, loss = compiled(vector, problem.x, problem.y)
                total += float(loss)
            return total / problem.steps

        return Run(call, lambda: np.asarray(vector, np.float64), problem.steps, restart)

    def _gradient(self, workload, problem, columns):
        """Data and parameters on the device beforehand."""
        import jax
        import jax.numpy as jnp

        _, mean_square = self._functions(workload, columns)
        compiled = jax.jit(jax.value_and_grad(lambda v, x, y: mean_square(self._tree(problem, v, columns), x, y)))
        vector = jnp.concatenate([a.ravel() for pair in self._weights(problem, columns) for a in pair if a is not None])
        x, y = (jnp.array(a.T.copy() if columns else a) for a in (problem.x, problem.y))

        def call():
            for _ in range(problem.steps):
                loss, gradient = jax.block_until_ready(compiled(vector, x, y))
            return float(loss), self._flat(self._tree(problem, gradient, columns), columns)

        return Run(call, lambda: problem.flat, problem.steps)

    def _product(self, workload, problem):
        """A product of derivatives, jitted; data, parameters and directions on the device beforehand."""
        import jax
        import jax.numpy as jnp

        forward, mean_square = self._functions(workload, columns=False)
        vector, x, y = (jnp.array(a) for a in (problem.flat.astype(workload.dtype), problem.x, problem.y))
        t, v = jnp.array(problem.direction("x")), jnp.array(problem.direction("parameters"))

        def outputs(vector, x):
            return forward(self._tree(problem, vector), x)

        def loss(vector, x):
            return mean_square(self._tree(problem, vector), x, y)

        product = {
            "jvp": lambda p, x: jax.jvp(outputs, (p, x), (v, t))[1],
            "hvp": lambda p, x: jax.jvp(jax.grad(lambda p: loss(p, x)), (p,), (v,))[1],
            "grad_input": jax.grad(loss, 1),
        }[workload.kind]
        compiled = jax.jit(product)

        def call():
            for _ in range(problem.steps):
                result = jax.block_until_ready(compiled(vector, x))
            return np.asarray(result)

        return Run(call, lambda: problem.flat, problem.steps)

    def _predict(self, workload, problem, constant):
        """NumPy in and out; the parameters are arguments, or constants of the compiled function."""
        import jax

        forward, _ = self._functions(workload, columns=False)
        params = self._weights(problem, columns=False)
        compiled = jax.jit((lambda x: forward(params, x)) if constant else forward)
        before = () if constant else (params,)

        def call():
            for _ in range(problem.steps):
                outputs = np.asarray(compiled(*before, problem.x))
            return outputs

        return Run(call, lambda: problem.flat, problem.steps)


# ---- scikit-learn ------------------------------------------------------------------------------------------------


class ScikitLearn(Contender):
    """`MLPRegressor.partial_fit` on the rows of a whole unit, or on one row where single calls are measured.

    Its loss is half the mean square and its gradient is summed over the outputs, so that its learning rate
    (for Adam its epsilon) is scaled to make the steps the same.
    """

    label = "scikit-learn"
    package = "sklearn"
    sparse = True
    epsilon_hat = True

    def can(self, workload):
        return super().can(workload) and workload.last_bias and workload.kind != "gradient"

    def prepare(self, workload, problem, form=""):
        from sklearn.neural_network import MLPRegressor

        n_out = workload.widths[-1]
        adam = workload.optimizer == "adam"
        model = MLPRegressor(
            hidden_layer_sizes=workload.widths[1:-1],
            activation=workload.activation,
            solver=workload.optimizer,
            alpha=0.0,
            batch_size=workload.batch,
            learning_rate_init=ADAM["lr"] if adam else LR * 2 / n_out,
            shuffle=False,
            momentum=0.0,
            nesterovs_momentum=False,
            beta_1=ADAM["beta1"],
            beta_2=ADAM["beta2"],
            epsilon=ADAM["eps"] * n_out / 2,
        )
        y = problem.y.ravel() if n_out == 1 else problem.y
        model.partial_fit(problem.x[: workload.batch], y[: workload.batch])  # makes its arrays
        del model._optimizer  # made anew at the next call, with the arrays as they are then
        for i, (weight, bias) in enumerate(problem.weights):
            model.coefs_[i] = weight.copy()
            model.intercepts_[i] = bias.copy()

        repeats = problem.steps if workload.full_batch or workload.kind == "step" else 1

        def train():
            total = 0.0
            for _ in range(repeats):
                model.partial_fit(problem.x, y)
                total += model.loss_
            return 2 * total / repeats

        def predict():
            for _ in range(problem.steps):
                outputs = model.predict(problem.x)
            return outputs.reshape(problem.x.shape[0], n_out)

        def parameters():
            return flatten(zip(model.coefs_, model.intercepts_, strict=True))

        return Run(predict if workload.kind == "predict" else train, parameters, problem.steps)


# ---- ONNX Runtime ------------------------------------------------------------------------------------------------


class OnnxRuntime(Contender):
    """Inference alone. With io-binding: input and output stay bound, and no array is made in a call."""

    label = "ONNX Runtime"
    package = "onnxruntime"

    def can(self, workload):
        return workload.kind == "predict" and super().can(workload) and find_spec("onnx") is not None

    def prepare(self, workload, problem, form=""):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        session = onnxruntime.InferenceSession(
            onnx_model(workload, problem), options, providers=["CPUExecutionProvider"]
        )
        binding = session.io_binding()
        x = onnxruntime.OrtValue.ortvalue_from_numpy(problem.x)
        outputs = onnxruntime.OrtValue.ortvalue_from_numpy(
            np.empty((workload.batch, workload.widths[-1]), workload.dtype)
        )
        binding.bind_ortvalue_input("x", x)
        binding.bind_ortvalue_output("y", outputs)

        def call():
            for _ in range(problem.steps):
                session.run_with_iobinding(binding)
            return outputs.numpy()

        return Run(call, lambda: flatten(problem.weights), problem.steps)


def onnx_model(workload: Workload, problem: Problem) -> bytes:
    """The network as Gemm and activation nodes, weights as initialisers."""
    from onnx import TensorProto, checker, helper, numpy_helper

    real = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}[workload.dtype]
    nodes, initialisers, name = [], [], "x"
    last = len(problem.weights) - 1
    for i, (weight, bias) in enumerate(problem.weights):
        inputs = [name, f"w{i}"]
        initialisers.append(numpy_helper.from_array(weight, f"w{i}"))
        if bias is not None:
            inputs.append(f"b{i}")
            initialisers.append(numpy_helper.from_array(bias, f"b{i}"))
        name = "y" if i == last else f"z{i}"
        nodes.append(helper.make_node("Gemm", inputs, [name]))
        if i < last:
            nodes.append(helper.make_node({"relu": "Relu", "tanh": "Tanh"}[workload.activation], [name], [f"a{i}"]))
            name = f"a{i}"
    ends = [
        helper.make_tensor_value_info(end, real, [workload.batch, width])
        for end, width in (("x", workload.widths[0]), ("y", workload.widths[-1]))
    ]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return model.SerializeToString()


CONTENDERS: dict[str, type[Contender]] = {
    "cnn": Cnn,
    "cnn-c": CnnC,
    "numpy": NumPy,
    "torch": PyTorch,
    "jax": Jax,
    "sklearn": ScikitLearn,
    "onnxruntime": OnnxRuntime,
}


def contender(name: str, threads: int = 1) -> Contender:
    """By its name; "cnn-1" is cnn on one thread in a process that has more."""
    if name == "cnn-1":
        return Cnn(1)
    return CONTENDERS[name](threads)
