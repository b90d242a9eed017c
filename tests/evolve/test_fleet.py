"""How a cluster is shared out among workers."""

from __future__ import annotations

import pytest

from evolve.errors import FleetError
from evolve.ray_cluster import threads_per_worker


@pytest.mark.parametrize(
    ("cores", "workers", "threads"),
    [
        ([2], 1, 2),
        ([2], 2, 1),
        ([16], 3, 5),
        ([8, 8], 3, 4),  # two on one machine, one on the other
        ([8, 2], 2, 4),
        ([8, 2], 5, 2),
        ([1, 1, 1], 3, 1),
    ],
)
def test_workers_get_equal_shares_of_cores_and_none_straddles_machines(
    cores: list[int], workers: int, threads: int
) -> None:
    assert threads_per_worker(cores, workers) == threads


@pytest.mark.parametrize(("cores", "workers"), [([2], 3), ([0], 1), ([], 1)])
def test_more_workers_than_cores_are_refused(cores: list[int], workers: int) -> None:
    with pytest.raises(FleetError, match=rf"{workers} workers do not fit on {sum(cores)} cores"):
        threads_per_worker(cores, workers)
