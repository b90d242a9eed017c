"""Folders that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from merge_engine.errors import OutputError
from merge_engine.scratch_folder import scratch_folder
from merge_engine.synced_files import synced


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``out`` when the block ends well, and vanishes when it does not.

    Of a process that is killed a hidden folder stays until the next start of the same (`scratch_folder`).
    Raises `OutputError` where ``out`` exists (of two writers at once the second fails, and the first one's
    folder stays) or the disk does not take it.
    """
    check_free(out)
    with told_of(out), scratch_folder(out) as scratch:
        temporary = scratch / "result"
        temporary.mkdir()
        yield temporary
        _sync_folder(temporary)
        temporary.replace(out)
        _sync_folder(out.parent)


@contextmanager
def told_of(out: Path) -> Iterator[None]:
    """Turns an `OSError` of the block into an `OutputError` that names ``out``."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{out}: cannot be written: {error.strerror or error}; nothing was left there"
        ) from error


def check_free(out: Path) -> None:
    """Raise `OutputError` where ``out`` is anything but an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: already exists; choose another place, or remove it first")


def copy_files(source: Path, target: Path, names: Sequence[str]) -> None:
    """Copy those of ``names`` that the folder ``source`` has, and fsync them."""
    for name in names:
        if (source / name).is_file():
            with (source / name).open("rb") as original, synced(target / name) as copy:
                shutil.copyfileobj(original, copy)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
