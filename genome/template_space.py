"""The search space of a template: vector <-> recipe.

A vector is decoded in two steps. The values of structural holes settle what the recipe looks like; that is
checked once and kept (`genome.skeleton`). The values of parameters are then only filled in.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from genome.baselines import Baseline
from genome.box import Box, Vector
from genome.equivalence import same_merge
from genome.errors import RefusedRecipe, SearchFileError, VectorError
from genome.facts import ModelFacts
from genome.holes import Choose, Node, Search
from genome.matching import structures
from genome.reading import read_places
from genome.resolve import settle
from genome.skeleton import Skeleton
from genome.template import Template
from genome.template_baselines import Compared, TemplateBaselines
from genome.variables import Described, find_variables, value_at
from merge_engine.errors import Problem
from merge_engine.spec import Recipe, Scalar, recipe_data

_KEPT_SKELETONS = 64
_MOST_STRUCTURES = 256  # that are tried for a recipe


class TemplateSpace(Box):
    """A box of D dimensions; see `genome.space.Space`. ``described``: each variable, for people."""

    def __init__(
        self, template: Template, facts: Mapping[str, ModelFacts], compared: Compared | None = None
    ) -> None:
        """``facts``: of every model that the template refers to. ``compared``: what the baselines are made
        of; None: what the template names.

        Raises `SearchFileError` where the recipe at the start is refused.
        """
        missing = [name for name in template.references if name not in facts]
        if missing:
            raise SearchFileError([Problem("template", f"nothing is known of the model {missing[0]}")])
        found = find_variables(template, facts)
        self._template = template
        self._facts = facts
        self._compared = compared or _compared(template)
        self._columns = found.columns
        self.described: tuple[Described, ...] = found.described
        super().__init__([one.variable for one in self.described])
        holes = [one.hole for one in self.described]
        self._translated = [(i, hole) for i, hole in enumerate(holes) if _is_translated(hole)]
        self._structural = [
            (key, found.columns[key].indices[0]) for key in found.columns if key in template.structural
        ]
        self._start_values = self._values(self.start.tolist())
        self._skeleton = lru_cache(maxsize=_KEPT_SKELETONS)(self._new_skeleton)
        try:
            self.decode(self.start)
        except RefusedRecipe as error:
            raise SearchFileError([_in_template(problem) for problem in error.problems]) from None

    def decode(self, vector: Vector) -> Recipe:
        """See `genome.space.Space.decode`."""
        places = self.settled(vector).tolist()
        return self._skeleton(self._structure_at(places)).fill(self._values(places))

    def encode(self, recipe: Recipe) -> Vector | None:
        """A vector that decodes to the same merge as ``recipe``, or None where none was found.

        The numbers come back exactly, but for those on a logarithmic scale and nodes of gradients that the
        recipe only shows at the layers. Variables that have no effect on the recipe are at their start.
        """
        data = recipe_data(recipe)
        for places in itertools.islice(structures(self._template, data), _MOST_STRUCTURES):
            try:
                vector = self._read(places, data)
                if vector is not None and same_merge(self.decode(vector), recipe, self._facts):
                    return vector
            except RefusedRecipe:
                continue
        return None

    def _read(self, structure: Mapping[str, int], data: Mapping[str, object]) -> Vector | None:
        """The vector of this structure with the numbers in ``data``; None where they are out of bounds."""
        vector = self.start.copy()
        for key, place in structure.items():
            vector[self._columns[key].indices[0]] = place
        skeleton = self._skeleton(self._structure_at(vector.tolist()))
        for index, coordinate in read_places(skeleton.written, data, self._start_values).items():
            vector[index] = coordinate
        try:
            return self.settled(vector)
        except VectorError:
            return None

    def written(self, values: Sequence[Any]) -> Recipe:
        """The recipe at the start, with these values of all variables, within their bounds or not."""
        return self._skeleton(self._structure_at(self.start.tolist())).fill(values)

    def baselines(self) -> tuple[Baseline, ...]:
        """See `genome.space.Space.baselines`."""
        depth = self._facts[self._template.pattern].num_layers
        return TemplateBaselines(self, self._compared, depth).all()

    def _structure_at(self, places: Sequence[float]) -> tuple[float, ...]:
        return tuple([places[index] for _, index in self._structural])

    def _values(self, places: list[float]) -> list[Scalar]:
        """The value of every variable; of structural ones nothing that counts."""
        values: list[Scalar] = list(places)
        for index, hole in self._translated:
            value = value_at(hole, places[index])
            values[index] = value if isinstance(value, bool | int | float | str) else 0  # type: ignore[assignment]
        return values

    def _new_skeleton(self, structure: tuple[float, ...]) -> Skeleton:
        nodes: dict[str, Node] = {
            key: value_at(self._columns[key].hole, place)
            for (key, _), place in zip(self._structural, structure, strict=True)
        }
        data = {
            "dtype": self._facts[self._template.pattern].dtype,
            **settle(self._template, self._columns, nodes),
        }
        return Skeleton(data, self._start_values, self._facts)


def _compared(template: Template) -> Compared:
    source = template.data.get("tokenizer_source")
    return Compared(
        models=tuple(model for model in template.references if model != template.base_model),
        base_model=template.base_model,
        tokenizer_source=source if isinstance(source, str) else None,
        uniform=False,
    )


def _is_translated(hole: Search | Choose) -> bool:
    """Whether a variable's value is not its coordinate."""
    return isinstance(hole, Choose) or hole.log or hole.step is not None


def _in_template(problem: Problem) -> Problem:
    return Problem(f"template.{problem.where}", problem.what, problem.remedy)
