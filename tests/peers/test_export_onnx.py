"""ONNX files: ONNX Runtime computes what `predict` computes, and a file comes back as the model that it was."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from grid import LAYERS, WITH_PARAMETERS, build, chain, inputs_of, random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import cnn

NEWEST = onnx.defs.onnx_opset_version()
OPSETS = [13, 17, 20]
RTOL = 1e-5


def run(path, x):
    """The outputs by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (given,), (result,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape[0], result.name, result.shape[0]) == ("x", "batch", "y", "batch")
    (y,) = session.run(["y"], {"x": x})
    assert list(y.shape[1:]) == result.shape[1:]
    return y


def assert_same(model, path):
    for rows in 1, 7:
        x = inputs_of(model, rows, scale=2)
        expected = model.predict(x)
        y = run(path, x)
        assert y.dtype == model.dtype
        np.testing.assert_allclose(y, expected, rtol=RTOL, atol=RTOL * max(1, abs(expected).max()))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("opset", OPSETS)
def test_every_activation(opset, dtype, tmp_path):
    for part in WITH_PARAMETERS:
        model, _ = build([part, *chain(5, 7, 3, activation=part)], dtype=dtype)
        cnn.to_onnx(model, tmp_path / "model.onnx", opset=opset)
        onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)
        assert_same(model, tmp_path / "model.onnx")


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), dtype=st.sampled_from(["float32", "float64"]), opset=st.sampled_from(OPSETS))
def test_random_networks_of_every_layer(tmp_path_factory, seed, dtype, opset):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    model = random_model(seed, dtype)
    cnn.to_onnx(model, path, opset=opset)
    assert_same(model, path)


def test_what_the_file_says(tmp_path):
    model = cnn.Sequential([cnn.Linear(3, 4), cnn.ReLU(), cnn.Linear(4, 2), cnn.CrossEntropyLoss()])
    assert cnn.to_onnx(model, tmp_path / "model.onnx") is None
    proto = onnx.load(tmp_path / "model.onnx")
    assert proto.opset_import[0].version == 20
    assert (proto.producer_name, proto.producer_version) == ("cnn", cnn.__version__)
    assert [node.op_type for node in proto.graph.node] == ["Gemm", "Relu", "Gemm", "Identity"]
    weights = {array.name: numpy_helper.to_array(array) for array in proto.graph.initializer}
    assert list(weights) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(weights[name], array)


@pytest.mark.parametrize("opset", [12, 0, -1, NEWEST + 1])
def test_unknown_opset(opset, tmp_path):
    with pytest.raises(ValueError, match=f"opset: expected 13 to {NEWEST}, which the installed onnx has, got {opset}"):
        cnn.to_onnx(cnn.Sequential([cnn.Linear(1, 1)]), tmp_path / "model.onnx", opset=opset)
    assert list(tmp_path.iterdir()) == []


def test_what_to_onnx_refuses(tmp_path):
    model = cnn.Sequential([cnn.Linear(1, 1)])
    with pytest.raises(TypeError, match="opset: expected an int, got '20'"):
        cnn.to_onnx(model, tmp_path / "model.onnx", opset="20")
    with pytest.raises(TypeError, match=r"model: expected a cnn\.Sequential, got Linear"):
        cnn.to_onnx(cnn.Linear(1, 1), tmp_path / "model.onnx")
    with pytest.raises(OSError, match="nowhere"):
        cnn.to_onnx(model, tmp_path / "nowhere" / "model.onnx")


def test_frameworks_are_imported_where_they_are_used():
    code = (
        "import sys, json; import cnn; frameworks = 'torch', 'onnx', 'sklearn', 'onnxruntime', 'google';"
        "print(json.dumps([name for name in frameworks if name in sys.modules]))"
    )
    package = str(Path(cnn.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": package}, capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout) == []


# from_onnx ----------------------------------------------------------------------------------------


PARTS = [("activation", part) for part in WITH_PARAMETERS] + [("layer", name) for name in LAYERS]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(("kind", "part"), PARTS, ids=[str(part) for _, part in PARTS])
def test_there_and_back(kind, part, opset, dtype, tmp_path):
    """Whatever `to_onnx` writes; first, between and last."""
    spec = [part, *chain(5, 7, 3, activation=part), part]
    if kind == "layer":
        width = LAYERS[part].width(6)
        spec = [(5, 6, True), (part, 6), (width, 6, False), ("tanh", None), (part, 6)]
    model, _ = build(spec, dtype=dtype)
    cnn.to_onnx(model, tmp_path / "model.onnx", opset=opset)
    again = cnn.from_onnx(tmp_path / "model.onnx")
    assert again.dtype == dtype
    x = inputs_of(model, 7, scale=2)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(again.predict(x), model.predict(x), rtol=tolerance, atol=tolerance)
    if kind == "activation":
        # with 0.0 LeakyReLU and ELU are ReLU; the formula of CELU with 1.0 is that of ELU
        if part[0] != "identity" and part[1] != 0.0 and (part != ("celu", 1.0) or dtype == "float32"):
            assert repr(again.layers) == repr(model.layers)
        np.testing.assert_array_equal(again.parameters, model.parameters)


def test_random_networks_there_and_back(tmp_path):
    for seed in range(3 * len(LAYERS)):
        dtype = ("float32", "float64")[seed % 2]
        model = random_model(seed, dtype)
        cnn.to_onnx(model, tmp_path / "model.onnx", opset=OPSETS[seed % 3])
        x = inputs_of(model, 7)
        expected = model.predict(x)
        tolerance = (1e-5 if dtype == "float32" else 1e-12) * max(1, abs(expected).max())
        np.testing.assert_allclose(cnn.from_onnx(tmp_path / "model.onnx").predict(x), expected, atol=tolerance)


@pytest.mark.parametrize("part", ["batch", "layer"])
@pytest.mark.parametrize("opset", OPSETS)
def test_eps_of_norms_is_a_float64(part, opset, tmp_path):
    """The attributes of ONNX are float32."""
    model, _ = build([(5, 6, True), (part, 6)], dtype="float64")
    cnn.to_onnx(model, tmp_path / "model.onnx", opset=opset)
    x = inputs_of(model, 7)
    np.testing.assert_allclose(run(tmp_path / "model.onnx", x), model.predict(x), rtol=1e-12, atol=1e-12)


def test_sources(tmp_path):
    model, _ = build(chain(5, 7, 3), dtype="float32")
    path = tmp_path / "model.onnx"
    cnn.to_onnx(model, path)
    for source in path, str(path), path.read_bytes(), onnx.load(path):
        np.testing.assert_array_equal(cnn.from_onnx(source).parameters, model.parameters)


def test_weights_in_a_second_file(tmp_path, monkeypatch):
    """They lie beside the file, not in the current folder."""
    for folder, seed in ("here", 0), ("there", 1):
        (tmp_path / folder).mkdir()
        model, _ = build(chain(5, 7, 3), dtype="float32", seed=seed)
        cnn.to_onnx(model, tmp_path / "whole.onnx")
        proto, name = onnx.load(tmp_path / "whole.onnx"), "model.onnx.data"
        onnx.save(proto, tmp_path / folder / "model.onnx", save_as_external_data=True, location=name, size_threshold=0)
    monkeypatch.chdir(tmp_path / "here")
    path = tmp_path / "there" / "model.onnx"
    np.testing.assert_array_equal(cnn.from_onnx(path).parameters, model.parameters)
    message = r"its weights are in a second file, 'model\.onnx\.data': pass the path of the ONNX file"
    for source in path.read_bytes(), onnx.load(path, load_external_data=False):
        with pytest.raises(ValueError, match=message):
            cnn.from_onnx(source)
    (tmp_path / "there" / "model.onnx.data").unlink()
    with pytest.raises((OSError, ValueError), match=r"model\.onnx\.data"):
        cnn.from_onnx(path)


def test_outputs():
    nodes = [node("Gemm", ["x", "w"], ["h"]), node("Tanh", ["h"], ["mean"]), node("Mul", ["h", "two"], ["value"])]
    proto = graph(nodes, {"w": W, "two": np.float32(2)}, outputs=("mean", "value"))
    with pytest.raises(
        ValueError, match="expected one output, got 2: pass outputs='mean' for one of them, or outputs=\\('mea"
    ):
        cnn.from_onnx(proto)
    h = X @ W
    for outputs, expected in (
        ("mean", np.tanh(h)),
        ("h", h),
        (["value", "mean"], np.concatenate([2 * h, np.tanh(h)], axis=1)),
    ):
        np.testing.assert_allclose(cnn.from_onnx(proto, outputs=outputs).predict(X), expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="outputs: 'no' is not in it; its outputs: 'mean', 'value'"):
        cnn.from_onnx(proto, outputs="no")


def test_loss_and_optimizer(tmp_path):
    cnn.to_onnx(cnn.Sequential([cnn.Linear(3, 2)]), tmp_path / "model.onnx")
    model = cnn.from_onnx(tmp_path / "model.onnx", loss=cnn.MSELoss(), optimizer=cnn.SGD(0.1))
    assert model.train_step(np.ones((4, 3)), np.zeros((4, 2))) > 0


def test_reads_what_torch_writes(tmp_path):
    """transB, and what the exporter makes of modules that do nothing."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(5, 8),
        torch.nn.LeakyReLU(0.2),
        torch.nn.Dropout(0.5),
        torch.nn.Linear(8, 8, bias=False),
        torch.nn.SiLU(),
        torch.nn.Linear(8, 2),
        torch.nn.ELU(0.5),
    ).eval()
    x = torch.randn(6, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the other exporter needs a package more
        torch.onnx.export(net, (x,), str(tmp_path / "net.onnx"), dynamo=False, opset_version=17)
    model = cnn.from_onnx(tmp_path / "net.onnx")
    assert model.dtype == np.float32
    with torch.no_grad():
        np.testing.assert_allclose(model.predict(x.numpy()), net(x).numpy(), rtol=1e-5, atol=1e-6)


def graph(nodes, constants=None, n_in=3, outputs=("y",), inputs=("x",)):
    """An ONNX model of these nodes, float32."""
    arrays = [numpy_helper.from_array(np.asarray(a), name) for name, a in (constants or {}).items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, n_in]) for name in inputs]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(
        helper.make_graph(nodes, "g", ends, results, arrays),
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
    )


node = helper.make_node
W = np.arange(12, dtype=np.float32).reshape(3, 4) / 10
B = np.array([1, 2, 3, 4], np.float32)
X = np.array([[1, -2, 3], [0.5, 0, -1]], np.float32)


@pytest.mark.parametrize(
    ("nodes", "constants", "expected"),
    [
        ([node("Gemm", ["x", "w", "b"], ["y"])], {"w": W, "b": B}, X @ W + B),
        ([node("Gemm", ["x", "w", "b"], ["y"], transB=1)], {"w": W.T.copy(), "b": B[None]}, X @ W + B),
        ([node("Gemm", ["x", "w", "b"], ["y"], alpha=2.0, beta=0.5)], {"w": W, "b": B[:1]}, 2 * (X @ W) + 0.5),
        ([node("Gemm", ["x", "w"], ["y"])], {"w": W}, X @ W),
        ([node("MatMul", ["x", "w"], ["y"])], {"w": W}, X @ W),
        ([node("MatMul", ["x", "w"], ["z"]), node("Add", ["z", "b"], ["y"])], {"w": W, "b": B}, X @ W + B),
        ([node("MatMul", ["x", "w"], ["z"]), node("Add", ["b", "z"], ["y"])], {"w": W, "b": B}, X @ W + B),
        (
            [
                node("Constant", [], ["w"], value=numpy_helper.from_array(W)),
                node("MatMul", ["x", "w"], ["z"]),
                node("Dropout", ["z"], ["d"]),
                node("Relu", ["d"], ["y"]),
            ],
            {},
            np.maximum(X @ W, 0),
        ),
    ],
)
def test_forms_of_a_linear_layer(nodes, constants, expected):
    model = cnn.from_onnx(graph(nodes, constants))
    np.testing.assert_allclose(model.predict(X), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("nodes", "constants", "message"),
    [
        (
            [node("Sin", ["x"], ["y"], name="s")],
            {},
            r"node 's' \(Sin\): no layer of this library computes it; it reads 'x', the input: export only",
        ),
        ([node("Gemm", ["w", "x"], ["y"])], {"w": W}, r"node 'y' \(Gemm\): expected x as its first operand, not trans"),
        ([node("Gemm", ["x", "w"], ["y"], transA=1)], {"w": W}, "expected x as its first operand, not transposed"),
        ([node("MatMul", ["w", "x"], ["y"])], {"w": W}, r"node 'y' \(MatMul\): expected x, then constant weights"),
        ([node("MatMul", ["x", "x"], ["y"])], {}, "expected x, then constant weights, got 'x' and 'x'"),
        ([node("Gemm", ["x", "w", "b"], ["y"])], {"w": W, "b": np.ones((2, 4), np.float32)}, r"\(4,\), got \(2, 4\)"),
        ([node("Gemm", ["x", "w"], ["y"])], {"w": W.astype(np.float16)}, "expected float32 or float64, but 'w' is fl"),
        ([node("Add", ["x", "b"], ["y"])], {"b": B}, r"\(Add\): expected a number for each of 3 columns, got 4"),
        ([node("Add", ["x", "b"], ["y"])], {"b": W}, r"expected a number for each column, \(columns,\), got \(3, 4\)"),
        ([node("Relu", ["x"], ["y"])], {}, "expected a Gemm, a MatMul or another"),
        (
            [
                node("Gemm", ["x", "w"], ["z"], name="shared"),
                node("Relu", ["x"], ["r"]),
                node("Gemm", ["r", "w"], ["v"]),
                node("Add", ["z", "v"], ["a"], name="first"),
                node("Mul", ["z", "a"], ["b"]),
                node("Add", ["b", "v"], ["y"]),
            ],
            {"w": W},
            r"expected branches that join again, but Add 'first', .* read its output and do not all join",
        ),
        (
            [node("Relu", ["x"], ["y"], domain="my")],
            {},
            "expected a standard ONNX operator, got one of the domain 'my'",
        ),
        ([node("Dropout", ["x", "p", "t"], ["y"])], {"p": np.float32(0.5), "t": np.array(True)}, "training_mode false"),
        ([node("Cast", ["x"], ["y"], to=TensorProto.FLOAT16)], {}, "expected a cast to float32 or float64"),
        ([node("Softmax", ["x"], ["y"], axis=0)], {}, "expected the axis of the columns"),
        (
            [node("Reshape", ["x", "s"], ["r"]), node("Gemm", ["r", "w"], ["y"])],
            {"s": np.array([-1, 1]), "w": W[:1]},
            "expected rows of 3 columns, got 1",
        ),
        ([node("Transpose", ["x"], ["y"])], {}, r"\(Transpose\): no layer of this library"),
        ([node("Min", ["x", "z"], ["y"]), node("Relu", ["x"], ["z"])][::-1], {}, r"\(Min\): no layer of this library"),
        (
            [node("Flatten", ["x"], ["y"], axis=0)],
            {},
            r"node 'y' \(Flatten\): expected an operator that keeps the rows",
        ),
        (
            [node("Gemm", ["x", "w"], ["z"]), node("Gemm", ["z", "v"], ["y"])],
            {"w": W, "v": np.ones((4, 2))},
            r"expected weights of one dtype, got \['float32', 'float64'\]",
        ),
    ],
)
def test_what_from_onnx_refuses(nodes, constants, message):
    with pytest.raises(ValueError, match=message):
        cnn.from_onnx(graph(nodes, constants))


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([node("Selu", ["h"], ["y"])], cnn.SELU()),
        ([node("Elu", ["h"], ["y"], alpha=1.5)], cnn.ELU(1.5)),
        ([node("Celu", ["h"], ["y"])], cnn.CELU()),
        ([node("Celu", ["h"], ["y"], alpha=0.5)], cnn.CELU(0.5)),
        ([node("LeakyRelu", ["h"], ["y"], alpha=-0.5)], cnn.LeakyReLU(-0.5)),
        ([node("Softsign", ["h"], ["y"])], cnn.Softsign()),
        ([node("Abs", ["h"], ["a"]), node("Add", ["one", "a"], ["c"]), node("Div", ["h", "c"], ["y"])], cnn.Softsign()),
        ([node("Softplus", ["h"], ["a"]), node("Tanh", ["a"], ["c"]), node("Mul", ["h", "c"], ["y"])], cnn.Mish()),
        ([node("Mish", ["h"], ["y"])], cnn.Mish()),
        ([node("Clip", ["h", "zero", "six"], ["y"])], cnn.ReLU6()),
        ([node("Relu", ["h"], ["a"]), node("Min", ["a", "six"], ["y"])], cnn.ReLU6()),
        ([node("Clip", ["h", "zero"], ["y"])], cnn.ReLU()),
        ([node("HardSigmoid", ["h"], ["y"], alpha=1 / 6)], cnn.HardSigmoid()),
        ([node("HardSwish", ["h"], ["y"])], cnn.HardSwish()),
        ([node("HardSigmoid", ["h"], ["a"], alpha=1 / 6), node("Mul", ["h", "a"], ["y"])], cnn.HardSwish()),
        ([node("PRelu", ["h", "slope"], ["y"])], cnn.PReLU()),
        ([node("PRelu", ["h", "b"], ["y"])], cnn.PReLU(4)),
    ],
)
def test_forms_of_an_activation(nodes, expected):
    """Read as this one, and equal to ONNX Runtime."""
    numbers = {"zero": np.float32(0), "one": np.float32(1), "six": np.float32(6), "slope": np.float32([0.3])}
    used = {name: a for name, a in {**numbers, "b": B}.items() if any(name in n.input for n in nodes)}
    proto = graph([node("Gemm", ["x", "w"], ["h"]), *nodes], {"w": 10 * W, **used})
    model = cnn.from_onnx(proto)
    assert repr(model.layers[1]) == repr(expected)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    np.testing.assert_allclose(model.predict(X), session.run(None, {"x": X})[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "act",
    [
        node("Selu", ["h"], ["y"], alpha=1.5, name="act"),
        node("Selu", ["h"], ["y"], gamma=1.0, name="act"),
        node("ThresholdedRelu", ["h"], ["y"], alpha=0.5, name="act"),
    ],
    ids=str,
)
def test_other_parameters_are_refused(act):
    """They are the attributes of an activation that has none here."""
    with pytest.raises(ValueError, match=rf"node 'act' \({act.op_type}\): no layer of this library"):
        cnn.from_onnx(graph([node("Gemm", ["x", "w"], ["h"]), act], {"w": W}))


def test_several_ends():
    with pytest.raises(ValueError, match="model: expected one input, got 2: 'x', 'x2'"):
        cnn.from_onnx(graph([node("Add", ["x", "x2"], ["y"])], inputs=("x", "x2")))


@pytest.mark.parametrize("content", [b"", b"no protobuf at all", b"\x08\x0a" * 20])
def test_files_that_are_none(content, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.onnx: cannot be read as an ONNX model: "):
        cnn.from_onnx(path)
    with pytest.raises(OSError, match="nowhere"):
        cnn.from_onnx(tmp_path / "nowhere.onnx")
