"""The elements on which models differ most, and how much each model moved there, for any share of them.

Neither changes between candidates: variances are counted once as magnitudes are, with the squares of the task
vectors summed for each count.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from merge_engine.counting import Counter, Differences, Where
from merge_engine.magnitudes import Kept, MagnitudeIndex

_SUM_ELEMENTS = 2**15  # torch sums so many in one thread: the result does not depend on the number of threads


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """``kept``: the elements by their variance; None: all. ``energies``: for each model, the sum of the
    squares of its task vector over them."""

    kept: Kept | None
    energies: tuple[float, ...]


class SelectionIndex:
    """Counts and sums over one tensor of M models.

    ``deltas``: M functions that give the elements of a task vector, at a slice or at places, always the same.
    ``variance``: of M task vectors, in bfloat16 or float32.
    """

    def __init__(
        self,
        deltas: Sequence[Callable[[Where], Tensor]],
        variance: Callable[[Sequence[Tensor]], Tensor],
        elements: int,
        counter: Counter,
    ) -> None:
        self._deltas = deltas
        self._variance = variance
        self._elements = elements
        self._counter = counter

    def select(self, share: float) -> Selection:
        """``share`` of those elements on which the models differ at all; with share 1 simply all elements."""
        if share >= 1.0:
            return Selection(kept=None, energies=self._all_energies)
        count = int(share * self._index.nonzero)
        kept = self._index.kept(count)
        return Selection(kept=kept, energies=tuple(self._energies(count)) if count else self._no_energies)

    def _energies(self, count: int) -> list[float]:
        row, wanted = self._index.row(count)
        before_M = self._index.columns_up_to[:, row - 1] if row else np.zeros(len(self._deltas))
        if self._variance_dtype == torch.bfloat16:
            # Of equal variances any may be taken: they count with the share of them that is.
            tied = self._index.row_size(row)
            return list(before_M + (self._index.columns_up_to[:, row] - before_M) * (wanted / tied))
        places = self._index.members(row)[1][:wanted]
        return list(before_M + [float(_squares(delta(places)).sum()) for delta in self._deltas])

    @property
    def _no_energies(self) -> tuple[float, ...]:
        return (0.0,) * len(self._deltas)

    @functools.cached_property
    def _all_energies(self) -> tuple[float, ...]:
        steps = range(0, self._elements, _SUM_ELEMENTS)
        return tuple(
            math.fsum(float(_squares(delta(slice(start, start + _SUM_ELEMENTS))).sum()) for start in steps)
            for delta in self._deltas
        )

    @functools.cached_property
    def _index(self) -> MagnitudeIndex:
        spread = Differences(
            x=self._variances, base=None, dtype=self._variance_dtype, elements=self._elements
        )
        return MagnitudeIndex(spread, self._counter, self._squares)

    @functools.cached_property
    def _variance_dtype(self) -> torch.dtype:
        return self._variances(slice(0, 0)).dtype

    def _variances(self, where: Where) -> Tensor:
        return self._variance([delta(where) for delta in self._deltas])

    def _squares(self, start: int, stop: int) -> npt.NDArray[np.float64]:
        return np.stack([_squares(delta(slice(start, stop))).numpy() for delta in self._deltas])


def _squares(delta_N: Tensor) -> Tensor:
    """In fp64; in bfloat16 rounded, as in the ecosystem's merges. float16 would lose small changes."""
    return delta_N.square().double() if delta_N.dtype == torch.bfloat16 else delta_N.double().square()
