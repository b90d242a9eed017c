"""The search on a cluster whose machines come and go."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.fault.driver import BUDGET, Driver, candidates, content, run
from tests.fault.machines import machines

pytestmark = pytest.mark.slow


def test_machines_that_leave_and_join_change_nothing_but_the_speed(
    tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    folder = tmp_path / "search"
    with machines(3) as cluster:
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
    tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    folder = tmp_path / "search"
    with machines(3) as cluster:
        driver = Driver(folder, max_fevals=BUDGET, sleep_s=0.2, address=cluster.address, num_workers=None)
        driver.wait_for_candidates(10)
        driver.kill()
        cluster.remove()
        ending, _ = run(folder, max_fevals=BUDGET, address=cluster.address, num_workers=None)

    assert ending == {"stopped_because": "budget", "evaluations": BUDGET}
    assert content(folder / "journal.jsonl") == undisturbed
