"""CMA-ES over real and integer coordinates."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from evolve.optimisers.base import Box, OptimiserSettings, Vector
from evolve.optimisers.memory import Memory
from evolve.optimisers.streams import Streams

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

# How far beyond the last whole number on either side pycma's coordinate of an integer reaches.
_HALF = 0.5 - 1e-9

# Of an integer, in steps: one sample in eighty at least is another whole number, if the mean is at one.
_SMALLEST_INTEGER_STD = 0.2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Place:
    """A point in pycma's coordinates. ``unbounded``: before its boundary transformation; None where pycma did
    not draw it as it is.
    """

    told: Vector
    unbounded: Vector | None


class CmaEs:
    """One run of CMA-ES (Hansen, arXiv 1604.00772) by pycma.

    Reals are scaled to the unit interval, integers keep their steps of one and have the same first step
    relative to their range. Integers are handled by a lower bound on their standard deviation and by integer
    centering (Marty, Semet, Auger, Héron and Hansen, GECCO 2023), and not by pycma's own handling, which
    draws from numpy's global generator. Bounds are kept by pycma's smooth, invertible boundary
    transformation.

    Args:
        run: number of the run, which has a random stream of its own; restarts count up from 0.
    """

    def __init__(self, settings: OptimiserSettings, box: Box, start: Vector, run: int = 0) -> None:
        if settings.algorithm not in ALGORITHMS:
            known = ", ".join(ALGORITHMS)
            raise ValueError(f"unknown optimizer {settings.algorithm!r}; known: {known}")
        box.check(start)
        self.run = run
        self._streams = Streams(settings.seed, "cma", run)
        self._dimensions = len(start)
        self._box = box if len(start) > 1 else _with_idle_coordinate(box)
        self._popsize = settings.popsize
        self._whole = self._box.whole()
        # Of a coordinate, per unit of pycma's.
        self._unit = np.where(self._whole, 1.0, self._box.upper - self._box.lower)
        self._strategy = self._new_strategy(settings, self._to_pycma(start))
        self._announced: list[Vector] = []
        self._places: Memory[_Place] = Memory()

    def inject(self, points: Sequence[Vector]) -> None:
        self._announced = list(points)

    def ask(self) -> list[Vector]:
        announced, self._announced = self._announced, []
        self._strategy.inject([self._within_reach(point) for point in announced], force=True)
        samples = max(self._popsize - len(announced), (self._popsize + 1) // 2)
        self._streams.begin_ask()
        own = self._strategy.ask(len(announced) + samples)
        foreign, own = own[: len(announced)], own[len(announced) :]
        points = [self._from_pycma(place) for place in own]
        for point, place in zip([*announced, *points], [*foreign, *self._centred(own)], strict=True):
            self._places.keep(point, self._place(place))
        return points

    def tell(self, pairs: Iterable[tuple[Vector, float]]) -> None:
        """See `Optimiser.tell`. Fewer pairs than CMA-ES selects parents from, or failures only, teach it
        nothing.
        """
        self._streams.note_tell()
        told = [(self._places.take(point), cost) for point, cost in pairs]
        finite = [cost for _, cost in told if cost < math.inf]
        if not finite or len(told) < self._strategy.sp.weights.mu:
            return
        from cma.evolution_strategy import InjectionWarning

        # pycma computes medians and ranges of costs: a failure gets a finite one that is just behind the
        # worst.
        worst = max(finite) + 1.0
        for place, _ in told:
            self._remind(place)
        with warnings.catch_warnings():
            # Points that pycma itself injects in small populations may be late, too, or rounded.
            warnings.simplefilter("ignore", InjectionWarning)
            self._strategy.tell([place.told for place, _ in told], [min(cost, worst) for _, cost in told])

    def mean(self) -> Vector:
        return self._from_pycma(np.asarray(self._strategy.result.xfavorite))

    def sigma(self) -> float:
        return float(self._strategy.sigma)

    def std(self) -> Vector:
        std: Vector = np.asarray(self._strategy.stds) * self._unit
        return std[: self._dimensions]

    def stopped(self) -> str | None:
        reasons = sorted(_CONVERGED & set(self._ended()))
        return f"converged ({', '.join(reasons)})" if reasons else None

    def exhausted(self) -> bool:
        """Whether pycma would rather begin anew: converged, or costs that are flat or no longer fall."""
        return bool(self._ended())

    def _ended(self) -> Mapping[str, Any]:
        return self._strategy.stop() if self._strategy.countiter else {}

    def _place(self, told: Vector) -> _Place:
        asked = self._strategy.sent_solutions.get(told)
        return _Place(told=told, unbounded=None if asked is None else asked["geno"])

    def _remind(self, place: _Place) -> None:
        """pycma clips points that it drew before its last tell, as if they came from elsewhere, and forgets
        all but some hundreds. They come from nearly the same distribution, and count fully (docs/log.md).
        """
        archive = self._strategy.sent_solutions
        if place.unbounded is not None:
            archive.pop(place.told, None)
            archive.insert(place.told, geno=place.unbounded, iteration=self._strategy.countiter)

    def _new_strategy(self, settings: OptimiserSettings, start: Vector) -> Any:
        import cma

        steps = (self._box.upper - self._box.lower) / self._unit
        integers = {
            "CMA_stds": steps,
            "minstd": np.where(self._whole, _SMALLEST_INTEGER_STD, 0.0),
            "bounds": [np.where(self._whole, -_HALF, 0.0), np.where(self._whole, steps + _HALF, 1.0)],
        }
        return cma.CMAEvolutionStrategy(
            start,
            settings.sigma0,
            {
                # pycma seeds numpy's global generator unless the seed is not a number.
                "seed": math.nan,
                "randn": lambda *shape: self._streams.present.randn(*shape),
                "bounds": [0, 1],
                "popsize": self._popsize,
                # In many dimensions pycma would take two-point adaptation, which wants whole generations.
                "AdaptSigma": cma.sigma_adaptation.CMAAdaptSigmaCSA,
                "tolx": _SMALLEST_STD,
                "maxiter": math.inf,
                "signals_filename": "",  # no file in the working directory steers us
                "verbose": -9,
                **ALGORITHMS[settings.algorithm],
                **(integers if self._whole.any() else {}),
            },
        )

    def _centred(self, places: Sequence[Vector]) -> list[Vector]:
        """``places`` with integers that were rounded away from the mean's moved to where they were rounded:
        what was scored is then what is learnt from. Those that were not stay, so that the mean can drift.
        """
        if not self._whole.any():
            return list(places)
        centre = np.round(np.asarray(self._strategy.result.xfavorite))
        rounded = [np.round(place) for place in places]
        return [
            np.where(self._whole & (near != centre), near, place)
            for place, near in zip(places, rounded, strict=True)
        ]

    def _within_reach(self, point: Vector) -> Vector:
        """Stand-in for a foreign point, in pycma's unbounded coordinates: on the way to it from the mean,
        no farther than a sample may be (Hansen, Injecting External Solutions Into CMA-ES, arXiv 1110.4181,
        equation 4).

        Without this, one good source model far away drags the mean and blows up the step size.
        """
        unbounded = self._strategy.boundary_handler.inverse(self._to_pycma(point))
        return np.asarray(self._strategy.repair_genotype(unbounded, copy_if_changed=True))

    def _to_pycma(self, point: Vector) -> Vector:
        idle = self._box.upper[len(point) :] / 2
        place: Vector = (np.concatenate([point, idle]) - self._box.lower) / self._unit
        return place

    def _from_pycma(self, place: Vector) -> Vector:
        place = np.where(self._whole, np.round(place), place)
        point: Vector = np.clip(self._box.lower + place * self._unit, self._box.lower, self._box.upper)
        return point[: self._dimensions]


def _with_idle_coordinate(box: Box) -> Box:
    """``box`` and a coordinate that means nothing: pycma cannot search in one dimension."""
    return Box(kinds=(*box.kinds, "real"), lower=np.append(box.lower, 0.0), upper=np.append(box.upper, 1.0))
