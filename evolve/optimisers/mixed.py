"""Numbers and categoricals at once: two distributions, sampled side by side and told the same costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from evolve.optimisers.base import Box, Optimiser, OptimiserSettings, Vector
from evolve.optimisers.cma_es import CmaEs
from evolve.optimisers.elite import EliteDistribution


class Mixed:
    """The product of a normal distribution over the numbers and a discrete one over the categoricals.

    As in CatCMA (Hamano et al., arXiv 2405.09962), selection alone joins the two: they learn from the same
    ranking of whole points.
    """

    def __init__(self, settings: OptimiserSettings, box: Box, start: Vector, run: int = 0) -> None:
        self.run = run
        categorical = np.array([kind == "categorical" for kind in box.kinds], dtype=bool)
        self._places = (np.flatnonzero(~categorical), np.flatnonzero(categorical))
        numbers, categories = self._places
        self._numbers = CmaEs(settings, box.part(numbers), start[numbers], run)
        discrete = EliteDistribution(settings, box.part(categories), start[categories], run)
        self._parts: tuple[Optimiser, Optimiser] = (self._numbers, discrete)

    def inject(self, points: Sequence[Vector]) -> None:
        for part, places in zip(self._parts, self._places, strict=True):
            part.inject([point[places] for point in points])

    def ask(self) -> list[Vector]:
        numbers, categories = (part.ask() for part in self._parts)
        return [self._joined(pair) for pair in zip(numbers, categories, strict=True)]

    def tell(self, pairs: Iterable[tuple[Vector, float]]) -> None:
        told = list(pairs)
        for part, places in zip(self._parts, self._places, strict=True):
            part.tell([(point[places], cost) for point, cost in told])

    def mean(self) -> Vector:
        return self._joined([part.mean() for part in self._parts])

    def sigma(self) -> float:
        return self._numbers.sigma()

    def std(self) -> Vector:
        return self._joined([part.std() for part in self._parts])

    def stopped(self) -> str | None:
        return self._numbers.stopped()

    def exhausted(self) -> bool:
        """See `CmaEs.exhausted`."""
        return self._numbers.exhausted()

    def _joined(self, halves: Sequence[Vector]) -> Vector:
        point = np.empty(sum(len(places) for places in self._places))
        for half, places in zip(halves, self._places, strict=True):
            point[places] = half
        return point
