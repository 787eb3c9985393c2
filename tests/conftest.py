"""What every test file may use: each instruction set and each dtype in turn, and hypothesis' settings."""

import gc
import signal

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from cnn import _dispatch

# The same examples at every run: a failure is a change in the library, not in the weather.
settings.register_profile(
    "cnn",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("cnn")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what it runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """Garbage collection leaves out what the run holds anyway: 27,000 tests, walked through at each full collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=_dispatch.AVAILABLE)
def isa(request, monkeypatch):
    """The test runs once with the kernels of each instruction set that this machine can run."""
    monkeypatch.setattr(_dispatch, "ISA", request.param)
    monkeypatch.setattr(_dispatch, "_loaded", {})
    return request.param


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture
def path(tmp_path):
    """Where the file of a test goes."""
    return tmp_path / "model.safetensors"
