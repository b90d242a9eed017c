"""A worker's scratch folder on the disk: gone with the worker, however that ends.

Each worker has one folder, `mergevolve-scratch-HOST-PID-...`, and holds a lock on a file in it for as long as
it lives. A tiny process beside it removes the folder as soon as the worker is gone, killed or not. What is
left all the same (the machine went down) is removed by the next worker that starts on that machine: the lock
is free then, since the kernel drops it with its owner. Nothing else is ever deleted.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from evolve.errors import ScratchError

_PREFIX = "mergevolve-scratch-"
_LOCK_NAME = "mergevolve.lock"

# Waits for the end of a pipe, which the kernel closes with the worker. In the background, so that its parent
# is no longer the worker: Ray kills the children of workers that end.
_REMOVER = 'exec 3<&0; (read -r _ <&3; rm -rf -- "$1") &'


def scratch_root(given: Path | None) -> Path:
    """Where scratch folders go on this machine: ``given``, or the system's folder for temporary files."""
    return Path(tempfile.gettempdir()) if given is None else given


class Scratch:
    """This process's scratch folder below ``root``, made now.

    Args:
        owner: what it is for, written into it for people.

    Raises:
        ScratchError: ``root`` cannot be written to.
    """

    def __init__(self, root: Path, owner: str) -> None:
        try:
            root.mkdir(parents=True, exist_ok=True)
            self.folder, self._lock = _new_folder(root)
            json.dump({"pid": os.getpid(), "host": socket.gethostname(), "owner": owner}, self._lock)
            self._lock.flush()
        except OSError as error:
            raise ScratchError(
                f"{root}: no scratch folder can be made there: {error.strerror}; name another place with "
                "--scratch DIR"
            ) from error
        self._alive = _start_remover(self.folder)

    @contextmanager
    def place(self, name: str) -> Iterator[Path]:
        """A path inside that does not exist yet; whatever is there when the block ends is removed."""
        path = self.folder / name
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder now."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._alive)
        self._lock.close()


def remove_left_overs(root: Path) -> list[Path]:
    """Remove the scratch folders below ``root`` that dead workers of this machine and user left; which."""
    return [folder for folder in sorted(root.glob(f"{_host_prefix()}*")) if _remove_if_dead(folder)]


def check_room(root: Path, model_bytes: int, workers: int, owner: str) -> None:
    """Count what the owner's other workers on this machine hold already as free: it is for them.

    Raises:
        ScratchError: the disk below ``root`` does not take one merged model for each worker.
    """
    existing = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.is_dir())
    free_bytes = shutil.disk_usage(existing).free + _held_bytes(root, owner)
    if model_bytes * workers > free_bytes:
        models = "one merged model needs" if workers == 1 else f"{workers} merged models at a time need"
        wanted = f"{models} {model_bytes * workers / 1e9:.2f} GB of disk"
        raise ScratchError(
            f"{root}: {wanted}, and {free_bytes / 1e9:.2f} GB are free; make room, name another place with "
            "--scratch DIR, or take fewer workers (--num-workers)"
        )


def _held_bytes(root: Path, owner: str) -> int:
    folders = [folder for folder in root.glob(f"{_host_prefix()}*") if _owner(folder) == owner]
    return sum(_size_bytes(file) for folder in folders for file in folder.rglob("*"))


def _owner(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / _LOCK_NAME).read_text(encoding="utf-8"))["owner"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _size_bytes(file: Path) -> int:
    try:
        return file.lstat().st_size
    except FileNotFoundError:
        return 0


def _new_folder(root: Path) -> tuple[Path, IO[str]]:
    folder = Path(tempfile.mkdtemp(prefix=f"{_host_prefix()}{os.getpid()}-", dir=root))
    lock = (folder / f"new-{_LOCK_NAME}").open("x", encoding="utf-8")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    Path(lock.name).rename(folder / _LOCK_NAME)  # nobody finds it before it is locked
    return folder, lock


def _start_remover(folder: Path) -> int:
    """A process that removes ``folder`` once the returned descriptor is closed."""
    ending, alive = os.pipe()
    subprocess.run(
        ["sh", "-c", _REMOVER, "sh", str(folder.absolute())],
        stdin=ending,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the search, not for this
        check=True,
    )
    os.close(ending)
    return alive


def _remove_if_dead(folder: Path) -> bool:
    """Whether it is gone: not where it is somebody else's, or its worker lives."""
    if not _is_ours(folder):
        return False
    try:
        with (folder / _LOCK_NAME).open("r+", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return False
    return not folder.exists()


def _is_ours(folder: Path) -> bool:
    """Whether it is a folder, no link to one, and this user's."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _host_prefix() -> str:
    """Locks of other machines cannot be relied on where machines share a disk: each looks after its own."""
    return f"{_PREFIX}{re.sub(r'[^A-Za-z0-9.]', '_', socket.gethostname())}-"
