"""Training, by pytest-benchmark: one test for each workload and contender.

    python -m pytest bench -k "mnist64 and not sklearn" --benchmark-columns=min,median,rounds

Times are of one step. Here each contender is measured by itself; in `make bench` they take turns, so that its ratios
are the better ones.
"""

import pytest
import timing
from workloads import ROWS


@pytest.mark.parametrize(("workload", "who"), timing.cases(row for row in ROWS if row.kind != "predict"))
def test_training(benchmark, workload, who):
    timing.time_checked(benchmark, workload, who)
