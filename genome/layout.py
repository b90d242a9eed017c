"""Where each gene stands: groups of layers x filters x slots, one number for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One parameter of one source model (``model`` None: of the merge as a whole), with its bounds.

    ``start`` is the value of the uniform merge; it may lie outside the bounds that the search file gives.
    """

    parameter: str
    model: str | None
    low: float
    high: float
    start: float

    def __str__(self) -> str:
        return self.parameter if self.model is None else f"{self.parameter} of {self.model}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The order of the genes in a vector: a grid of shape (groups, filters, slots), the last axis fastest.

    ``groups``: runs of layers [start, end) with a parameter set each. ``smooth``: each is a node of a
    gradient. ``filters``: parts of tensor names with sets of their own; the last is None, the rest.
    """

    groups: tuple[tuple[int, int], ...]
    smooth: bool
    filters: tuple[str | None, ...]
    slots: tuple[Slot, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of groups, filters, slots."""
        return len(self.groups), len(self.filters), len(self.slots)

    @property
    def sliced(self) -> bool:
        """Whether a recipe needs slices: the groups differ in steps."""
        return len(self.groups) > 1 and not self.smooth

    def names(self) -> tuple[str, ...]:
        """A readable, unique name for each gene, in the order of the vector."""
        return tuple(
            f"{slot}{self._place(g)}{self._part(name_part)}"
            for g in range(len(self.groups))
            for name_part in self.filters
            for slot in self.slots
        )

    def constant(self, value: Callable[[Slot], float]) -> NDArray[np.float64]:
        """The vector, shape (D,), in which each slot has the same value in all groups and filters."""
        row = np.array([value(slot) for slot in self.slots], dtype=np.float64)
        return np.broadcast_to(row, self.shape).ravel()

    def _place(self, group: int) -> str:
        if len(self.groups) == 1:
            return ""
        if self.smooth:
            return f", node {group}"
        start, end = self.groups[group]
        return f", layers {start}-{end - 1}" if end - start > 1 else f", layer {start}"

    def _part(self, name_part: str | None) -> str:
        return "" if len(self.filters) == 1 else f", {name_part or 'rest'}"


def layer_groups(num_layers: int, granularity: int) -> tuple[tuple[int, int], ...]:
    """Runs [start, end) of ``granularity`` layers, the last shorter where they do not divide; 0: one run."""
    step = granularity or num_layers
    return tuple((start, min(start + step, num_layers)) for start in range(0, num_layers, step))
