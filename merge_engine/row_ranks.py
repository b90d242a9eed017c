"""How large each element of a task vector is among its row, in a form that is small and made once.

A row's magnitudes are sorted when it is prepared, and 32 of them are kept: thresholds such that a magnitude
that stands at share r of the row (0 the smallest, 1 the largest, equal ones at the middle of their places)
reaches 32 r of them, to the nearest. So a comparison with the j-th threshold asks whether r >= j / 32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

LEVELS = 32
STRIDE = (
    LEVELS + 2
)  # of a row's thresholds: before them one that everything reaches, after them one that none does
_BATCH_ELEMENTS = 2**18
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def row_length(shape: tuple[int, ...]) -> int:
    """How many elements of a tensor are ranked together: those of one index of the first dimension.

    A vector is one row, and so is a matrix of one column.
    """
    elements = int(np.prod(shape, dtype=np.int64))
    columns = elements // max(shape[0], 1) if shape else 1
    return elements if columns <= 1 else columns


class RowRanks:
    """The ranks of one task vector.

    ``delta(start, stop)`` gives elements [start, stop) in a floating dtype, always the same;
    ``columns``: the length of a row, which divides ``elements``.
    Memory: 34 numbers of the dtype for each row, 1-4 % of a task vector with rows of 1,000 to 4,000.
    """

    def __init__(self, delta: Callable[[int, int], Tensor], elements: int, columns: int) -> None:
        self.columns = columns
        step = max(_BATCH_ELEMENTS // max(columns, 1), 1) * columns
        parts, totals, ranked = [delta(0, 0)], [0.0], [0.0]
        for start in range(0, elements, max(step, 1)):
            bits, dtype = _sorted_bits(delta(start, min(start + step, elements)).view(-1, columns))
            parts.append(_thresholds(bits).view(dtype).view(-1))
            total, of_ranks = _sums(bits, dtype)
            totals.append(total)
            ranked.append(of_ranks)
        self.thresholds = torch.cat(parts)  # flat: `STRIDE` of each row
        self.total = float(np.sum(totals))  # the sum of all magnitudes
        self.ranked = float(np.sum(ranked))  # the sum of all magnitudes, each times its share r

    def reached(self, delta_N: Tensor) -> Tensor:
        """How many thresholds of its row each element of the task vector reaches, uint8 of shape (N,)."""
        if not delta_N.numel():
            return torch.empty(0, dtype=torch.uint8)
        magnitudes = delta_N.abs().view(-1, self.columns).to(torch.float32)
        inner = self.thresholds.view(-1, STRIDE)[:, 1:-1].to(torch.float32).contiguous()
        return torch.searchsorted(inner, magnitudes, right=True).to(torch.uint8).view(-1)


def _sorted_bits(delta: Tensor) -> tuple[npt.NDArray[np.signedinteger], torch.dtype]:
    """Each row's magnitudes as integers of the same order, smallest first; numpy sorts them quickest."""
    bits = delta.contiguous().view(_INTEGERS[delta.dtype.itemsize])
    return np.sort((bits & torch.iinfo(bits.dtype).max).numpy(), axis=1), delta.dtype


def _thresholds(bits: npt.NDArray[np.signedinteger]) -> Tensor:
    """`STRIDE` thresholds for each row of sorted magnitudes, as integers."""
    rows, columns = bits.shape
    sorted_RC = torch.from_numpy(bits)
    places_L = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) * ((columns - 1) / LEVELS)
    at_RL = sorted_RC[:, places_L.to(torch.int64)].contiguous()
    first = torch.searchsorted(sorted_RC, at_RL)
    last = torch.searchsorted(sorted_RC, at_RL, right=True) - 1
    falls_short = (first + last).to(torch.float64) / 2 < places_L  # then only what is larger reaches it
    made = torch.empty(rows, STRIDE, dtype=sorted_RC.dtype)
    made[:, 0] = 0
    made[:, 1:-1] = at_RL + falls_short.to(sorted_RC.dtype)
    made[:, -1] = torch.iinfo(made.dtype).max  # NaN, which nothing reaches
    return made


def _sums(bits: npt.NDArray[np.signedinteger], dtype: torch.dtype) -> tuple[float, float]:
    """The sum of the magnitudes, and the sum of each times its share r."""
    magnitudes = torch.from_numpy(bits).view(dtype).to(torch.float64).numpy()
    columns = bits.shape[1]
    shares = np.arange(columns) / (columns - 1) if columns > 1 else np.ones(1)
    return float(magnitudes.sum()), float((magnitudes * shares).sum())
