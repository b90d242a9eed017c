"""The k-th smallest of many numbers, by counting: nothing is sorted, and one block is in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_HALF = 2**16  # counts of one half of the bits of a float32
_INTEGERS = {2: torch.int16, 4: torch.int32}

Blocks = Callable[[], Iterator[Tensor]]


def quantiles(
    blocks: Blocks, count: int, shares: Sequence[float], dtype: torch.dtype = torch.float32
) -> list[float]:
    """What ``shares`` of ``count`` numbers do not exceed, linear between neighbours, as in `torch.quantile`.

    ``blocks`` gives the numbers (no NaN), in one floating dtype, twice if need be. What lies between
    neighbours is computed in ``dtype``.
    """
    places = [share * (count - 1) for share in shares]
    ranks = sorted({rank for place in places for rank in (math.floor(place), math.ceil(place))})
    found = dict(zip(ranks, values_at(blocks, ranks), strict=True))
    return [
        _between(found[math.floor(place)], found[math.ceil(place)], place % 1.0, dtype) for place in places
    ]


def values_at(blocks: Blocks, ranks: Sequence[int]) -> list[float]:
    """The numbers at ``ranks`` in ascending order, 0 the smallest."""
    counts = np.zeros(_HALF, dtype=np.int64)
    dtype = torch.float32
    for block_N in blocks():
        if block_N.dtype == torch.float64:
            return _values_of_sorted(torch.cat(list(blocks())), ranks)
        dtype = block_N.dtype
        counts += np.bincount(_upper(_keys(block_N), dtype), minlength=_HALF)
    up_to = counts.cumsum()
    bins = np.searchsorted(up_to, ranks, side="right")
    if dtype.itemsize == 2:
        return [_number(int(key), dtype) for key in bins]
    return _within(blocks, ranks, bins, up_to - counts)


def _values_of_sorted(numbers_N: Tensor, ranks: Sequence[int]) -> list[float]:
    """Of float64 numbers, which are too long to be counted: all of them are in memory."""
    values_N = np.partition(numbers_N.numpy(), ranks)
    return [float(values_N[rank]) for rank in ranks]


def _within(
    blocks: Blocks, ranks: Sequence[int], bins: npt.NDArray[np.int64], before: npt.NDArray[np.int64]
) -> list[float]:
    """Of float32 numbers the upper half of whose bits is known: count the lower halves."""
    lower = {int(number): np.zeros(_HALF, dtype=np.int64) for number in bins}
    for block_N in blocks():
        keys = _keys(block_N)
        upper = _upper(keys, torch.float32)
        for number, counts in lower.items():
            counts += np.bincount(keys[upper == number] & (_HALF - 1), minlength=_HALF)
    found = []
    for rank, number in zip(ranks, bins.tolist(), strict=True):
        low = int(np.searchsorted(lower[number].cumsum(), rank - before[number], side="right"))
        found.append(_number(number * _HALF + low, torch.float32))
    return found


def _keys(block_N: Tensor) -> npt.NDArray[np.int64]:
    """Integers from 0 in the order of the numbers: negative ones have their bits turned over."""
    bits = block_N.contiguous().view(_INTEGERS[block_N.dtype.itemsize]).numpy().astype(np.int64)
    half = 2 ** (8 * block_N.dtype.itemsize - 1)
    return np.where(bits < 0, -1 - bits, bits + half)


def _upper(keys: npt.NDArray[np.int64], dtype: torch.dtype) -> npt.NDArray[np.int64]:
    return keys if dtype.itemsize == 2 else keys >> 16


def _number(key: int, dtype: torch.dtype) -> float:
    half = 2 ** (8 * dtype.itemsize - 1)
    bits = key - half if key >= half else -1 - key
    return float(torch.tensor(bits, dtype=_INTEGERS[dtype.itemsize]).view(dtype))


def _between(low: float, high: float, part: float, dtype: torch.dtype) -> float:
    return float(torch.lerp(torch.tensor(low, dtype=dtype), torch.tensor(high, dtype=dtype), part))
