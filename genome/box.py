"""The box of vectors that every space is: names, kinds, bounds and start of every variable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from genome.errors import VectorError

Kind: TypeAlias = Literal["real", "integer", "categorical"]
Vector: TypeAlias = "NDArray[np.float64]"

# How far outside the bounds a vector may lie by an optimiser's rounding.
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One coordinate, from ``low`` to ``high``; in a categorical one these count alternatives from 0.

    An integer takes whole numbers only.
    """

    name: str
    kind: Kind
    low: float
    high: float
    start: float


class Box:
    """D variables as arrays.

    ``names``, ``kinds``: D of each. ``lower``, ``upper``, ``start``: float64 of shape (D,), read only; the
    start lies within the bounds.
    """

    def __init__(self, variables: Sequence[Variable]) -> None:
        self.names = tuple(variable.name for variable in variables)
        self.kinds: tuple[Kind, ...] = tuple(variable.kind for variable in variables)
        self.lower = _read_only([variable.low for variable in variables])
        self.upper = _read_only([variable.high for variable in variables])
        starts = np.array([variable.start for variable in variables], dtype=np.float64)
        self.start = _read_only(np.clip(starts, self.lower, self.upper))
        self._whole = np.array([kind != "real" for kind in self.kinds], dtype=bool)
        self._any_whole = bool(self._whole.any())

    def settled(self, vector: Vector) -> Vector:
        """``vector`` with rounding errors beyond the bounds moved onto them, integers and categoricals
        rounded. Raises `VectorError` for another shape and outside the bounds.
        """
        if vector.shape != self.lower.shape:
            raise VectorError(f"a vector of this space has the shape {self.lower.shape}, not {vector.shape}")
        inside = np.clip(vector, self.lower, self.upper)
        if not np.all(np.abs(vector - inside) <= _TOLERANCE):
            worst = int(np.argmax(~(np.abs(vector - inside) <= _TOLERANCE)))
            ends = f"[{self.lower[worst]:g}, {self.upper[worst]:g}]"
            raise VectorError(f"{self.names[worst]}: {vector[worst]!r} lies outside {ends}")
        return np.where(self._whole, np.round(inside), inside) if self._any_whole else inside

    def contains(self, vector: Vector) -> bool:
        """Whether every coordinate lies within its bounds, integers and categoricals on whole numbers."""
        within = (self.lower <= vector) & (vector <= self.upper)
        return bool(np.all(within & (~self._whole | (vector == np.round(vector)))))


def _read_only(values: Sequence[float] | Vector) -> Vector:
    array = np.array(values, dtype=np.float64)
    array.flags.writeable = False
    return array
