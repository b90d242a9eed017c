"""Keeps the pages of mapped files from counting as this process's memory for longer than they are used."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LIMIT_BYTES = 2**26
_INTERVAL_S = 0.005  # memory is read at some 10 GB/s: 50 MB more
_STATM = Path("/proc/self/statm")


@contextmanager
def resident_limit(drop_pages: Callable[[], None], limit_bytes: int = LIMIT_BYTES) -> Iterator[None]:
    """While the block runs, call ``drop_pages`` whenever mapped files hold ``limit_bytes`` more than before.

    Dropped pages of a mapped file are read again from the page cache, so this may happen at any time, whoever
    reads them. Linux only: elsewhere nothing is dropped.
    """
    if not _STATM.exists():
        yield
        return
    done = threading.Event()
    thread = threading.Thread(
        target=_watch,
        args=(done, drop_pages, _file_bytes() + limit_bytes),
        daemon=True,
        name="resident limit",
    )
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _watch(done: threading.Event, drop_pages: Callable[[], None], limit_bytes: int) -> None:
    while not done.wait(_INTERVAL_S):
        if _file_bytes() > limit_bytes:
            drop_pages()


def _file_bytes() -> int:
    """Resident pages of mapped files, shared libraries included."""
    return int(_STATM.read_text(encoding="ascii").split()[2]) * mmap.PAGESIZE
