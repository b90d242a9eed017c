"""Folders that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from merge_engine.errors import OutputError
from merge_engine.synced_files import synced


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``out`` when the block ends well, and vanishes when it does not.

    Raises `OutputError` where ``out`` exists (of two writers at once the second fails, and the first one's
    folder stays) or the disk does not take it.
    """
    check_free(out)
    temporary = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
        yield temporary
        temporary.chmod(0o755)
        _sync_folder(temporary)
        temporary.replace(out)
        _sync_folder(out.parent)
    except OSError as error:
        raise OutputError(
            f"{out}: cannot be written: {error.strerror or error}; nothing was left there"
        ) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


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
