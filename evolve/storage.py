"""The storage path: the folder that holds everything about one search, and at most one driver at a time.

The lock is `flock` on a file inside: the kernel drops it with the process, so that a killed driver leaves
nothing to clean up by hand.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from evolve.errors import SearchChangedError, StorageError, StorageLockedError

_LOCK_NAME = ".lock"
_SEARCH_NAME = "search.yml"
_JOURNAL_NAME = "journal.jsonl"
_STAGES_NAME = "stages"


class StoragePath:
    """Names inside the folder. Building one touches nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.search_file = folder / _SEARCH_NAME
        self.journal = folder / _JOURNAL_NAME
        self.best_config = folder / "best_config.yaml"
        self.final_model = folder / "final_model"
        self.report = folder / "report.html"
        self.logs = folder / "logs"
        self._lock_file = folder / _LOCK_NAME

    def stage(self, name: str) -> StoragePath:
        """Where a stage that is not the last one lies: a storage path of its own, inside this one."""
        return StoragePath(self.folder / _STAGES_NAME / name)

    def check_usable(self) -> None:
        """Refuse a folder with other people's things in it.

        Raises:
            StorageError: the path is a file, or a non-empty folder that no search made.
        """
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise StorageError(
                f"{self.folder} is a file; the storage path has to be a folder (a new one is made)"
            )
        names = sorted(entry.name for entry in self.folder.iterdir())
        if names and _LOCK_NAME not in names and _SEARCH_NAME not in names:
            raise StorageError(
                f"{self.folder} is not empty and no storage path of an earlier search (it holds "
                f"{_listed(names)}, but no {_SEARCH_NAME}); give a new or empty folder"
            )

    def lock(self) -> StorageLock:
        """Make the folder if need be and become its only driver until the lock is released or the process
        ends.

        Raises:
            StorageError: as in `check_usable`, or the folder cannot be written.
            StorageLockedError: another driver holds it; the message says which.
        """
        self.check_usable()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = self._lock_file.open("a+", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"cannot write to the storage path {self.folder}: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(handle)
            handle.close()
            raise StorageLockedError(
                f"another search is running on {self.folder} ({owner}); wait for it, stop it, "
                "or give another storage path"
            ) from None
        return StorageLock(handle)

    def is_locked(self) -> bool:
        """Whether a driver holds the folder; asking takes no lock that would outlive the question."""
        if not self._lock_file.exists():
            return False
        with self._lock_file.open("rb") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def freeze(self, text: str, differences: Callable[[str, str], Sequence[str]]) -> None:
        """Keep the search file's full text; on a later start it has to be the same.

        Args:
            text: the search file with every default written out.
            differences: given the kept text and the new one, one line for each setting that differs.

        Raises:
            SearchChangedError: the folder belongs to a search with other settings.
        """
        if not self.search_file.exists():
            write_atomically(self.search_file, text)
            return
        found = differences(self.search_file.read_text(encoding="utf-8"), text)
        if found:
            raise SearchChangedError(
                f"{self.folder} belongs to a search with other settings; undo these changes to resume it, "
                "or give another storage path:",
                found,
            )


class StorageLock:
    """Holds the storage path; a context manager."""

    def __init__(self, handle: IO[str]) -> None:
        self._handle = handle
        handle.truncate(0)
        handle.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        handle.flush()

    def release(self) -> None:
        self._handle.close()

    def __enter__(self) -> StorageLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by ``text``: a reader, or a crash at any moment, sees the old content or the new one.

    Raises:
        StorageError: the disk is full or the folder not writable; ``path`` is as it was.
    """
    temporary: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as handle:
            temporary = Path(handle.name)
            handle.write(text)
            handle.flush()
            os.fchmod(handle.fileno(), 0o644)
            os.fsync(handle.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def sync_folder(folder: Path) -> None:
    """Make renames and new files inside ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _owner(handle: IO[str]) -> str:
    """Who wrote the lock file; it may be caught between taking the lock and writing its name."""
    handle.seek(0)
    try:
        owner = json.loads(handle.read())
        return f"process {owner['pid']} on {owner['host']}"
    except (ValueError, KeyError, TypeError):
        return "just started"


def _listed(names: Sequence[str], limit: int = 3) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
