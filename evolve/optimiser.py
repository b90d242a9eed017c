"""Ask/tell optimisers over a box, and CMA-ES behind that interface."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from evolve.seeds import random_stream

Vector: TypeAlias = NDArray[np.float64]  # shape (D,)

DEFAULT_SIGMA0 = 1 / 6

# The name in a search file, and what it sets in pycma.
ALGORITHMS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"cma": {}, "sep-cma": {"CMA_diagonal": True}},
)

# pycma's criteria after which more samples would be the same point again. The others (flat or stagnating
# costs) are reasons to restart, but no reason to hand back budget: a score over a few items is flat without
# being converged.
_CONVERGED = frozenset({"tolx", "noeffectaxis", "noeffectcoord", "tolconditioncov"})

# Steps below this share of a parameter's range make no difference to a bf16 weight.
_SMALLEST_STD = 1e-4


class Optimiser(Protocol):
    """Generations of points out, their costs in. The same calls give the same answers, for ever."""

    def inject(self, points: Sequence[Vector]) -> None:
        """Announce points from elsewhere that will be told with the next generation, which is that much
        smaller.
        """
        ...

    def ask(self) -> list[Vector]:
        """The next generation: points inside the bounds."""
        ...

    def tell(self, pairs: Iterable[tuple[Vector, float]]) -> None:
        """The generation's points (all, or the first few of them) and those injected, each with its cost.

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
        """Standard deviation per coordinate, in the units of the coordinates."""
        ...

    def stopped(self) -> str | None:
        """Why there is no sense in asking again, or None."""
        ...


def default_popsize(dimensions: int, workers: int) -> int:
    """pycma's ``4 + 3 ln D``, rounded up so that no worker idles while the last candidates of a generation
    run.
    """
    usual = int(4 + 3 * math.log(dimensions))
    return -(-usual // workers) * workers


@dataclass(frozen=True, slots=True, kw_only=True)
class CmaSettings:
    """Everything CMA-ES is fixed to. ``sigma0`` is a share of the bounds' range; ``restarts`` double the
    popsize.
    """

    seed: int
    popsize: int
    algorithm: str = "cma"
    sigma0: float = DEFAULT_SIGMA0
    restarts: int = 0

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"unknown optimizer {self.algorithm!r}; known: {', '.join(ALGORITHMS)}")
        if self.popsize < 4:
            raise ValueError(f"popsize is {self.popsize}; CMA-ES needs at least 4")
        if not 0 < self.sigma0 <= 1:
            raise ValueError(f"sigma0 is {self.sigma0}; it is a share of the range: above 0, at most 1")
        if self.restarts < 0:
            raise ValueError(f"restarts is {self.restarts}; it cannot be negative")


class CmaEs:
    """CMA-ES (Hansen, arXiv 1604.00772) by pycma, with IPOP restarts (Auger and Hansen, CEC 2005).

    Coordinates are scaled to the unit box. Bounds are kept by pycma's smooth, invertible boundary
    transformation.
    """

    def __init__(self, settings: CmaSettings, *, start: Vector, lower: Vector, upper: Vector) -> None:
        if not (np.all(lower < upper) and np.all(lower <= start) and np.all(start <= upper)):
            raise ValueError("every coordinate needs lower < upper and a start between them")
        self._settings = settings
        self._lower, self._upper = lower, upper
        self._restarts_done = 0
        self._popsize = settings.popsize
        self._strategy = self._new_strategy(self._to_unit(start))
        self._announced: list[Vector] = []
        self._own_points: dict[bytes, Vector] = {}  # a point as the caller knows it -> as pycma knows it
        self._best_cost = math.inf  # of the present run
        self._best_run: tuple[float, Vector] | None = (
            None  # of the runs before it: their lowest cost, and its mean
        )

    def inject(self, points: Sequence[Vector]) -> None:
        self._announced = list(points)

    def ask(self) -> list[Vector]:
        announced, self._announced = self._announced, []
        self._strategy.inject([self._within_reach(point) for point in announced], force=True)
        samples = max(self._popsize - len(announced), (self._popsize + 1) // 2)
        units = self._strategy.ask(len(announced) + samples)
        points = [self._from_unit(unit) for unit in units[len(announced) :]]
        self._own_points = {
            point.tobytes(): unit for point, unit in zip([*announced, *points], units, strict=True)
        }
        return points

    def tell(self, pairs: Iterable[tuple[Vector, float]]) -> None:
        """See `Optimiser.tell`. Fewer pairs than CMA-ES selects parents from, or failures only, teach it
        nothing.
        """
        told = [(self._own_points[point.tobytes()], cost) for point, cost in pairs]
        finite = [cost for _, cost in told if cost < math.inf]
        if not finite or len(told) < self._strategy.sp.weights.mu:
            return
        # pycma computes medians and ranges of costs: a failure gets a finite one that is just behind the
        # worst.
        worst = max(finite) + 1.0
        self._strategy.tell([unit for unit, _ in told], [min(cost, worst) for _, cost in told])
        self._best_cost = min(self._best_cost, *finite)
        if self._restarts_done < self._settings.restarts and self._strategy.stop():
            self._restart()

    def mean(self) -> Vector:
        if self._best_run is not None and self._best_run[0] < self._best_cost:
            return self._best_run[1]
        return self._from_unit(np.asarray(self._strategy.result.xfavorite))

    def sigma(self) -> float:
        return float(self._strategy.sigma)

    def std(self) -> Vector:
        return np.asarray(self._strategy.stds) * (self._upper - self._lower)

    def stopped(self) -> str | None:
        if self._strategy.countiter == 0:
            return None
        reasons = sorted(_CONVERGED & set(self._strategy.stop()))
        return f"converged ({', '.join(reasons)})" if reasons else None

    def _restart(self) -> None:
        if self._best_run is None or self._best_cost <= self._best_run[0]:
            self._best_run = (self._best_cost, self.mean())
        self._best_cost = math.inf
        self._restarts_done += 1
        self._popsize *= 2
        start = random_stream(self._settings.seed, "cma-restart", self._restarts_done).uniform(
            size=len(self._lower)
        )
        self._strategy = self._new_strategy(start)

    def _new_strategy(self, start: Vector) -> Any:
        import cma

        random = random_stream(self._settings.seed, "cma", self._restarts_done)
        return cma.CMAEvolutionStrategy(
            start,
            self._settings.sigma0,
            {
                # pycma seeds numpy's global generator unless the seed is not a number.
                "seed": math.nan,
                "randn": random.randn,
                "bounds": [0, 1],
                "popsize": self._popsize,
                # In many dimensions pycma would take two-point adaptation, which wants whole generations.
                "AdaptSigma": cma.sigma_adaptation.CMAAdaptSigmaCSA,
                "tolx": _SMALLEST_STD,
                "maxiter": math.inf,
                "signals_filename": "",  # no file in the working directory steers us
                "verbose": -9,
                **ALGORITHMS[self._settings.algorithm],
            },
        )

    def _within_reach(self, point: Vector) -> Vector:
        """Stand-in for a foreign point, in pycma's unbounded coordinates: on the way to it from the mean,
        no farther than a sample may be (Hansen, Injecting External Solutions Into CMA-ES, arXiv 1110.4181,
        equation 4).

        Without this, one good source model far away drags the mean and blows up the step size.
        """
        unbounded = self._strategy.boundary_handler.inverse(self._to_unit(point))
        return np.asarray(self._strategy.repair_genotype(unbounded, copy_if_changed=True))

    def _to_unit(self, point: Vector) -> Vector:
        return (point - self._lower) / (self._upper - self._lower)

    def _from_unit(self, unit: Vector) -> Vector:
        return np.clip(self._lower + unit * (self._upper - self._lower), self._lower, self._upper)
