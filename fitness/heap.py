"""How this process's heap treats freed memory."""

from __future__ import annotations

import ctypes
import os
import sys

# glibc's names for them (malloc.h), and what makes its allocator keep what is freed.
_TRIM_THRESHOLD, _NEVER = -1, -1
_MMAP_MAX, _NONE = -4, 0


def keep_freed_memory() -> None:
    """Let large blocks be used again once they are freed, here and in processes that are spawned from here.

    glibc asks the system for each large block and gives it back at once: a model of new tensors for each
    candidate then costs as much in page faults as in merging. The heap stays as large as it ever was. Other
    allocators are left alone.
    """
    if sys.platform != "linux":
        return
    os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**40))
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_MMAP_MAX, _NONE)
        mallopt(_TRIM_THRESHOLD, _NEVER)
