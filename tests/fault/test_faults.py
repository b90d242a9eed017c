"""The whole search under every kind of accident, with real Ray workers and real signals."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from evolve.holdout import HoldoutRow, run_holdout
from evolve.journal import Journal, canonical, read_journal
from evolve.ledger import choose_winner
from evolve.outcome import Failed
from evolve.records import CandidateRecord
from evolve.search import SearchSettings, new_run, run_search
from tests.fault.inline_fleet import InlineFleet
from tests.fault.toy import ToyEvaluator, ToyFactory, ToySpace

pytestmark = pytest.mark.slow

_ROOT = Path(__file__).parents[2]
_BUDGET = 40
_KILLS = 10


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The journal of the same search with no accident, no Ray and another number of workers."""
    folder = tmp_path_factory.mktemp("undisturbed")
    settings = SearchSettings(seed=3, popsize=6, max_fevals=_BUDGET)
    space = ToySpace()
    run = new_run(space, settings, batch_size=4, inputs={}, started_at="yesterday")
    journal = Journal.create(folder / "journal.jsonl", run)
    fleet = InlineFleet(ToyEvaluator(ToyFactory(scratch=folder)), capacity=3)
    result = run_search(space, settings, fleet, journal)
    winner = choose_winner(record for record in (result.best, result.mean) if record is not None)
    assert winner is not None
    run_holdout([HoldoutRow(name="best", candidate=winner)], fleet, journal)
    journal.close()
    return content(journal.path)


def content(path: Path) -> list[dict[str, Any]]:
    view = read_journal(path)
    return canonical([view.run, *view.candidates, *view.holdout])


class Driver:
    """A driver process; iterating over it gives what it prints."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fault.runner", str(folder), json.dumps(options)],
            cwd=_ROOT,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []

    def __iter__(self) -> Iterator[str]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip())
            yield line

    def ending(self) -> dict[str, Any]:
        """What its last line says, when it has ended."""
        for _ in self:
            pass
        assert self._process.wait() == 0
        self._close()
        ending: dict[str, Any] = json.loads(self.lines[-1])
        return ending

    def wait_for_candidates(self, count: int) -> None:
        """Until so many were scored, or it has ended."""
        for line in self:
            count -= line.startswith("candidate")
            if count <= 0:
                return

    def send(self, number: int) -> None:
        """A signal to it and, as from a terminal, to all that it started and that did not take leave."""
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._close()

    def _close(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()

    def worker_pids(self) -> list[int]:
        return [
            int(found) for line in self.lines for found in re.findall(r"ready on .*, process (\d+)", line)
        ]


def run(folder: Path, **options: Any) -> tuple[dict[str, Any], Driver]:
    driver = Driver(folder, **options)
    return driver.ending(), driver


def candidates(folder: Path) -> Mapping[int, CandidateRecord]:
    return {record.id: record for record in read_journal(folder / "journal.jsonl").candidates}


def test_a_driver_killed_at_ten_random_moments_ends_with_the_undisturbed_journal(
    tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    folder = tmp_path / "search"
    moments = random.Random(0)
    pids: list[int] = []
    for _ in range(_KILLS):
        driver = Driver(folder, max_fevals=_BUDGET, sleep_s=0.3)
        driver.wait_for_candidates(moments.randint(1, 4))
        time.sleep(moments.uniform(0.0, 0.3))
        driver.kill()
        pids += driver.worker_pids()
    assert 0 < len(candidates(folder)) < _BUDGET, "the kills were meant to come in the middle"
    ending, _ = run(folder, max_fevals=_BUDGET)
    assert ending == {"stopped_because": "budget", "evaluations": _BUDGET}
    assert content(folder / "journal.jsonl") == undisturbed
    assert not [pid for pid in pids if psutil.pid_exists(pid)], "workers outlived their driver"


@pytest.fixture(scope="module")
def accidents(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Driver]:
    """One search in which workers die and hang and candidates fail."""
    folder = tmp_path_factory.mktemp("accidents") / "search"
    faults = {"2": "kill", "6": "hang", "10": "nan", "13": "raise"}
    ending, driver = run(folder, max_fevals=_BUDGET, limit_s=1.5, faults=faults)
    assert ending == {"stopped_because": "budget", "evaluations": _BUDGET}
    return folder, driver


def test_a_dead_and_a_hung_worker_are_replaced_and_their_candidates_retried(
    accidents: tuple[Path, Driver],
) -> None:
    folder, driver = accidents
    assert sum(record.measured.attempts == 2 for record in candidates(folder).values()) == 2
    log = "\n".join(driver.lines)
    assert re.search(r"worker-\d died: its process died; it is replaced", log)
    assert re.search(r"worker-\d hung: no result within 1.5 s; it is replaced", log)
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
    ending, _ = run(folder, max_fevals=_BUDGET, file_limit_bytes=6000)
    assert ending["error"] == "JournalError"
    assert re.search(r"cannot write to .*journal.jsonl: File too large; .* make room", ending["message"])
    before = candidates(folder)
    assert before
    with (folder / "journal.jsonl").open("a") as journal:
        journal.write('{"kind":"candidate","id":')  # and a torn line on top
    ending, _ = run(folder, max_fevals=_BUDGET)
    assert ending["evaluations"] == _BUDGET
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
