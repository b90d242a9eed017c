"""Any template and any vector give a recipe or a typed refusal; recipes lead back to the space."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from genome import RefusedRecipe, SearchFileError
from genome.box import Vector
from genome.equivalence import same_merge
from genome.holes import Search
from genome.template import read_template
from genome.template_space import TemplateSpace
from genome.variables import value_at
from merge_engine.errors import Problem
from merge_engine.spec import dump_yaml, load_yaml, parse_recipe, recipe_data
from merge_engine.spec.reading import Fields
from tests.genome.made import facts
from tests.genome.random_templates import LAYERS, RandomTemplate

TEMPLATES = 10_000
FACTS = facts("a", "b", "c", "d", "root", num_layers=LAYERS)


def built(seed: int) -> TemplateSpace | None:
    """The space of a random template; None where it is refused, with problems that say why."""
    problems: list[Problem] = []
    template = read_template(Fields({"template": RandomTemplate(seed).data}, "", problems), problems)
    if problems:
        assert all(problem.where and problem.what for problem in problems)
        return None
    try:
        return TemplateSpace(template, FACTS)
    except SearchFileError:
        return None


def somewhere(space: TemplateSpace, random: np.random.Generator) -> Vector:
    """A point of the box, often on its faces."""
    vector = random.uniform(space.lower, space.upper)
    at_end = random.random(vector.shape)
    return np.where(at_end < 0.1, space.lower, np.where(at_end > 0.9, space.upper, vector))


def check(space: TemplateSpace, vector: Vector, seed: int) -> str:
    for one, place in zip(space.described, vector.tolist(), strict=True):
        if isinstance(one.hole, Search) and one.variable.kind == "real":
            assert one.hole.low <= value_at(one.hole, place) <= one.hole.high  # type: ignore[operator]
    try:
        recipe = space.decode(vector)
    except RefusedRecipe:
        return "refused"
    data = recipe_data(recipe)
    assert parse_recipe(data) == recipe
    if seed % 10 == 0:
        assert parse_recipe(load_yaml(dump_yaml(data))) == recipe
    if seed % 3:
        return "there"
    again = space.encode(recipe)
    if again is None:
        return "no way back"
    assert same_merge(space.decode(again), recipe, FACTS)
    assert np.all((space.lower <= again) & (again <= space.upper))
    return "there and back"


@pytest.mark.slow
def test_random_templates_and_vectors() -> None:
    random = np.random.default_rng(0)
    seen: Counter[str] = Counter()
    for seed in range(TEMPLATES):
        space = built(seed)
        if space is None:
            seen["refused file"] += 1
            continue
        seen[check(space, somewhere(space, random), seed)] += 1
    assert seen["there"] + seen["there and back"] > TEMPLATES / 2
    assert seen["there and back"] > TEMPLATES / 6
    assert seen["no way back"] < TEMPLATES / 1000  # ends of gradients that the layers do not settle
    assert seen["refused"] > 0
