"""Generation 0: recipes known before the search, and where the optimiser starts from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from evolve.initial import InitialRecipe
from evolve.optimisers import Box, Vector
from evolve.outcome import Scored, cost
from evolve.records import BASELINE_PREFIX, INITIAL_PREFIX, CandidateRecord
from evolve.seeds import random_stream
from genome.space import Space
from merge_engine.spec.recipe import recipe_data


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRecipe:
    """A candidate of generation 0. ``vector`` is its point in the space, or None if it has none."""

    origin: str
    recipe: dict[str, Any]
    vector: Vector | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """Where the optimiser starts, and the points with their costs that it is told beside generation 1."""

    start: Vector
    told: list[tuple[Vector, float]]


def known_recipes(space: Space, initial: Sequence[InitialRecipe]) -> list[KnownRecipe]:
    """The space's baselines, then the recipes that the search file names."""
    found = [(f"{BASELINE_PREFIX}{each.name}", each.recipe, each.vector) for each in space.baselines()]
    found += [(f"{INITIAL_PREFIX}{each.file}", each.recipe, each.vector) for each in initial]
    return [
        KnownRecipe(origin=origin, recipe=recipe_data(recipe), vector=vector)
        for origin, recipe, vector in found
    ]


def begin(
    space: Space,
    known: Sequence[KnownRecipe],
    records: Iterable[CandidateRecord],
    random_seed: int | None,
) -> Beginning:
    """Start at the best known point, or where ``random_seed`` says, and tell the others.

    ``records`` are the outcomes of ``known``, as far as they were scored.
    """
    points = _scored_points(known, records)
    start = space.start
    if random_seed is not None:
        box = Box(kinds=space.kinds, lower=space.lower, upper=space.upper)
        start = box.draw(random_stream(random_seed, "start"))
    elif points:
        start, _ = points.pop(min(range(len(points)), key=lambda index: points[index][1]))
    return Beginning(start=start, told=points)


def _scored_points(
    known: Sequence[KnownRecipe], records: Iterable[CandidateRecord]
) -> list[tuple[Vector, float]]:
    """Those that are points of the space, each point once, with their costs."""
    points: dict[bytes, tuple[Vector, float]] = {}
    for record in records:
        vector = known[record.index].vector
        if vector is not None and isinstance(record.outcome, Scored):
            points.setdefault(vector.tobytes(), (vector, cost(record.outcome)))
    return list(points.values())
