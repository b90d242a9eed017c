"""A search from the command line, in a process of its own, and what its journal says meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evolve.journal import read_journal
from evolve.records import CandidateRecord

ROOT = Path(__file__).parents[2]


@contextmanager
def driver(folder: Path, log: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`mergekit-evolve` in a process of its own, killed if it outlives the block."""
    command = [sys.executable, "-c", "from evolve.cli.search import main; main()", "search.yml"]
    command += ["--storage-path", "run", "--task-search-path", "tasks", "--num-workers", "1", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (folder / log).open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def candidates(folder: Path) -> tuple[CandidateRecord, ...]:
    """The candidates in the journal, as far as it has begun: its first line takes a moment, too."""
    path = folder / "run" / "journal.jsonl"
    begun = path.exists() and b"\n" in path.read_bytes()
    return read_journal(path).candidates if begun else ()
