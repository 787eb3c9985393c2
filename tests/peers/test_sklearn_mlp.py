"""scikit-learn's own tests of its networks, those of the installed version, pass with the import replaced; its checks
of estimators pass with options that its networks do not have (those without: test_sklearn_agreement.py), and a search
in two processes gives what one process gives."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

import cnn
from cnn.sklearn import MLPClassifier, MLPRegressor

IMPORT = "from sklearn.neural_network import MLPClassifier, MLPRegressor"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(cnn.__file__).parents[1])}  # the cnn that is under test
FIXTURE = (
    "import pytest\n\n@pytest.fixture(params=[0, 1])\ndef global_random_seed(request):\n    return request.param\n"
)


def test_mlp(tmp_path):
    spec = importlib.util.find_spec("sklearn.neural_network.tests.test_mlp")
    if spec is None or spec.origin is None:
        pytest.fail("this scikit-learn has no sklearn/neural_network/tests/test_mlp.py")
    text = Path(spec.origin).read_text()
    assert text.count(IMPORT) == 1
    (tmp_path / "test_mlp.py").write_text(text.replace(IMPORT, IMPORT.replace("sklearn.neural_network", "cnn.sklearn")))
    (tmp_path / "conftest.py").write_text(FIXTURE)  # of scikit-learn's own conftest.py
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mlp.py"]
    result = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout
    assert "skipped" not in result.stdout.splitlines()[-1]
    assert int(result.stdout.splitlines()[-1].split(" passed")[0].split()[-1]) >= 59


@parametrize_with_checks(
    [
        MLPClassifier(max_iter=100, layer_norm=True, activation="gelu", schedule=cnn.CosineAnnealingLR(100)),
        MLPRegressor(max_iter=100, loss="huber", optimizer=cnn.AdamW(), n_jobs=1),
    ]
)
@pytest.mark.filterwarnings("ignore")
def test_estimator_checks(estimator, check):
    check(estimator)


@pytest.mark.filterwarnings("ignore")
def test_search_with_two_workers():
    """The same answers as with one; each worker has its share of the processors."""
    x = np.random.default_rng(0).standard_normal((90, 3))
    y = x[:, 0] > 0
    grid = {"alpha": [1e-4, 1e-1], "hidden_layer_sizes": [(4,), (8, 8)]}
    one, two = (GridSearchCV(MLPClassifier(max_iter=5, random_state=0), grid, cv=3, n_jobs=n).fit(x, y) for n in (1, 2))
    assert one.best_params_ == two.best_params_
    np.testing.assert_array_equal(one.cv_results_["mean_test_score"], two.cv_results_["mean_test_score"])
    threads = joblib.Parallel(n_jobs=2)(joblib.delayed(cnn.get_num_threads)() for _ in range(4))
    assert set(threads) == {max(1, joblib.cpu_count() // 2)}


def test_benchmark(tmp_path):
    """It compares the answers itself and prints a table; the figures are not looked at."""
    script = Path(__file__).parents[2] / "bench" / "estimators.py"
    command = [sys.executable, script, "--rounds", "1", "--rows", "fit breast_cancer", "predict digits 1 "]
    result = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    rows = [line.split("|")[1].strip() for line in result.stdout.splitlines()[2:]]
    assert rows == ["fit breast_cancer", "fit breast_cancer batch_size=32", "predict digits 1 rows"]
