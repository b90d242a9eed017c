"""What is said of failures on workers, and when a search gives up: each limit with its message."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from evolve.outcome import Failed
from tests.fault.driver import Driver, candidates, run
from tests.fault.machines import machines

pytestmark = pytest.mark.slow

_HOST = re.escape(socket.gethostname())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search in which a candidate raises, one hangs its worker, one kills every worker that tries it."""
    folder = tmp_path_factory.mktemp("failures") / "search"
    faults = {"1": "raise", "3": "hang", "6": "kill", "7": "kill", "8": "kill"}
    ending, _ = run(folder, max_fevals=12, num_workers=1, limit_s=1.5, faults=faults)
    assert ending == {"stopped_because": "budget", "evaluations": 12}
    return folder


@pytest.fixture
def entry(folder: Path) -> Callable[[str], str]:
    """The one entry of the log of failures whose first line matches a pattern, with its traceback."""
    text = (folder / "logs" / "failures.log").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=\S)", text)

    def find(pattern: str) -> str:
        (found,) = [each for each in entries if re.search(pattern, each.splitlines()[0])]
        return found

    return find


def test_a_candidate_that_raises_is_logged_with_worker_host_stage_and_traceback(
    entry: Callable[[str], str],
) -> None:
    found = entry(rf"^\S+  worker-0 on {_HOST}, stage worker: candidate \d+: RuntimeError: the task's scorer")
    assert "    Traceback (most recent call last):" in found
    assert "in _fail" in found
    assert found.endswith("RuntimeError: the task's scorer divides by zero")


def test_a_worker_that_hangs_is_logged_with_the_time_it_had(entry: Callable[[str], str]) -> None:
    entry(rf"worker-0 on {_HOST}, stage timeout: candidate \d+: no result within 1.5 s; it is tried again$")


def test_a_candidate_whose_workers_die_fails_after_its_retries(
    folder: Path, entry: Callable[[str], str]
) -> None:
    reason = "its process died, on each of 3 attempts"
    (record,) = [
        record
        for record in candidates(folder).values()
        if isinstance(record.outcome, Failed) and record.outcome.reason == reason
    ]
    assert record.measured.attempts == 3
    found = entry(rf"worker-0 on {_HOST}, stage worker: candidate {record.id + 1}: {reason}$")
    assert "The actor" in found, "Ray says what it knows of the death"
    tried_again = rf"candidate {record.id + 1}: its process died; it is tried again$"
    text = (folder / "logs" / "failures.log").read_text(encoding="utf-8")
    assert len(re.findall(tried_again, text, re.MULTILINE)) == 2


def test_a_search_stops_when_everything_fails_for_the_same_reason(tmp_path: Path) -> None:
    faults = {str(number): "raise" for number in range(40)}
    ending, _ = run(tmp_path / "search", max_fevals=40, num_workers=1, faults=faults)
    assert ending["error"] == "RepeatedFailureError"
    assert re.search(
        r"^the last 8 candidates failed for the same reason \(worker: RuntimeError: the task's scorer "
        r"divides by zero\); the tracebacks are in the workers' logs\. Mend it and start the same "
        r"command again$",
        ending["message"],
    )
    assert len(candidates(tmp_path / "search")) == 8


def test_a_worker_that_cannot_start_is_logged_with_its_traceback(tmp_path: Path) -> None:
    run(tmp_path / "search", num_workers=1, start_fault="model folder /nowhere does not exist")
    text = (tmp_path / "search" / "logs" / "failures.log").read_text(encoding="utf-8")
    first = text.splitlines()[0]
    assert re.search(rf"worker-0 on {_HOST}, stage start: FileNotFoundError: model folder /nowhere", first)
    assert "in prepare" in text


def test_a_cluster_that_stays_empty_ends_the_search(tmp_path: Path) -> None:
    with machines(1) as cluster:
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
