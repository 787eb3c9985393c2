"""Prediction, by pytest-benchmark: one test for each workload and contender. See test_training.py."""

import pytest
import timing
from workloads import ROWS


@pytest.mark.parametrize(("workload", "who"), timing.cases(row for row in ROWS if row.kind == "predict"))
def test_prediction(benchmark, workload, who):
    timing.time_checked(benchmark, workload, who)
