"""A whole search on disk from the command line, while workers and driver are killed: no scratch stays."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from evolve.journal import JournalView, read_journal
from evolve.outcome import Scored
from evolve.scratch import Scratch
from tests.evolve import tiny
from tests.evolve.command_line import candidates, driver
from tests.evolve.test_scratch import HOST, left_over

pytestmark = pytest.mark.slow


def wait_until(
    condition: Callable[[], bool], what: str, process: subprocess.Popen[bytes] | None = None
) -> None:
    for _ in range(3000):
        if condition():
            return
        assert process is None or process.poll() is None, f"the driver ended before {what}"
        time.sleep(0.05)
    raise AssertionError(f"waited in vain until {what}")


def journal(folder: Path) -> JournalView:
    return read_journal(folder / "run" / "journal.jsonl")


def has_scored(folder: Path, count: int) -> bool:
    return len(candidates(folder)) >= count


def scratch_folders(folder: Path, ours: Sequence[Path] = ()) -> list[Path]:
    place = folder / "scratch"
    return [entry for entry in place.iterdir() if entry not in ours] if place.exists() else []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A search on disk whose worker and then whose driver was killed; resumed on disk, then in memory."""
    folder = tmp_path_factory.mktemp("on-disk")
    tiny.write_models(folder / "models")
    tiny.write_tasks(folder / "tasks")
    (folder / "search.yml").write_text(tiny.search_text(folder / "models", candidates=3000), encoding="utf-8")
    neighbour = Scratch(folder / "scratch", "another search")  # runs all the time
    on_disk = ["--no-in-memory", "--scratch", "scratch"]
    with driver(folder, "killed.log", *on_disk) as process:
        wait_until(lambda: has_scored(folder, 6), "six were scored", process)
        (first,) = scratch_folders(folder, [neighbour.folder])
        os.kill(int(first.name.split("-")[3]), signal.SIGKILL)
        wait_until(lambda: not first.exists(), "the dead worker's scratch was gone", process)
        done = len(journal(folder).candidates)
        wait_until(lambda: has_scored(folder, done + 3), "its replacement had scored three", process)
        process.kill()
    wait_until(lambda: scratch_folders(folder) == [neighbour.folder], "the workers' scratch was gone")
    left_over(folder / "scratch" / f"mergevolve-scratch-{HOST}-1-gone")
    for log, options in (("on_disk.log", on_disk), ("in_memory.log", [])):
        budget = str(len(journal(folder).candidates) + 3)
        with driver(folder, log, *options, "--max-fevals", budget) as process:
            assert process.wait(timeout=240) == 0, (folder / log).read_text()
        wait_until(lambda: scratch_folders(folder) == [neighbour.folder], "the workers' scratch was gone")
    assert (neighbour.folder / "mergevolve.lock").exists()
    yield folder
    neighbour.close()


def test_every_candidate_is_scored_and_the_killed_worker_replaced(folder: Path) -> None:
    view = journal(folder)
    assert all(isinstance(record.outcome, Scored) for record in view.candidates)
    assert max(record.measured.attempts for record in view.candidates) <= 2
    assert "its process died" in (folder / "run" / "logs" / "failures.log").read_text()
    assert view.run.inputs["scored by"] == "transformers"


def test_left_overs_of_a_dead_machine_are_removed_at_the_next_start(folder: Path) -> None:
    said = (folder / "on_disk.log").read_text()
    assert "removed 1 scratch folders that killed workers left below " in said
    assert "candidates are merged to the disk, below " in said


def test_a_search_goes_on_in_memory_with_the_same_scores(folder: Path) -> None:
    """The winner is scored again from the exported model, in memory, whoever found it."""
    said = (folder / "in_memory.log").read_text()
    assert "goes on after" in said
    assert "wrote run/final_model" in said
    assert "WARNING" not in said
