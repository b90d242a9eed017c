"""Driver processes of the toy search, and what their journals hold."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evolve.journal import canonical, read_journal
from evolve.records import CandidateRecord

BUDGET = 40

_ROOT = Path(__file__).parents[2]


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
        (last,) = [line for line in self.lines if line.startswith("{")]  # Ray prints lines of its own
        ending: dict[str, Any] = json.loads(last)
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
