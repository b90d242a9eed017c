"""Which optimiser a space gets, by the kinds of its variables."""

from __future__ import annotations

from collections.abc import Sequence

from evolve.optimisers.base import Box, Optimiser, OptimiserSettings, Vector
from evolve.optimisers.cma_es import CmaEs
from evolve.optimisers.elite import EliteDistribution
from evolve.optimisers.mixed import Mixed
from evolve.optimisers.restarts import Restarts, RunFactory
from genome.box import Kind

_TITLES = {"cma": "CMA-ES", "sep-cma": "sep-CMA-ES"}
_NOUNS: dict[Kind, str] = {"real": "real", "integer": "integer", "categorical": "categorical"}


def make_optimiser(settings: OptimiserSettings, box: Box, start: Vector) -> Optimiser:
    """CMA-ES for reals and integers, an elite distribution for categoricals, or the two side by side."""
    return Restarts(_factory(box.kinds), settings, box, start)


def describe(kinds: Sequence[Kind], algorithm: str) -> str:
    """What will search, for people: ``CMA-ES over 8 reals and 2 integers``."""
    counts = {kind: sum(each == kind for each in kinds) for kind in _NOUNS}
    numbers = [_some(counts[kind], _NOUNS[kind]) for kind in ("real", "integer") if counts[kind]]
    parts = [f"{_TITLES[algorithm]} over {' and '.join(numbers)}"] if numbers else []
    if counts["categorical"]:
        parts.append(f"elite distribution over {_some(counts['categorical'], 'categorical')}")
    return ", ".join(parts)


def _factory(kinds: Sequence[Kind]) -> RunFactory:
    found = {kind == "categorical" for kind in kinds}
    if found == {True, False}:
        return Mixed
    return EliteDistribution if found == {True} else CmaEs


def _some(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
