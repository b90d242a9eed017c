"""Restarts with a growing population (IPOP: Auger and Hansen, CEC 2005) around any optimiser of one run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol, TypeAlias

from evolve.optimisers.base import Box, Optimiser, OptimiserSettings, Vector
from evolve.seeds import random_stream


class OneRun(Optimiser, Protocol):
    """An optimiser that knows when it would rather begin anew."""

    def exhausted(self) -> bool: ...


RunFactory: TypeAlias = Callable[[OptimiserSettings, Box, Vector, int], OneRun]


class Restarts:
    """Runs one after another, each from a random point with twice the popsize of the one before.

    The mean is that of the run with the lowest cost.
    """

    def __init__(self, factory: RunFactory, settings: OptimiserSettings, box: Box, start: Vector) -> None:
        self._factory = factory
        self._settings = settings
        self._box = box
        self._done = 0
        self._run = factory(settings, box, start, 0)
        self._best_cost = math.inf  # of the present run
        # Of the runs before it: their lowest cost, and that run's mean.
        self._best_run: tuple[float, Vector] | None = None

    @property
    def run(self) -> int:
        return self._done

    def inject(self, points: Sequence[Vector]) -> None:
        self._run.inject(points)

    def ask(self) -> list[Vector]:
        return self._run.ask()

    def tell(self, pairs: Iterable[tuple[Vector, float]]) -> None:
        told = list(pairs)
        self._run.tell(told)
        self._best_cost = min([self._best_cost, *(cost for _, cost in told)])
        if self._done < self._settings.restarts and self._run.exhausted():
            self._restart()

    def mean(self) -> Vector:
        if self._best_run is not None and self._best_run[0] < self._best_cost:
            return self._best_run[1]
        return self._run.mean()

    def sigma(self) -> float:
        return self._run.sigma()

    def std(self) -> Vector:
        return self._run.std()

    def stopped(self) -> str | None:
        return self._run.stopped()

    def _restart(self) -> None:
        if self._best_run is None or self._best_cost <= self._best_run[0]:
            self._best_run = (self._best_cost, self._run.mean())
        self._best_cost = math.inf
        self._done += 1
        start = self._box.draw(random_stream(self._settings.seed, "cma-restart", self._done))
        settings = replace(self._settings, popsize=self._settings.popsize * 2**self._done)
        self._run = self._factory(settings, self._box, start, self._done)
