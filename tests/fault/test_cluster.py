"""The search on a cluster whose machines come and go."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fault.driver import BUDGET, Driver, candidates, content, run
from tests.fault.machines import Machines, machines

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    """Of as many machines as the test before left it."""
    with machines() as cluster:
        yield cluster


def test_machines_that_leave_and_join_change_nothing_but_the_speed(
    tmp_path: Path, undisturbed: list[dict[str, Any]], cluster: Machines
) -> None:
    folder = tmp_path / "search"
    cluster.become(3)
    driver = Driver(folder, max_fevals=BUDGET, sleep_s=1.2, address=cluster.address, num_workers=None)
    driver.wait_for_candidates(5)  # in the middle of generation 1
    cluster.remove()
    cluster.add()
    ending = driver.ending()

    assert ending == {"stopped_because": "budget", "evaluations": BUDGET}
    assert content(folder / "journal.jsonl") == undisturbed
    log = "\n".join(driver.lines)
    assert re.search(r"worker-\d lost: .* left the cluster|worker-\d died: ", log)
    assert "worker-3 started: ready on" in log
    assert "worker-3" in {record.measured.worker for record in candidates(folder).values()}


def test_a_driver_that_is_killed_resumes_on_what_is_left_of_the_cluster(
    tmp_path: Path, undisturbed: list[dict[str, Any]], cluster: Machines
) -> None:
    folder = tmp_path / "search"
    cluster.become(3)
    driver = Driver(folder, max_fevals=BUDGET, sleep_s=0.2, address=cluster.address, num_workers=None)
    driver.wait_for_candidates(10)
    driver.kill()
    cluster.remove()
    ending, _ = run(folder, max_fevals=BUDGET, address=cluster.address, num_workers=None)

    assert ending == {"stopped_because": "budget", "evaluations": BUDGET}
    assert content(folder / "journal.jsonl") == undisturbed


def test_a_cluster_that_stays_empty_ends_the_search(tmp_path: Path, cluster: Machines) -> None:
    cluster.become(1)
    options = {"max_fevals": 40, "sleep_s": 0.5, "num_workers": None, "empty_limit_s": 3.0}
    driver = Driver(tmp_path / "search", address=cluster.address, **options)
    driver.wait_for_candidates(2)
    cluster.remove()
    ending = driver.ending()
    assert ending["error"] == "FleetError"
    assert ending["message"] == (
        "the cluster has had no machine for workers for 3 s; bring machines back and start the same command "
        "again to go on"
    )
    assert len(candidates(tmp_path / "search")) >= 2
