"""The search on a cluster whose machines come and go."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fault.driver import BUDGET, Driver, candidates, content, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves its nodes' log files open
    pytest.mark.filterwarnings("ignore:Tip. In future versions of Ray:FutureWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without workers and three machines with one core each."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield made
    finally:
        made.shutdown()


@pytest.fixture
def machines(cluster: Any) -> Iterator[list[Any]]:
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
    cluster.wait_for_nodes()
    yield nodes
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node)


def test_machines_that_leave_and_join_change_nothing_but_the_speed(
    cluster: Any, machines: list[Any], tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    folder = tmp_path / "search"
    driver = Driver(folder, max_fevals=BUDGET, sleep_s=1.2, address=cluster.address, num_workers=None)
    driver.wait_for_candidates(5)  # in the middle of generation 1
    cluster.remove_node(machines[0], allow_graceful=False)
    cluster.add_node(num_cpus=1)
    ending = driver.ending()

    assert ending == {"stopped_because": "budget", "evaluations": BUDGET}
    assert content(folder / "journal.jsonl") == undisturbed
    log = "\n".join(driver.lines)
    assert re.search(r"worker-\d lost: .* left the cluster|worker-\d died: ", log)
    assert "worker-3 started: ready on" in log
    assert {record.measured.worker for record in candidates(folder).values()} >= {"worker-3"}


def test_a_driver_that_is_killed_resumes_on_what_is_left_of_the_cluster(
    cluster: Any, machines: list[Any], tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    folder = tmp_path / "search"
    driver = Driver(folder, max_fevals=BUDGET, sleep_s=0.2, address=cluster.address, num_workers=None)
    driver.wait_for_candidates(10)
    driver.kill()
    cluster.remove_node(machines[1], allow_graceful=False)
    ending, _ = run(folder, max_fevals=BUDGET, address=cluster.address, num_workers=None)

    assert ending == {"stopped_because": "budget", "evaluations": BUDGET}
    assert content(folder / "journal.jsonl") == undisturbed
