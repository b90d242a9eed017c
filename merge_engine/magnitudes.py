"""Which elements of a task vector are among its k largest, for any k, without sorting for each candidate.

Magnitudes do not change between candidates, so they are counted once: per block of the tensor, how many
elements fall into each of the 2**15 bins that the sign-less upper half of an fp32 number makes. A bfloat16
magnitude is its bin, so the k-th largest is a look-up in the sums of the counts; where only some of the
elements equal to it are wanted, the counts say in which block the last of them lies, and that block alone is
read. For wider dtypes, the elements of one bin are gathered and sorted.

A single k does not need all counts: a sample says between which bins its magnitude lies, and those alone are
counted (`bracket`), which takes a quarter of the time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_SMALL_BLOCK, _LARGE_BLOCK = 2**12, 2**16  # elements; small blocks are quicker to scan but need more counts
_LARGE_FROM = 2**18
_SCAN_ELEMENTS = 2**13  # looked through at a time for the last of equal elements
_BINS = 2**15
_SAMPLES, _SAMPLE_ELEMENTS = 2**8, 2**8  # runs spread over a tensor, and their length
_SAMPLE_FROM = 2**20  # elements; of a shorter tensor all are counted
_MARGIN = 0.01  # of the sample: what is between it and the k-th magnitude on either side is counted
_BIN_SHIFT = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Exactly k elements: those with magnitude above ``threshold``, and of those equal to it the ones before
    element ``ties_end``."""

    threshold: float
    ties_end: int


Columns: TypeAlias = Callable[[int, int], npt.NDArray[np.float64]]


class MagnitudeIndex:
    """Counts of one task vector's magnitudes.

    ``delta(start, stop)`` gives elements [start, stop) in a floating dtype, always the same.
    ``columns(start, stop)``: other numbers of those elements, (columns, stop - start), to be summed by bin.
    ``between``: the lowest and the highest bin in which elements are counted, None for all; then only counts
    that `covers` names may be asked for.
    Memory: 1 byte (2 where a count needs it) for each populated bin of each block, 1-3 % of a bfloat16 task
    vector.
    """

    def __init__(
        self,
        delta: Callable[[int, int], Tensor],
        elements: int,
        columns: Columns | None = None,
        between: tuple[int, int] | None = None,
    ) -> None:
        self._delta = delta
        self._elements = elements
        self._is_exact = delta(0, 0).dtype == torch.bfloat16  # each bin is one magnitude
        self._block_elements = _LARGE_BLOCK if elements >= _LARGE_FROM else _SMALL_BLOCK
        count = -(-elements // self._block_elements)
        sums = np.zeros((0 if columns is None else len(columns(0, 0)), _BINS))
        blocks = []
        above = 0  # elements in bins that are not counted
        for block in range(count):
            start, delta_N = self._block(block)
            bins_N = _bins_of(delta_N)
            if between is not None:
                above += int(np.count_nonzero(bins_N > between[1]))
                blocks.append(_populated_between(bins_N, *between))
            else:
                blocks.append(_populated(bins_N))
            if columns is not None:
                _add_by_bin(sums, bins_N, columns(start, start + len(bins_N)))
        bins = [block_bins for block_bins, _ in blocks]
        found = np.unique(np.concatenate(bins)) if bins else np.empty(0)
        self._bins = found[::-1].astype(np.int64)  # largest first
        self._counts = _table(self._bins, blocks)
        self._above = above
        self._rest_is_zero = between is not None and between[0] <= 1
        self._up_to = above + self._counts.sum(axis=1, dtype=np.int64).cumsum()
        # sums over the elements of each bin and all larger ones, (columns, bins)
        self.columns_up_to = sums[:, self._bins].cumsum(axis=1)

    def kept(self, count: int) -> Kept:
        """The ``count`` largest magnitudes (0 <= count), lowest index first among equals."""
        if count <= 0:
            return Kept(threshold=math.inf, ties_end=self._elements)
        if count >= self._elements:
            return Kept(threshold=0.0, ties_end=self._elements)
        if self._rest_is_zero and count > self._last:
            return Kept(threshold=0.0, ties_end=self._elements)
        row, wanted = self.row(count)
        return self._exact_bin(row, wanted) if self._is_exact else self._sorted_bin(row, wanted)

    @property
    def _last(self) -> int:
        """How many elements are in counted bins or larger."""
        return int(self._up_to[-1]) if len(self._up_to) else self._above

    def covers(self, count: int) -> bool:
        """Whether `kept` can answer for ``count``: always where all bins are counted."""
        return not 0 < count < self._elements or (
            self._above < count and (self._rest_is_zero or count <= self._last)
        )

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
        return row, count - (int(self._up_to[row - 1]) if row else self._above)

    def row_size(self, row: int) -> int:
        """How many elements a bin has."""
        return int(self._counts[row].sum(dtype=np.int64))

    def members(self, row: int) -> tuple[Tensor, Tensor]:
        """The magnitudes in a bin, largest first and by index among equals, and their places."""
        values, places = [], []
        for block in np.flatnonzero(self._counts[row]):
            start, delta_N = self._block(int(block))
            inside = torch.from_numpy(np.flatnonzero(_bins_of(delta_N) == int(self._bins[row])))
            values.append(delta_N[inside].abs())
            places.append(inside + start)
        magnitudes, order = torch.cat(values).sort(descending=True, stable=True)
        return magnitudes, torch.cat(places)[order]

    @functools.cached_property
    def _sums_up_to(self) -> npt.NDArray[np.float64]:
        """The sum of the magnitudes in each bin and all larger ones; read off the counts where they tell."""
        if self._is_exact:
            of_bin = (self._bins.astype(np.uint32) << _BIN_SHIFT).view(np.float32).astype(np.float64)
            return np.cumsum(of_bin * self._counts.sum(axis=1, dtype=np.int64))
        sums = np.zeros((1, _BINS))
        for block in range(self._counts.shape[1]):
            _, delta_N = self._block(block)
            _add_by_bin(sums, _bins_of(delta_N), delta_N.abs().double().numpy()[None])
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
        return Kept(threshold=threshold, ties_end=self._place(block, bin_number, wanted) + 1)

    def _place(self, block: int, bin_number: int, wanted: int) -> int:
        """The place of the ``wanted``-th element of a bin in a block."""
        start = block * self._block_elements
        while True:
            stop = min(start + _SCAN_ELEMENTS, (block + 1) * self._block_elements, self._elements)
            places = np.flatnonzero(_bins_of(self._delta(start, stop)) == bin_number)
            if wanted <= len(places):
                return start + int(places[wanted - 1])
            wanted -= len(places)
            start = stop

    def _sorted_bin(self, row: int, wanted: int) -> Kept:
        """The bin holds several magnitudes: find the ``wanted``-th of them."""
        magnitudes, places = self.members(row)
        return Kept(threshold=float(magnitudes[wanted - 1]), ties_end=int(places[wanted - 1]) + 1)

    def _block(self, block: int) -> tuple[int, Tensor]:
        start = block * self._block_elements
        return start, self._delta(start, min(start + self._block_elements, self._elements))


def bracket(delta: Callable[[int, int], Tensor], elements: int, count: int) -> tuple[int, int] | None:
    """The bins between which the ``count``-th largest magnitude lies, most likely; None: count all of them.

    ``delta`` as in `MagnitudeIndex`; in bfloat16, as its bins are narrow.
    """
    if delta(0, 0).dtype != torch.bfloat16 or elements < _SAMPLE_FROM or not 0 < count < elements:
        return None
    starts = np.linspace(0, elements - _SAMPLE_ELEMENTS, _SAMPLES, dtype=np.int64).tolist()
    sample = np.sort(np.concatenate([_bins_of(delta(start, start + _SAMPLE_ELEMENTS)) for start in starts]))
    rank = (1.0 - count / elements) * len(sample)
    margin = _MARGIN * len(sample)
    places = np.clip([rank - margin, rank + margin], 0, len(sample) - 1).astype(np.int64)
    low, high = sample[places].tolist()
    # Whether zeros are kept makes no difference, so that they need not be counted.
    return max(low, 1) if rank > margin else 1, max(high, 1) if rank + margin < len(sample) else _BINS - 1


def _bins_of(delta_N: Tensor) -> npt.NDArray[np.integer]:
    """The upper 16 bits of each element as fp32, without the sign; numpy compares them quicker than torch."""
    if delta_N.dtype == torch.bfloat16:
        return (delta_N.view(torch.int16) & 0x7FFF).numpy()
    return (delta_N.to(torch.float32).view(torch.int32).numpy() >> _BIN_SHIFT) & 0x7FFF


def _magnitude(bin_number: int) -> float:
    return float(np.array(bin_number << _BIN_SHIFT, dtype=np.uint32).view(np.float32))


def _add_by_bin(
    sums: npt.NDArray[np.float64], bins_N: npt.NDArray[np.integer], numbers: npt.NDArray[np.float64]
) -> None:
    """Add each element's ``numbers``, (columns, N), to those of its bin, (columns, bins)."""
    places_N = bins_N.astype(np.intp)
    for column, numbers_N in zip(sums, numbers, strict=True):
        column += np.bincount(places_N, numbers_N, minlength=_BINS)


def _populated(bins_N: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint32]]:
    """The bins in which a block has elements, and how many: small numbers, as there are many blocks."""
    counts = np.bincount(bins_N, minlength=_BINS)
    bins = np.flatnonzero(counts)
    return bins.astype(np.uint16), counts[bins].astype(np.uint32)  # 2**16 of one kind are possible


def _populated_between(
    bins_N: npt.NDArray[np.integer], low: int, high: int
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint32]]:
    """`_populated` of those bins alone that are within limits, quicker."""
    from_low_N = (bins_N - bins_N.dtype.type(low)).view(np.uint16)
    counts = np.bincount(from_low_N[from_low_N <= high - low])
    bins = np.flatnonzero(counts)
    return (bins + low).astype(np.uint16), counts[bins].astype(np.uint32)


def _table(
    bins: npt.NDArray[np.int64], blocks: list[tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint32]]]
) -> npt.NDArray[np.unsignedinteger]:
    """Counts by bin and block, in the smallest dtype that holds them."""
    largest = max((int(counts.max(initial=0)) for _, counts in blocks), default=0)
    table = np.zeros((len(bins), len(blocks)), dtype=np.min_scalar_type(largest))
    row_of = np.empty(_BINS, dtype=np.intp)
    row_of[bins] = np.arange(len(bins))
    for block, (block_bins, counts) in enumerate(blocks):
        table[row_of[block_bins], block] = counts
    return table
