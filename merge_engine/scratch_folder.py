"""Hidden folders beside a result for what is made on the way to it, and what killed runs left in such ones.

A scratch folder holds a file that its process keeps locked (`flock`); the kernel drops the lock with the
process, however that ends. A folder of the right name whose file nobody has locked is what a killed run left.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_LOCK = "mergevolve.lock"
_SUFFIX = ".partial"
_RANDOM = "[a-z0-9_]{8}"  # of `tempfile`


@contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """A new folder ``.<name of out>.<random>.partial`` beside ``out``, which vanishes when the block ends.

    What killed runs with the same ``out`` have left is removed before: only folders of such a name that hold
    the lock file, and only where no process holds its lock. Raises `OSError`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_overs(out)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=_SUFFIX, dir=out.parent))
    try:
        with (folder / f"new-{_LOCK}").open("xb") as lock:
            _lock(lock)
            Path(lock.name).rename(folder / _LOCK)  # nobody sees it before it is locked
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left_overs(out: Path) -> None:
    ours = re.compile(rf"\.{re.escape(out.name)}\.{_RANDOM}{re.escape(_SUFFIX)}")
    for folder in [entry for entry in out.parent.iterdir() if ours.fullmatch(entry.name)]:
        with contextlib.suppress(OSError), (folder / _LOCK).open("rb") as lock:
            if not folder.is_symlink() and _lock(lock):
                shutil.rmtree(folder, ignore_errors=True)


def _lock(file: BinaryIO) -> bool:
    """Whether the lock of the file could be had: not where another process has it, or the disk knows none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
