"""`as_torch`: a model as a `torch.nn.Module` over the model's own memory."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from .._checks import needed
from ..models import Sequential
from ..models.core import PARAMETERS
from ..training.state import STATISTICS


def as_torch(model: Any) -> Any:
    """A `torch.nn.Module` that shares the model's memory, for training with PyTorch.

    Its parameters are the model's, not copies: a step of torch.optim changes the model, `model.fit` the module. They
    have the names and shapes that `to_torch` gives them. Gradients go to x and to the parameters (`parameter.grad`).

    Parameters
    ----------
    model : Sequential

    Returns
    -------
    torch.nn.Module
        On the CPU, of the model's dtype, in the model's mode; its `train` and `eval` are the model's. The model is its
        attribute `model`.

    Raises
    ------
    TypeError
        If model is not a Sequential.

    Notes
    -----
    The gradient has no derivative: ``create_graph=True`` raises a RuntimeError (`model.hvp` and `model.hvp_input`
    compute second derivatives). `backward` uses what the model stored in its last `forward`. If the model has run
    forward again since, `backward` repeats that pass; `BatchNorm1d` and `Dropout` in training mode cannot repeat it, so
    there it raises a RuntimeError. `model.gradients` are those of the last `backward`. Parameters that are not
    `trainable` do not require gradients.

    Weights are (out, in) views of (in, out) memory; their gradients are contiguous. For functions that need contiguous
    parameters, such as torch.nn.utils.parameters_to_vector, use `to_torch` or `model.parameters`. Replacing a tensor of
    the module, or making the model part of another model, raises a RuntimeError.

    Examples
    --------
    >>> module = cnn.as_torch(model)                                       # doctest: +SKIP
    >>> optimizer = torch.optim.Adam(module.parameters())                  # doctest: +SKIP
    >>> torch.nn.functional.mse_loss(module(x), y).backward()              # doctest: +SKIP
    """
    if not isinstance(model, Sequential):
        raise TypeError(f"model: expected a cnn.Sequential, got {type(model).__name__}")
    needed("as_torch", "torch", "torch")
    import torch

    core = model._core
    dtype = getattr(torch, model.dtype.name)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, module: Any, *parameters: Any) -> Any:
            array = x.detach().numpy()
            ctx.module = module
            ctx.array = array.copy()  # the caller may change it
            ctx.repeatable = core.repeatable
            y = torch.from_numpy(model.forward(array))
            ctx.turn, ctx.fingerprint = core.program.passes, core.program.fingerprint
            return y

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            if torch.is_grad_enabled():
                raise RuntimeError(
                    "cnn.as_torch: create_graph=True is not supported, because the gradient has no derivative: use "
                    "model.hvp or model.hvp_input for second derivatives, or cnn.to_torch(model)"
                )
            if core.program.fingerprint != ctx.fingerprint:
                raise RuntimeError(
                    "cnn.as_torch: the parameters have been changed since the forward pass: run forward again"
                )
            if core.program.passes != ctx.turn or not core.program.pending:
                if not (ctx.repeatable and core.repeatable):
                    raise RuntimeError(
                        "cnn.as_torch: the model has run forward again since, and BatchNorm1d or Dropout in training "
                        "mode cannot repeat the pass: call backward before the next forward, or pass all rows at once"
                    )
                model.forward(ctx.array)
                ctx.turn = core.program.passes
            model.zero_grads()
            grad_x = model.backward(grad.numpy())
            grads = [torch.from_numpy(np.array(a.T)) for a in ctx.module._gradients()]
            wanted = [g if need else None for g, need in zip(grads, ctx.needs_input_grad[2:], strict=True)]
            return torch.from_numpy(grad_x), None, *wanted

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.__dict__["model"] = model
            self._order: list[Any] = []
            self._shared: list[Any] = []  # a tensor over the model's memory: where it stands, and its address
            self._homes: list[Any] = []  # layers, and the programs that have their memory
            self._counts: list[Any] = []
            for op, place in core.parametric:
                inner: Any = self
                for part in place.key.split("."):
                    if part not in inner._modules:
                        inner.add_module(part, torch.nn.Module())
                    inner = inner._modules[part]
                self._homes.append((place.layer, place.layer._op[0]))
                trained = place.layer._trainable
                for name in PARAMETERS:
                    array = place.layer._array(name)
                    if array is not None:
                        parameter = torch.nn.Parameter(torch.from_numpy(array.T), trained.get(name, True))
                        if parameter.requires_grad:
                            parameter.register_post_accumulate_grad_hook(_contiguous)
                        inner.register_parameter(name, parameter)
                        self._order.append((place.layer, name, parameter))
                        self._shared.append((inner._parameters, name, parameter, parameter.data_ptr()))
                if place.layer.statistic_names:
                    for name in STATISTICS:
                        buffer = torch.from_numpy(place.layer._array(name))
                        inner.register_buffer(name, buffer)
                        self._shared.append((inner._buffers, name, buffer, buffer.data_ptr()))
                    inner.register_buffer("num_batches_tracked", torch.tensor(0))
                    self._counts.append((op, inner))
            self.register_state_dict_pre_hook(Module._read_counts)
            self.register_load_state_dict_post_hook(Module._write_counts)
            self.train(model.training)

        def _read_counts(self, *_: Any) -> None:
            for op, inner in self._counts:
                inner.num_batches_tracked.fill_(core.program.tracked(op))

        def _write_counts(self, *_: Any) -> None:
            for op, inner in self._counts:
                core.program.set_tracked(op, int(inner.num_batches_tracked))

        def _gradients(self) -> list[Any]:
            return [getattr(layer, f"grad_{name}") for layer, name, _ in self._order]

        def _check(self) -> None:
            for layer, program in self._homes:
                if layer._op[0] is not program:
                    raise RuntimeError(
                        "cnn.as_torch: the model has become part of another model, which now owns the parameters: call "
                        "cnn.as_torch again"
                    )
            for tensors, name, tensor, at in self._shared:
                if tensors.get(name) is not tensor or tensor.data_ptr() != at:
                    raise RuntimeError(
                        f"cnn.as_torch: a {name} has been replaced by another tensor (torch.func.functional_call, "
                        "load_state_dict(assign=True), .data = ...), which is not the model's memory: copy the values "
                        "into the old tensor, or use cnn.to_torch(model), a module with its own tensors"
                    )

        def forward(self, x: Any) -> Any:
            if x.device.type != "cpu":
                raise ValueError(f"x: expected a tensor on the CPU, got one on {x.device}: pass x.cpu()")
            x = x.to(dtype)
            self._check()
            if not torch.is_grad_enabled() and core.repeatable:  # leaves a pending backward alone
                return torch.from_numpy(model.predict(x.detach().numpy()))
            return Function.apply(x, self, *(parameter for *_, parameter in self._order))

        def train(self, mode: bool = True) -> Any:
            model.train(mode)
            return super().train(mode)

        def extra_repr(self) -> str:
            return repr(model)

        def __deepcopy__(self, memo: Any) -> Any:
            return _again(copy.deepcopy(model, memo), [parameter.requires_grad for parameter in self.parameters()])

        def __reduce__(self) -> Any:
            return _again, (model, [parameter.requires_grad for parameter in self.parameters()])

        def _apply(self, fn: Any, recurse: bool = True) -> Any:
            for tensor in (*self.parameters(), *self.buffers()):
                if fn(tensor) is not tensor:
                    raise TypeError(
                        f"cnn.as_torch: expected the CPU and {dtype}, as the module shares the model's memory: use "
                        "cnn.to_torch(model)"
                    )
            return self

    return Module()


def _contiguous(parameter: Any) -> None:
    """Make a gradient contiguous, as torch.optim.LBFGS requires; autograd keeps the parameter's strides."""
    parameter.grad = parameter.grad.contiguous()


def _again(model: Sequential, require: list[bool]) -> Any:
    """A module over this model, with the given `requires_grad` of its parameters: for copies and pickles."""
    module = as_torch(model)
    for parameter, required in zip(module.parameters(), require, strict=True):
        parameter.requires_grad_(required)
    return module
