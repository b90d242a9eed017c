"""What is said of failures on workers, and when a search gives up: each limit with its message."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evolve.outcome import Failed, Scored
from tests.fault.driver import candidates, run

pytestmark = pytest.mark.slow

_HOST = re.escape(socket.gethostname())


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One candidate raises, one hangs its worker, one kills every worker that tries it; then all raise.

    The folder, and how the search ended.
    """
    folder = tmp_path_factory.mktemp("failures") / "search"
    faults = {"1": "raise", "3": "hang", "6": "kill", "7": "kill", "8": "kill"}
    faults |= {str(number): "raise" for number in range(12, 40)}
    ending, _ = run(folder, max_fevals=40, num_workers=1, limit_s=1.5, faults=faults)
    return folder, ending


@pytest.fixture(scope="module")
def folder(search: tuple[Path, dict[str, Any]]) -> Path:
    return search[0]


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
    found = entry(rf"^\S+  worker-0 on {_HOST}, stage worker: candidate 2: RuntimeError: the task's scorer")
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


def test_a_search_stops_when_everything_fails_for_the_same_reason(
    search: tuple[Path, dict[str, Any]],
) -> None:
    folder, ending = search
    assert ending["error"] == "RepeatedFailureError"
    assert re.search(
        r"^the last 8 candidates failed for the same reason \(worker: RuntimeError: the task's scorer "
        r"divides by zero\); the tracebacks are in the workers' logs\. Mend it and start the same "
        r"command again$",
        ending["message"],
    )
    *before, last_good = list(candidates(folder).values())[:-8]
    assert isinstance(last_good.outcome, Scored)
    assert sum(isinstance(record.outcome, Failed) for record in before) == 2
