"""Numbers and categoricals at once: two distributions, sampled side by side and told the same costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from evolve.optimisers.base import Box, Optimiser, OptimiserSettings, Vector
from evolve.optimisers.cma_es import CmaEs
from evolve.optimisers.elite import EliteDistribution
from evolve.optimisers.memory import Memory


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
        self._halves: Memory[tuple[Vector, ...]] = Memory()

    def inject(self, points: Sequence[Vector]) -> None:
        halves = [tuple(point[places] for places in self._places) for point in points]
        for point, pair in zip(points, halves, strict=True):
            self._halves.keep(point, pair)
        for number, part in enumerate(self._parts):
            part.inject([pair[number] for pair in halves])

    def ask(self) -> list[Vector]:
        points = []
        for halves in zip(*(part.ask() for part in self._parts), strict=True):
            points.append(self._joined(halves))
            self._halves.keep(points[-1], halves)
        return points

    def tell(self, pairs: Iterable[tuple[Vector, float]]) -> None:
        told = [(self._halves.take(point), cost) for point, cost in pairs]
        for number, part in enumerate(self._parts):
            part.tell([(halves[number], cost) for halves, cost in told])

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
