"""Categorical and on/off coordinates: independent distributions around the best points found so far."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from evolve.optimisers.base import Box, OptimiserSettings, Vector
from evolve.optimisers.streams import Streams

_ELITE = 8  # points
_FIRST_CHANGES = 4.0  # expected in a point of the first generation, against the start
_FEWEST_CHANGES = 0.3  # expected in a point of a later one, beyond what the elite differs in
_MANY = 20  # coordinates: beyond these, about one change
_LARGEST_MARGIN = 0.25


class EliteDistribution:
    """A univariate estimation-of-distribution algorithm (UMDA; Mühlenbein and Paass, PPSN 1996).

    Every coordinate has probabilities of its own: the shares of the eight best points of the run, weighted
    by rank as CMA-ES weights its parents, mixed with a margin that keeps each value within reach (as Hamano
    et al., CatCMA, arXiv 2405.09962). Measured against learning by small steps, keeping the best points
    makes most of a few hundred candidates (docs/log.md).

    The first generation stays near the start: few coordinates are drawn uniformly, of many only some four
    change, because a start such as a model's own path of layers is worth keeping for the most part.
    """

    def __init__(self, settings: OptimiserSettings, box: Box, start: Vector, run: int = 0) -> None:
        box.check(start)
        self._popsize = settings.popsize
        self.run = run
        self._streams = Streams(settings.seed, "elite", run)
        self._lower = box.lower
        self._others = (box.upper - box.lower).astype(int)[:, None]  # alternatives beside any one of them
        self._numbers = np.arange(self._others.max() + 1)  # (K,)
        self._announced = 0
        self._told = 0
        self._elite: list[tuple[float, int, tuple[int, ...]]] = []  # cost, when it was told, alternatives
        self._shares = self._one_hot((start - self._lower).astype(int))
        self._leave = min(1.0, _FIRST_CHANGES / len(self._shares))

    def inject(self, points: Sequence[Vector]) -> None:
        self._announced = len(points)

    def ask(self) -> list[Vector]:
        announced, self._announced = self._announced, 0
        samples = max(self._popsize - announced, (self._popsize + 1) // 2)
        ends = self._probabilities().cumsum(axis=1)
        ends[self._numbers >= self._others] = 1.0  # whatever the rounding
        draws = self._streams.begin_ask().uniform(size=(samples, len(ends), 1))
        alternatives = (draws >= ends).sum(axis=2)
        return [self._lower + row.astype(np.float64) for row in alternatives]

    def tell(self, pairs: Iterable[tuple[Vector, float]]) -> None:
        """See `Optimiser.tell`. Failures teach it nothing."""
        self._streams.note_tell()
        best = {alternatives: (cost, when) for cost, when, alternatives in self._elite}
        for point, cost in pairs:
            self._told += 1
            alternatives = tuple((point - self._lower).astype(int).tolist())
            if cost < math.inf:
                entry = (cost, self._told)
                best[alternatives] = min(best.get(alternatives, entry), entry)
        if best:
            ranked = sorted((*entry, alternatives) for alternatives, entry in best.items())
            self._elite = ranked[:_ELITE]
            self._learn()

    def mean(self) -> Vector:
        return np.asarray(self._lower + self._shares.argmax(axis=1), dtype=np.float64)

    def sigma(self) -> float:
        return float(self.std().mean())

    def std(self) -> Vector:
        return np.asarray(1.0 - self._probabilities().max(axis=1))

    def stopped(self) -> str | None:
        return None

    def exhausted(self) -> bool:
        """Never: the margin keeps everything within reach."""
        return False

    def _learn(self) -> None:
        count = len(self._elite)
        weights = math.log(count + 0.5) - np.log(np.arange(1, count + 1))
        points = np.array([alternatives for _, _, alternatives in self._elite])
        self._shares = np.einsum("e,edk->dk", weights / weights.sum(), self._one_hot(points))
        dimensions = len(self._shares)
        changes = max(_FEWEST_CHANGES, dimensions / (dimensions + _MANY))
        self._leave = min(_LARGEST_MARGIN, changes / dimensions)

    def _probabilities(self) -> NDArray[np.float64]:
        """Of each alternative of each coordinate, shape (D, K): shares mixed with a margin on all others.

        A coordinate on which all points agree takes another value with the probability ``self._leave``.
        """
        leave = np.minimum(self._leave, self._others / (self._others + 1))  # no more than all alike
        margin = np.where(self._numbers <= self._others, leave / self._others, 0.0)
        return np.asarray(margin + self._shares * (1.0 - margin.sum(axis=1, keepdims=True)))

    def _one_hot(self, alternatives: NDArray[np.int_]) -> NDArray[np.float64]:
        return np.asarray(alternatives[..., None] == self._numbers, dtype=np.float64)
