"""Counts magnitudes by bin: in C++ (`counting.cpp`) where there is a compiler, and otherwise in numpy.

A bin is the upper 16 bits of a number as fp32, without the sign: there are 2**15. Both ways count alike.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from merge_engine.cache_folder import cache_folder
from merge_engine.compile_kernel import compile_library
from merge_engine.kernel_library import CompilePolicy, is_ours
from merge_engine.kernel_loop import HEAD
from merge_engine.kernel_variants import processor
from merge_engine.methods.task_vectors import task_vector
from merge_engine.threads import mapped

BINS = 2**15
BIN_SHIFT = 16
COMPILED_FROM_ELEMENTS = 2**20  # compiling takes a second, once; numpy counts so many in 2 ms

Where: TypeAlias = "slice | Tensor"
_BLOCK_ELEMENTS = 2**20
_CODES = {torch.bfloat16: 0, torch.float32: 1, torch.float16: 2}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """x - base as formed in ``dtype``, or x alone, of that dtype, where ``base`` is None.

    It holds no tensor: ``x`` and ``base`` give elements, flat, always the same.
    """

    x: Callable[[Where], Tensor]
    base: Callable[[Where], Tensor] | None
    dtype: torch.dtype
    elements: int

    def __call__(self, where: Where) -> Tensor:
        return (
            self.x(where) if self.base is None else task_vector(self.x(where), self.base(where), self.dtype)
        )


class Counter:
    """``policy``: ``never`` counts in numpy; otherwise a compiler is asked for long tensors."""

    def __init__(self, policy: CompilePolicy) -> None:
        self._policy = policy

    def count(self, differences: Differences, start: int, stop: int) -> npt.NDArray[np.uint32]:
        """How many of elements [start, stop) are in each bin, shape (2**15,)."""
        counts = np.zeros(BINS, dtype=np.uint32)
        if self._run("count_bins", differences, start, stop, counts.ctypes.data) is None:
            counts += np.bincount(bins_of(differences(slice(start, stop))), minlength=BINS).astype(np.uint32)
        return counts

    def find(self, differences: Differences, start: int, stop: int, number: int, wanted: int) -> int:
        """The place of the ``wanted``-th element (from 1) of a bin, of those in [start, stop)."""
        found = self._run("find_in_bin", differences, start, stop, number, wanted)
        if found is not None:
            return start + found
        places = np.flatnonzero(bins_of(differences(slice(start, stop))) == number)
        return start + int(places[wanted - 1])

    def largest(self, x_N: Tensor) -> int:
        """The largest bin of a tensor's elements, 0 where there are none; NaN is not below infinity."""
        numbers = Differences(x=lambda where: x_N[where], base=None, dtype=x_N.dtype, elements=len(x_N))

        def of_block(start: int) -> int:
            stop = min(start + _BLOCK_ELEMENTS, len(x_N))
            found = self._run("largest_bin", numbers, start, stop)
            return int(bins_of(x_N[start:stop]).max()) if found is None else found

        return max(mapped(of_block, range(0, len(x_N), _BLOCK_ELEMENTS)), default=0)

    def _run(
        self, function: str, differences: Differences, start: int, stop: int, *arguments: int
    ) -> int | None:
        """None where it is not there, or does not know the dtypes."""
        if self._policy == "never" or differences.dtype not in _CODES:
            return None
        library = _LIBRARY.functions(worth=differences.elements >= COMPILED_FROM_ELEMENTS)
        if library is None:
            return None
        x_N = differences.x(slice(start, stop))
        base_N = None if differences.base is None else differences.base(slice(start, stop))
        if x_N.dtype not in _CODES or (base_N is not None and base_N.dtype != x_N.dtype):
            return None
        codes = _CODES[x_N.dtype], _CODES[differences.dtype]
        places = x_N.data_ptr(), None if base_N is None else base_N.data_ptr()
        found: int = getattr(library, function)(*codes, *places, stop - start, *arguments)
        return None if found < 0 else found


def bins_of(delta_N: Tensor) -> npt.NDArray[np.integer]:
    """The bin of each element; numpy compares them quicker than torch."""
    if delta_N.dtype == torch.bfloat16:
        return (delta_N.view(torch.int16) & 0x7FFF).numpy()
    return (delta_N.to(torch.float32).view(torch.int32).numpy() >> BIN_SHIFT) & 0x7FFF


class _Library:
    """The compiled functions. Made at the first need: asking compiles them, or loads what is there."""

    def __init__(self) -> None:
        self._functions: ctypes.CDLL | None = None
        self._is_hopeless = False
        self._lock = threading.Lock()

    def functions(self, *, worth: bool) -> ctypes.CDLL | None:
        """None where they are not there yet and it is not ``worth`` compiling them, or where that fails."""
        if self._functions is None and not self._is_hopeless:
            with self._lock:
                self._find(worth)
        return self._functions

    def _find(self, worth: bool) -> None:
        file = cache_folder() / "kernels" / _file_name()
        try:
            if worth and not file.is_file():
                file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                compile_library(_source(), file)
            if file.is_file() and is_ours(file):
                self._functions = _declared(ctypes.CDLL(str(file)))
        except (OSError, RuntimeError) as error:
            self._is_hopeless = True
            _log.info("counting.cpp could not be compiled: %s; numpy counts more slowly", error)


def _source() -> str:
    return HEAD + Path(__file__).with_name("counting.cpp").read_text(encoding="utf-8")


@functools.cache
def _file_name() -> str:
    """Another one where code or processor differ."""
    code = (_source() + processor()).encode()
    return f"counting-{hashlib.blake2b(code, digest_size=16).hexdigest()}.so"


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    tensors: list[Any] = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    library.count_bins.argtypes = [*tensors, ctypes.c_void_p]
    library.find_in_bin.argtypes = [*tensors, ctypes.c_int, ctypes.c_int64]
    library.largest_bin.argtypes = tensors
    for function in (library.count_bins, library.find_in_bin, library.largest_bin):
        function.restype = ctypes.c_int64
    return library


_LIBRARY = _Library()
