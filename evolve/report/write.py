"""A search's report as files."""

from __future__ import annotations

from pathlib import Path

from evolve.errors import StorageError
from evolve.journal import read_journal
from evolve.report.summary import summarise
from evolve.storage import StoragePath, write_atomically


def write_report(storage: StoragePath) -> Path:
    """Write report.html from the journal.

    Raises:
        JournalError: there is no journal, or it is damaged.
        StorageError: the page cannot be written; the one before it is still there.
    """
    from evolve.report.page import render

    write_atomically(storage.report, render(summarise(read_journal(storage.journal)), storage.folder))
    return storage.report


def write_picture(storage: StoragePath, path: Path) -> None:
    """Write the report's main picture as a PNG file. Raises as `write_report`."""
    from evolve.report.figures import overview, png

    picture = png(overview(summarise(read_journal(storage.journal))))
    try:
        path.write_bytes(picture)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
