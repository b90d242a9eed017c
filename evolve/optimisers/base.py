"""What every optimiser offers, and what it is given."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from genome.box import Kind, Vector

__all__ = ["DEFAULT_SIGMA0", "Box", "Optimiser", "OptimiserSettings", "Vector", "default_popsize"]

DEFAULT_SIGMA0 = 1 / 6
SMALLEST_POPSIZE = 4


class Optimiser(Protocol):
    """Points out, their costs in. The same calls give the same answers, for ever.

    It may be asked several times before it is told, and told of points that were asked before the latest
    tell. How often it was asked more than once between two tells makes no difference to what comes after.
    """

    @property
    def run(self) -> int:
        """How many restarts there were. Points of an earlier run cannot be told."""
        ...

    def inject(self, points: Sequence[Vector]) -> None:
        """Announce points from elsewhere that will be told with the next generation, which is that much
        smaller.
        """
        ...

    def ask(self) -> list[Vector]:
        """A generation of points inside the bounds, integers and categoricals whole."""
        ...

    def tell(self, pairs: Iterable[tuple[Vector, float]]) -> None:
        """About as many points as a generation has, and those injected, each with its cost.

        The points are the very arrays that `ask` gave in the present run (or that were injected), each once.
        A cost is finite, or ``inf`` for a failure, which ranks behind everything else.
        """
        ...

    def mean(self) -> Vector:
        """The point that the search believes in: the centre of its distribution."""
        ...

    def sigma(self) -> float:
        """Overall step size, as a share of the bounds' range."""
        ...

    def std(self) -> Vector:
        """Standard deviation per coordinate, in the units of the coordinates; of a categorical one the
        probability of a value other than the mean's.
        """
        ...

    def stopped(self) -> str | None:
        """Why there is no sense in asking again, or None."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimiserSettings:
    """Everything an optimiser is fixed to.

    ``algorithm``: how numbers are searched, a name in `ALGORITHMS`. ``sigma0``: the first step in numbers, a
    share of the bounds' range. ``restarts``: new runs after a converged one, each with twice the popsize.
    """

    seed: int
    popsize: int
    algorithm: str = "cma"
    sigma0: float = DEFAULT_SIGMA0
    restarts: int = 0

    def __post_init__(self) -> None:
        if self.popsize < SMALLEST_POPSIZE:
            raise ValueError(f"popsize is {self.popsize}; CMA-ES needs at least {SMALLEST_POPSIZE}")
        if not 0 < self.sigma0 <= 1:
            raise ValueError(f"sigma0 is {self.sigma0}; it is a share of the range: above 0, at most 1")
        if self.restarts < 0:
            raise ValueError(f"restarts is {self.restarts}; it cannot be negative")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Box:
    """Where an optimiser searches: D kinds, and float64 bounds of shape (D,)."""

    kinds: tuple[Kind, ...]
    lower: Vector
    upper: Vector

    def __post_init__(self) -> None:
        if not np.all(self.lower < self.upper):
            raise ValueError("every coordinate needs lower < upper")

    def whole(self) -> NDArray[np.bool_]:
        """Which coordinates take whole numbers only, bool of shape (D,)."""
        return np.array([kind != "real" for kind in self.kinds], dtype=bool)

    def part(self, places: NDArray[np.intp]) -> Box:
        """The coordinates at ``places``, of shape (d,)."""
        kinds = tuple(self.kinds[place] for place in places)
        return Box(kinds=kinds, lower=self.lower[places], upper=self.upper[places])

    def check(self, start: Vector) -> None:
        """
        Raises:
            ValueError: ``start`` lies outside.
        """
        if not (np.all(self.lower <= start) and np.all(start <= self.upper)):
            raise ValueError("every coordinate needs a start between its lower and upper bound")

    def draw(self, random: np.random.RandomState) -> Vector:
        """A point drawn uniformly; alternatives and whole numbers have equal chances."""
        whole = self.whole()
        point = random.uniform(self.lower, self.upper + whole)
        return np.where(whole, np.minimum(np.floor(point), self.upper), point)


def default_popsize(dimensions: int, workers: int) -> int:
    """pycma's ``4 + 3 ln D``, rounded up so that no worker idles while the last candidates of a generation
    run.
    """
    usual = int(4 + 3 * math.log(dimensions))
    return -(-usual // workers) * workers
