"""One thread for all, and float64 in JAX. Set before anything is computed."""

import os
from importlib.util import find_spec

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import jax
import pytest
import torch

from cnn import _dispatch

jax.config.update("jax_enable_x64", True)
torch.set_num_threads(1)


def built(isa):
    """Whether there are kernels of an instruction set: a wheel has all (tests/test_build.py), `make coverage` one."""
    return find_spec(f"cnn._kernels_{isa}_f32") is not None


@pytest.fixture
def each_isa(monkeypatch):
    """The instruction sets that run here, one after the other, each in use in its turn."""

    def turns():
        for isa in filter(built, _dispatch.AVAILABLE):
            monkeypatch.setattr(_dispatch, "ISA", isa)
            monkeypatch.setattr(_dispatch, "_loaded", {})
            yield isa

    return turns()
