"""Work that lets go of Python's lock, shared out to threads."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_here = threading.local()  # `is_helper`: this thread is one of a pool


def mapped(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """``function`` of each item, in order, by as many threads as torch would take, this one among them.

    Called by ``function`` again, helpers work alone: they do not wait for each other.
    """
    helpers = min(torch.get_num_threads(), len(items)) - 1
    if helpers < 1 or getattr(_here, "is_helper", False):
        return list(map(function, items))
    results: dict[int, _Result] = {}
    left = iter(range(len(items)))

    def work() -> None:
        for place in left:
            results[place] = function(items[place])

    pool = _helpers(torch.get_num_threads() - 1)
    futures = [pool.submit(work) for _ in range(helpers)]
    try:
        work()
    finally:
        for future in futures:
            future.result()
    return [results[place] for place in range(len(items))]


@functools.cache
def _helpers(threads: int) -> ThreadPoolExecutor:
    """They stay: to start some for each tensor takes longer than to merge most tensors."""
    return ThreadPoolExecutor(threads, "merging", initializer=_begin)


def _begin() -> None:
    _here.is_helper = True


os.register_at_fork(after_in_child=_helpers.cache_clear)  # a new process has none of them
