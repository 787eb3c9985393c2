"""What the writers of ONNX and C go along: the nodes of a model, against the layers one after the other."""

import numpy as np
import pytest
from grid import inputs_of, random_model

import cnn
from cnn.export.graph import graph_of


def outputs_of(layer, x):
    """The layer alone, in evaluation mode; chains and branches layer by layer."""
    if isinstance(layer, cnn.Sequential):
        for inner in layer.layers:
            x = outputs_of(inner, x)
        return x
    if hasattr(layer, "branches"):
        parts = [outputs_of(branch, x) for branch in layer.branches]
        join = {"Add": sum, "Multiply": lambda p: np.prod(p, 0), "Maximum": lambda p: np.max(p, 0), "Concat": np.hstack}
        return join[type(layer).__name__](parts)
    if isinstance(layer, cnn.Linear):
        return x @ layer.weight + (0 if layer.bias is None else layer.bias)
    if isinstance(layer, cnn.BatchNorm1d):
        y = (x - layer.running_mean) / np.sqrt(layer.running_var + layer.eps)
        return y if layer.weight is None else y * layer.weight + layer.bias
    if isinstance(layer, cnn.LayerNorm):
        y = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + layer.eps)
        return (y if layer.weight is None else y * layer.weight) + (0 if layer.bias is None else layer.bias)
    if isinstance(layer, cnn.Softmax):
        log = x - x.max(axis=1, keepdims=True)
        log = log - np.log(np.exp(log).sum(axis=1, keepdims=True))
        return log if isinstance(layer, cnn.LogSoftmax) else np.exp(log)
    return x if isinstance(layer, cnn.Dropout) else layer.forward(x)


@pytest.mark.parametrize("seed", range(60))
def test_predict_is_the_layers_in_order(seed):
    """What all exports are compared with."""
    model = random_model(seed, "float64")
    x = inputs_of(model, 9)
    expected = outputs_of(model, x)
    np.testing.assert_allclose(model.predict(x), expected, rtol=1e-9, atol=1e-9 * max(1, abs(expected).max()))


def test_an_activation_after_a_chain_that_ends_with_one():
    """It does not take the place of that one."""
    inner = cnn.Sequential([cnn.Linear(3, 4), cnn.GELU()], dtype="float64")
    model = cnn.Sequential([inner, cnn.Sigmoid(), cnn.Linear(4, 2)], dtype="float64", seed=0)
    x = inputs_of(model, 5)
    np.testing.assert_allclose(model.predict(x), outputs_of(model, x), rtol=1e-13)


def test_nodes():
    model = cnn.Sequential(
        [
            cnn.Dropout(0.5),
            cnn.Linear(3, 4),
            cnn.Tanh(),
            cnn.Dropout(0.5),
            cnn.Add(cnn.Identity(), cnn.Sequential([cnn.Linear(4, 4), cnn.Dropout(0.1)])),
            cnn.CrossEntropyLoss(),
        ]
    )
    nodes, widths, output = graph_of(model)
    assert [node.kind for node in nodes] == ["linear", "activation", "linear", "add"]
    assert [node.key for node in nodes] == ["1", "2", "4.1.0", "4"]
    assert nodes[0].where == "layer 1, Linear(3, 4)"
    assert nodes[2].where == "layer 4.Add[1].0, Linear(4, 4)"
    assert nodes[0].sources == (0,)
    assert nodes[1].sources == (nodes[0].target,)
    assert nodes[3].sources == (nodes[1].target, nodes[2].target)
    assert output == nodes[3].target
    assert [widths[node.target] for node in nodes] == [4, 4, 4, 4]
