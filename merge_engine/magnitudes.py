"""Which elements of a task vector are among its k largest, for any k, without sorting for each candidate.

Magnitudes do not change between candidates, so they are counted once: per block of the tensor, how many
elements fall into each of the 2**15 bins that the sign-less upper half of an fp32 number makes. A bfloat16
magnitude is its bin, so the k-th largest is a look-up in the sums of the counts; where only some of the
elements equal to it are wanted, the counts say in which block the last of them lies, and that block alone is
read. For wider dtypes, the elements of one bin are gathered and sorted.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from merge_engine.counting import BIN_SHIFT, BINS, Counter, Differences, bins_of
from merge_engine.threads import mapped

_SMALL_BLOCK, _LARGE_BLOCK = 2**12, 2**16  # elements; small blocks are quicker to scan but need more counts
_LARGE_FROM = 2**18
_WHOLE_BLOCK = 2**20  # for a single look-up


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Exactly k elements: those with magnitude above ``threshold``, and of those equal to it the ones before
    element ``ties_end``."""

    threshold: float
    ties_end: int


Columns: TypeAlias = Callable[[int, int], npt.NDArray[np.float64]]
# The bins in which a block has elements, and how many: 2**16 of one kind are possible.
_BlockCounts: TypeAlias = tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint32]]


class MagnitudeIndex:
    """Counts of one task vector's magnitudes.

    ``columns(start, stop)``: other numbers of those elements, (columns, stop - start), to be summed by bin.
    ``once``: blocks are long, as for a few look-ups.
    Memory: 1 byte (2 or 4 where a count needs it) for each populated bin of each block, 1-3 % of a bfloat16
    task vector.
    """

    def __init__(
        self, delta: Differences, counter: Counter, columns: Columns | None = None, *, once: bool = False
    ) -> None:
        self._delta = delta
        self._counter = counter
        self._elements = delta.elements
        self._is_exact = delta.dtype == torch.bfloat16  # each bin is one magnitude
        long = _WHOLE_BLOCK if once else _LARGE_BLOCK
        self._block_elements = long if self._elements >= _LARGE_FROM else _SMALL_BLOCK
        blocks = mapped(self._populated_bins, range(-(-self._elements // self._block_elements)))
        bins = [block_bins for block_bins, _ in blocks]
        found = np.unique(np.concatenate(bins)) if bins else np.empty(0)
        self._bins = found[::-1].astype(np.int64)  # largest first
        self._counts = _table(self._bins, blocks)
        self._up_to = self._counts.sum(axis=1, dtype=np.int64).cumsum()
        # sums over the elements of each bin and all larger ones, (columns, bins)
        self.columns_up_to = self._column_sums(columns)[:, self._bins].cumsum(axis=1)

    def kept(self, count: int) -> Kept:
        """The ``count`` largest magnitudes (0 <= count), lowest index first among equals."""
        if count <= 0:
            return Kept(threshold=math.inf, ties_end=self._elements)
        if count >= self._elements:
            return Kept(threshold=0.0, ties_end=self._elements)
        row, wanted = self.row(count)
        return self._exact_bin(row, wanted) if self._is_exact else self._sorted_bin(row, wanted)

    def sums(self, count: int) -> tuple[float, float]:
        """The sum of all magnitudes, and of the ``count`` largest (0 <= count)."""
        total = float(self._sums_up_to[-1]) if len(self._bins) else 0.0
        if count <= 0:
            return total, 0.0
        if count >= self._elements:
            return total, total
        row, wanted = self.row(count)
        sum_before = float(self._sums_up_to[row - 1]) if row else 0.0
        if self._is_exact:
            return total, sum_before + wanted * _magnitude(int(self._bins[row]))
        magnitudes, _ = self.members(row)
        return total, sum_before + float(magnitudes[:wanted].double().sum())

    @property
    def nonzero(self) -> int:
        """How many magnitudes are not 0 (nor below 2**-133, which count as 0 in fp32)."""
        has_zeros = len(self._bins) and self._bins[-1] == 0
        return self._elements - (int(self._counts[-1].sum(dtype=np.int64)) if has_zeros else 0)

    def row(self, count: int) -> tuple[int, int]:
        """The bin, numbered from the largest, of the ``count``-th largest magnitude, and how many of that
        bin's elements are among the ``count`` largest."""
        row = int(np.searchsorted(self._up_to, count))
        return row, count - (int(self._up_to[row - 1]) if row else 0)

    def row_size(self, row: int) -> int:
        """How many elements a bin has."""
        return int(self._counts[row].sum(dtype=np.int64))

    def members(self, row: int) -> tuple[Tensor, Tensor]:
        """The magnitudes in a bin, largest first and by index among equals, and their places."""
        values, places = [], []
        for block in np.flatnonzero(self._counts[row]):
            start, stop = self._limits(int(block))
            delta_N = self._delta(slice(start, stop))
            inside = torch.from_numpy(np.flatnonzero(bins_of(delta_N) == int(self._bins[row])))
            values.append(delta_N[inside].abs())
            places.append(inside + start)
        magnitudes, order = torch.cat(values).sort(descending=True, stable=True)
        return magnitudes, torch.cat(places)[order]

    @functools.cached_property
    def _sums_up_to(self) -> npt.NDArray[np.float64]:
        """The sum of the magnitudes in each bin and all larger ones; read off the counts where they tell."""
        if self._is_exact:
            of_bin = (self._bins.astype(np.uint32) << BIN_SHIFT).view(np.float32).astype(np.float64)
            return np.cumsum(of_bin * self._counts.sum(axis=1, dtype=np.int64))
        sums = np.zeros((1, BINS))
        for block in range(self._counts.shape[1]):
            delta_N = self._delta(slice(*self._limits(block)))
            _add_by_bin(sums, bins_of(delta_N), delta_N.abs().double().numpy()[None])
        return np.cumsum(sums[0, self._bins])

    def _exact_bin(self, row: int, wanted: int) -> Kept:
        """The bin is one magnitude: find the place of its ``wanted``-th element."""
        bin_number = int(self._bins[row])
        threshold = _magnitude(bin_number)
        up_to = self._counts[row].cumsum(dtype=np.int64)
        # Whether a zero counts as kept makes no difference to any merge.
        if wanted == up_to[-1] or threshold == 0.0:
            return Kept(threshold=threshold, ties_end=self._elements)
        block = int(np.searchsorted(up_to, wanted))
        wanted -= int(up_to[block - 1]) if block else 0
        last = self._counter.find(self._delta, *self._limits(block), bin_number, wanted)
        return Kept(threshold=threshold, ties_end=last + 1)

    def _sorted_bin(self, row: int, wanted: int) -> Kept:
        """The bin holds several magnitudes: find the ``wanted``-th of them."""
        magnitudes, places = self.members(row)
        return Kept(threshold=float(magnitudes[wanted - 1]), ties_end=int(places[wanted - 1]) + 1)

    def _populated_bins(self, block: int) -> _BlockCounts:
        counts = self._counter.count(self._delta, *self._limits(block))
        bins = np.flatnonzero(counts)
        return bins.astype(np.uint16), counts[bins]

    def _column_sums(self, columns: Columns | None) -> npt.NDArray[np.float64]:
        if columns is None:
            return np.zeros((0, BINS))
        sums = np.zeros((len(columns(0, 0)), BINS))
        for block in range(self._counts.shape[1]):
            limits = self._limits(block)
            _add_by_bin(sums, bins_of(self._delta(slice(*limits))), columns(*limits))
        return sums

    def _limits(self, block: int) -> tuple[int, int]:
        """The elements of a block: from, to."""
        start = block * self._block_elements
        return start, min(start + self._block_elements, self._elements)


def _magnitude(bin_number: int) -> float:
    return float(np.array(bin_number << BIN_SHIFT, dtype=np.uint32).view(np.float32))


def _add_by_bin(
    sums: npt.NDArray[np.float64], bins_N: npt.NDArray[np.integer], numbers: npt.NDArray[np.float64]
) -> None:
    """Add each element's ``numbers``, (columns, N), to those of its bin, (columns, bins)."""
    places_N = bins_N.astype(np.intp)
    for column, numbers_N in zip(sums, numbers, strict=True):
        column += np.bincount(places_N, numbers_N, minlength=BINS)


def _table(bins: npt.NDArray[np.int64], blocks: Sequence[_BlockCounts]) -> npt.NDArray[np.unsignedinteger]:
    """Counts by bin and block, in the smallest dtype that holds them."""
    largest = max((int(counts.max(initial=0)) for _, counts in blocks), default=0)
    table = np.zeros((len(bins), len(blocks)), dtype=np.min_scalar_type(largest))
    row_of = np.empty(BINS, dtype=np.intp)
    row_of[bins] = np.arange(len(bins))
    for block, (block_bins, counts) in enumerate(blocks):
        table[row_of[block_bins], block] = counts
    return table
