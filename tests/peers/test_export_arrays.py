"""Arrays of PyTorch and JAX are read where they lie, and the model's are lent to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import cnn


@pytest.fixture(params=["float32", "float64"])
def model(request):
    return cnn.Sequential([cnn.Linear(3, 20), cnn.Tanh(), cnn.Linear(20, 2), cnn.MSELoss()], dtype=request.param)


def address(array):
    return array.__array_interface__["data"][0]


def test_torch_tensors_are_not_copied(model):
    dtype = getattr(torch, model.dtype.name)
    x = torch.randn(6, 3, dtype=dtype)
    assert address(model._core.program.inputs(x)) == x.data_ptr()
    apart = torch.randn(6, 8, dtype=dtype)[::2, 1:4]
    assert address(model._core.program.inputs(apart)) == apart.data_ptr()
    assert address(model._core.program.targets(torch.zeros(6, 2, dtype=dtype), 6)) != 0
    np.testing.assert_array_equal(model.predict(x), model.predict(x.numpy()))
    np.testing.assert_array_equal(model.predict(apart), model.predict(apart.numpy().copy()))
    assert isinstance(model.predict(x), np.ndarray)


def test_jax_arrays_are_not_copied(model):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((6, 3)), model.dtype)
    assert address(model._core.program.inputs(x)) == x.unsafe_buffer_pointer()
    np.testing.assert_array_equal(model.predict(x), model.predict(np.array(x)))


class DLPackOnly:
    """What lends its memory by DLPack alone."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


def test_dlpack_alone_will_do(model):
    x = torch.randn(6, 3, dtype=getattr(torch, model.dtype.name))
    assert address(model._core.program.inputs(DLPackOnly(x))) == x.data_ptr()


def test_targets_of_other_libraries():
    model = cnn.Sequential([cnn.Linear(3, 4), cnn.CrossEntropyLoss()], optimizer=cnn.SGD(0.1), seed=0)
    x, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 0, 1])
    assert address(model._core.program.targets(labels, 6)) == labels.data_ptr()
    expected = model.evaluate(x.numpy(), labels.numpy())
    for y in labels, labels.int(), jnp.asarray(labels.numpy()), DLPackOnly(labels):
        assert model.evaluate(x, y) == expected
    assert model.train_step(x, labels) == pytest.approx(expected["loss"], rel=1e-6)
    model.fit(x, labels, epochs=2, progress=False)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(6, 3, requires_grad=True), r"x: Tensor cannot be read as an array: .*requires grad.*detach\(\)"),
        (torch.randn(6, 3).bfloat16(), "x: Tensor cannot be read as an array: .*BFloat16"),
        (torch.randn(6, 3).to_sparse(), "x: Tensor cannot be read as an array: "),
        (torch.randn(6, 3, device="meta"), "x: Tensor cannot be read as an array: "),
        (torch.randn(6, 3, dtype=torch.complex64), "x: expected real numbers, got dtype complex64"),
        (jnp.ones((6, 3), jnp.complex64), "x: expected real numbers, got dtype complex64"),
    ],
)
def test_what_cannot_be_read(x, message):
    with pytest.raises(TypeError, match=message):
        cnn.Sequential([cnn.Linear(3, 2)]).predict(x)


def test_others_dtypes_are_converted():
    model = cnn.Sequential([cnn.Linear(3, 2)])
    for x in torch.ones(6, 3).half(), torch.ones(6, 3).long(), torch.ones(6, 3).bool(), jnp.ones((6, 3), jnp.float16):
        np.testing.assert_array_equal(model.predict(x), model.predict(np.ones((6, 3), np.float32)))


def test_weights_are_lent(model):
    """A tensor over the model's memory: what is written there is the weight."""
    for layer in model.layers[::2]:
        tensor = torch.from_dlpack(layer.weight)
        assert tensor.shape == layer.weight.shape
        assert tensor.data_ptr() == address(layer.weight)
        tensor[1, 0] = 7
        assert layer.weight[1, 0] == 7
        np.testing.assert_array_equal(jax.dlpack.from_dlpack(layer.bias), layer.bias)
        np.testing.assert_array_equal(torch.from_dlpack(layer.grad_weight).numpy(), layer.grad_weight)
    np.testing.assert_array_equal(torch.from_dlpack(model.parameters).numpy(), model.parameters)
    x = np.ones((2, 3))
    before = model.predict(x)
    torch.from_dlpack(model.layers[0].weight).mul_(2)
    assert (model.predict(x) != before).any()
