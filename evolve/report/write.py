"""A search's report as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evolve.errors import StorageError
from evolve.journal import read_journal
from evolve.report.summary import Summary, summarise
from evolve.stage_paths import StageState, current_stage, stage_states
from evolve.storage import StoragePath, write_atomically


def write_report(storage: StoragePath) -> Path:
    """Write report.html from the journal; of a search in stages, from that of the last one that has begun.

    Raises:
        JournalError: there is no journal, or it is damaged.
        StorageError: the page cannot be written; the one before it is still there.
    """
    from evolve.report.page import render

    stages = stage_states(storage)
    write_atomically(storage.report, render(_current_summary(stages), storage.folder, stages))
    return storage.report


def write_picture(storage: StoragePath, path: Path) -> None:
    """Write the report's main picture as a PNG file. Raises as `write_report`."""
    from evolve.report.figures import overview, png

    picture = png(overview(_current_summary(stage_states(storage))))
    try:
        path.write_bytes(picture)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def _current_summary(stages: Sequence[StageState]) -> Summary:
    current = current_stage(stages)
    return current.summary or summarise(read_journal(current.storage.journal))
