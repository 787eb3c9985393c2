"""`dir`, and with it completion, shows public names and no others."""

import pytest

import cnn
import cnn.sklearn

MODULES = (cnn.functional, cnn.initializers, cnn.layers, cnn.losses, cnn.optim, cnn.sklearn)
NET = [cnn.Linear(2, 3), cnn.MSELoss()]
PARTS = {
    cnn.Ensemble(NET, 2): {"fit", "predict", "parameters", "optimizer"},
    cnn.EarlyStopping(): {"monitor", "patience", "on_epoch_end", "restore_best"},
    cnn.sklearn.MLPRegressor(): {"fit", "predict", "score", "hidden_layer_sizes", "set_params"},
    cnn.Sequential([cnn.Linear(2, 3), cnn.MSELoss()]): {"fit", "predict", "layers", "optimizer", "history"},
    cnn.Linear(2, 3): {"weight", "bias", "in_features", "forward"},
    cnn.LeakyReLU(): {"derivative", "param"},
    cnn.Adam(): {"lr", "beta1", "schedule", "clip_norm"},
    cnn.StepLR(5): {"gamma", "step_size", "plot"},
    cnn.HuberLoss(): {"delta", "reduction", "backward"},
}


def test_of_the_package():
    names = {*dir(cnn)}
    assert {*cnn.__all__, "__version__", "losses"} <= names
    assert not {*names} & {"export", "files", "models", "training"}
    assert [name for name in names if name.startswith("_")] == ["__version__"]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_of_a_module(module):
    assert dir(module) == sorted(module.__all__)
    assert all(hasattr(module, name) for name in dir(module))


@pytest.mark.parametrize(("part", "wanted"), PARTS.items(), ids=[type(part).__name__ for part in PARTS])
def test_of_a_part(part, wanted):
    names = {*dir(part)}
    assert wanted <= names
    assert not {name for name in names if name.startswith("_") or name in ("facts", "known", "names", "torch_name")}
