"""A search over hyper-parameters on dask's workers, as docs/distributed.md shows it."""

import re
from pathlib import Path

import numpy as np
import pytest

distributed = pytest.importorskip("distributed")
from sklearn.model_selection import GridSearchCV  # noqa: E402

from cnn.sklearn import MLPClassifier  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "distributed.md"


@pytest.mark.filterwarnings("ignore")
def test_a_search_on_dask_finds_what_one_in_this_process_finds(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 4))
    y = (x[:, 0] * x[:, 1] > 0).astype(int)

    def search():
        net = MLPClassifier(hidden_layer_sizes=(8,), max_iter=5, random_state=0)
        return GridSearchCV(net, {"alpha": [1e-4, 1.0], "learning_rate_init": [1e-3, 0.1]}, cv=3)

    here = search().fit(x, y)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        names = {"search": search(), "x": x, "y": y}
        submit, sent = distributed.Client.submit, []

        def noted(*args, **options):
            sent.append(args)
            return submit(*args, **options)

        monkeypatch.setattr(distributed.Client, "submit", noted)
        block = re.search(r"```py\n(from dask[^`]*)```", PAGE.read_text())[1]
        exec(block.replace('"scheduler:8786"', repr(cluster.scheduler_address)), names)
        names["client"].close()
    there = names["search"]
    assert sent, "nothing has been sent to the workers"
    for name in ("split0_test_score", "split1_test_score", "split2_test_score"):
        np.testing.assert_array_equal(there.cv_results_[name], here.cv_results_[name])
    assert there.best_params_ == here.best_params_
    np.testing.assert_array_equal(there.predict_proba(x), here.predict_proba(x))
