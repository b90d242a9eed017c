"""The whole search under every kind of accident, with real Ray workers and real signals."""

from __future__ import annotations

import random
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from evolve.outcome import Failed
from tests.fault.driver import BUDGET, Driver, candidates, content, run

pytestmark = pytest.mark.slow

_ROOT = Path(__file__).parents[2]
_KILLS = 10


def test_a_driver_killed_at_ten_random_moments_ends_with_the_undisturbed_journal(
    tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    folder = tmp_path / "search"
    moments = random.Random(0)
    pids: list[int] = []
    for _ in range(_KILLS):
        driver = Driver(folder, max_fevals=BUDGET, sleep_s=0.3)
        driver.wait_for_candidates(moments.randint(1, 4))
        time.sleep(moments.uniform(0.0, 0.3))
        driver.kill()
        pids += driver.worker_pids()
    assert 0 < len(candidates(folder)) < BUDGET, "the kills were meant to come in the middle"
    ending, _ = run(folder, max_fevals=BUDGET)
    assert ending == {"stopped_because": "budget", "evaluations": BUDGET}
    assert content(folder / "journal.jsonl") == undisturbed
    assert not [pid for pid in pids if psutil.pid_exists(pid)], "workers outlived their driver"


@pytest.fixture(scope="module")
def accidents(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Driver]:
    """One search in which workers die and hang and candidates fail."""
    folder = tmp_path_factory.mktemp("accidents") / "search"
    faults = {"2": "kill", "6": "hang", "10": "nan", "13": "raise"}
    ending, driver = run(folder, max_fevals=BUDGET, limit_s=1.5, faults=faults)
    assert ending == {"stopped_because": "budget", "evaluations": BUDGET}
    return folder, driver


def test_a_dead_and_a_hung_worker_are_replaced_and_their_candidates_retried(
    accidents: tuple[Path, Driver],
) -> None:
    folder, driver = accidents
    assert sum(record.measured.attempts == 2 for record in candidates(folder).values()) == 2
    log = "\n".join(driver.lines)
    assert re.search(r"worker-\d died: its process died on .+; it is replaced", log)
    assert re.search(r"worker-\d hung: no result within 1.5 s on .+; it is replaced", log)
    assert log.count("started: ready on") >= 3


def test_candidates_that_fail_are_logged_with_their_reason_and_the_search_goes_on(
    accidents: tuple[Path, Driver],
) -> None:
    folder, _ = accidents
    outcomes = [record.outcome for record in candidates(folder).values()]
    reasons = sorted(outcome.reason for outcome in outcomes if isinstance(outcome, Failed))
    assert reasons == [
        "RuntimeError: the task's scorer divides by zero",
        "ValueError: a scored candidate needs a finite score, not nan",
    ]
    logs = "".join(path.read_text() for path in (folder / "logs").iterdir())
    assert "Traceback" in logs
    assert "in _fail" in logs


def test_a_full_disk_ends_the_search_and_it_resumes(
    tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    folder = tmp_path / "search"
    ending, _ = run(folder, max_fevals=BUDGET, file_limit_bytes=6000)
    assert ending["error"] == "JournalError"
    assert re.search(r"cannot write to .*journal.jsonl: File too large; .* make room", ending["message"])
    before = candidates(folder)
    assert before
    with (folder / "journal.jsonl").open("a") as journal:
        journal.write('{"kind":"candidate","id":')  # and a torn line on top
    ending, _ = run(folder, max_fevals=BUDGET)
    assert ending["evaluations"] == BUDGET
    assert content(folder / "journal.jsonl") == undisturbed
    assert all(candidates(folder)[number] == record for number, record in before.items())


def test_ctrl_c_ends_in_good_order(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "search", sleep_s=0.3)
    driver.wait_for_candidates(3)
    driver.send(signal.SIGINT)
    ending = driver.ending()
    assert ending["stopped_because"] == "interrupted"
    assert 3 <= ending["evaluations"] == len(candidates(tmp_path / "search")) < 10


def test_workers_that_cannot_start_end_the_search_once_and_for_all(tmp_path: Path) -> None:
    ending, driver = run(tmp_path / "search", start_fault="model folder /nowhere does not exist")
    assert ending["error"] == "WorkerStartError"
    assert re.search(
        r"^worker-\d could not be prepared: FileNotFoundError: model folder /nowhere does not exist; "
        r"see .*logs/worker-\d.log$",
        ending["message"],
    )
    assert len(driver.lines) == 1
    first, *traceback = (tmp_path / "search" / "logs" / "failures.log").read_text().splitlines()
    host = re.escape(socket.gethostname())
    assert re.search(rf"worker-\d on {host}, stage start: FileNotFoundError: model folder /nowhere", first)
    assert any("in prepare" in line for line in traceback)
