"""Random modules and files as others write them: the readers compute the same, or refuse; never something else."""

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper, printer
from torch import nn

import cnn

ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.ELU, nn.SiLU, nn.GELU, nn.Mish, nn.LogSigmoid, nn.Hardtanh, nn.Softplus, nn.PReLU]


REFUSED = (nn.LogSigmoid, nn.Hardtanh, nn.Unflatten)


def net_of(rng, width, depth=0):
    """A chain of random modules, some of which stand in it twice or are wrapped."""
    shared, modules = rng.choice(ACTIVATIONS)(), []
    for _ in range(rng.integers(1, 5)):
        kind = rng.integers(9)
        if kind == 0 and depth < 2:
            inner = net_of(rng, width, depth + 1)
            modules.append(inner if rng.integers(2) else nn.DataParallel(inner))
            width = outputs(inner, width)
        elif kind == 1:
            modules += [shared, nn.Linear(width, width), shared]
        elif kind == 2:
            modules.append(nn.BatchNorm1d(width) if rng.integers(2) else nn.LayerNorm(width))
        elif kind == 3:
            modules.append([nn.Flatten(), nn.Dropout(), nn.Identity(), nn.Softmax(-1), nn.Unflatten(1, (1, -1))][
                rng.integers(5)
            ])  # fmt: skip
        elif kind == 4:
            modules += 2 * [nn.Linear(width, width)]
        elif kind == 5:
            modules.append(rng.choice(ACTIVATIONS)())
        else:
            linear = nn.Linear(width, width := int(rng.integers(1, 5)), bias=bool(rng.integers(2)))
            modules.append(nn.utils.parametrizations.weight_norm(linear) if kind == 6 else linear)
    return nn.Sequential(*modules)


def outputs(net, width):
    return net.eval()(torch.zeros(2, width)).shape[-1]


def test_random_modules():
    read = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        width = int(rng.integers(1, 5))
        try:
            net = nn.Sequential(nn.Linear(width, width), net_of(rng, width)).double().eval()
            x = torch.randn(5, width, dtype=torch.float64)
            expected = net(x).detach().numpy()
        except (RuntimeError, ValueError):
            continue  # no network: widths that do not follow
        try:
            model = cnn.from_torch(net)
        except TypeError:
            assert any(isinstance(part, REFUSED) for part in net.modules()), net
            continue
        read += 1
        np.testing.assert_allclose(model.predict(x.numpy()), expected, rtol=1e-10, atol=1e-10, err_msg=str(net))
    assert read > 30


UNARY = [
    ("Relu", {}), ("Tanh", {}), ("Sigmoid", {}), ("Softplus", {}), ("Elu", {"alpha": 0.5}), ("Selu", {}), ("Neg", {}),
    ("LeakyRelu", {}), ("HardSigmoid", {"alpha": 0.3}), ("HardSwish", {}), ("Softsign", {}), ("Celu", {}), ("Abs", {}),
    ("Exp", {}), ("Identity", {}), ("Dropout", {}), ("Cast", {"to": TensorProto.FLOAT}), ("Flatten", {}), ("Erf", {}),
    ("Softmax", {}), ("LogSoftmax", {"axis": 1}), ("ThresholdedRelu", {}), ("Sin", {}), ("Transpose", {}),
    ("Floor", {}), ("Reciprocal", {}), ("Softmax", {"axis": 0}), ("Squeeze", {}), ("Gelu", {}), ("Mish", {}),
]  # fmt: skip
BINARY = ["Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Greater", "Concat"]


def file_of(rng):
    """A file of random nodes: linear layers, operators of one value, of a value and a constant, and of two values."""
    nodes, constants, values, width = [], {}, ["x"], 4

    def add(op, inputs, **attributes):
        values.append(f"v{len(values)}")
        nodes.append(helper.make_node(op, inputs, [values[-1]], **attributes))

    def constant(*shape):
        constants[name := f"c{len(constants)}"] = rng.standard_normal(shape).astype(np.float32)
        return name

    for _ in range(rng.integers(2, 8)):
        kind, last = rng.integers(8), values[-1]
        if kind < 3:
            trans = int(rng.integers(2))
            weight = constant(width, width)
            add(*(("Gemm", [last, weight, constant(width)]) if kind else ("MatMul", [last, weight])),
                **({"transB": trans, "alpha": 0.5} if kind else {}))  # fmt: skip
        elif kind == 3:
            shape = [(), (1,), (width,), (1, width), (width, 1), (width, width)][rng.integers(6)]
            inputs = [last, constant(*shape)][:: int(rng.choice([1, -1]))]
            op = BINARY[rng.integers(6)]
            add(op, inputs)
        elif kind == 4:
            op = BINARY[rng.integers(len(BINARY))]
            add(op, [values[rng.integers(len(values))], last], **({"axis": 1} if op == "Concat" else {}))
        else:
            op, attributes = UNARY[rng.integers(len(UNARY))]
            add(op, [last], **attributes)
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])]
    result = [helper.make_tensor_value_info(values[-1], TensorProto.FLOAT, None)]
    arrays = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", ends, result, arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_random_files():
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    read = 0
    for seed in range(500):
        rng = np.random.default_rng(seed)
        proto = file_of(rng)
        x = rng.standard_normal((4, 4)).astype(np.float32)  # as many rows as columns: what mixes them runs
        try:
            session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
            (expected,) = session.run(None, {"x": x})
        except Exception:
            continue  # no network
        try:
            model = cnn.from_onnx(proto)
        except ValueError:
            continue
        read += 1
        with np.errstate(all="ignore"):
            predicted = model.predict(x)
            size = max(1, np.max(abs(expected), where=np.isfinite(expected), initial=0))
        assert predicted.shape == expected.shape, printer.to_text(proto)
        np.testing.assert_allclose(predicted, expected, rtol=1e-4, atol=1e-5 * size, err_msg=printer.to_text(proto))
    assert read > 60
