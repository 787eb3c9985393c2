"""scikit-learn's own tests of its networks, those of the installed version, pass with the import replaced."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

IMPORT = "from sklearn.neural_network import MLPClassifier, MLPRegressor"
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
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout
    assert "skipped" not in result.stdout.splitlines()[-1]
    assert int(result.stdout.splitlines()[-1].split(" passed")[0].split()[-1]) >= 59
