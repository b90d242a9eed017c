"""The baselines of a template, and which of its points they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from genome.baselines import Baseline, PlainMerges
from genome.box import Vector
from genome.errors import RefusedRecipe
from genome.holes import Search
from genome.same_as import is_model, is_task_arithmetic
from genome.variables import Described, coordinate, value_at
from merge_engine.spec import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What baselines are made of. ``uniform``: the one at the start is the uniform merge, bounds or not."""

    models: tuple[str, ...]
    base_model: str | None
    tokenizer_source: str | None
    uniform: bool


class _Space(Protocol):
    """What is asked of the space; see `genome.template_space.TemplateSpace`."""

    described: tuple[Described, ...]

    @property
    def start(self) -> Vector: ...
    def decode(self, vector: Vector) -> Recipe: ...
    def written(self, values: list[Any]) -> Recipe: ...


class TemplateBaselines:
    """Makes the baselines of ``space``, whose models have ``num_layers`` layers.

    A point is given only where the recipe that it decodes to shows that it is the same merge.
    """

    def __init__(self, space: _Space, compared: Compared, num_layers: int) -> None:
        self._space = space
        self._compared = compared
        self._num_layers = num_layers
        self._start = space.decode(space.start)
        self._plain = PlainMerges(
            pattern=self._start,
            models=compared.models,
            base_model=compared.base_model,
            tokenizer_source=compared.tokenizer_source,
        )

    def all(self) -> tuple[Baseline, ...]:
        """The sources in their order, the base if it is none of them, the start, task arithmetic."""
        models, base = self._compared.models, self._compared.base_model
        found = [self._as_it_is(f"source:{model}", model) for model in models]
        if base is not None and base not in models:
            found.append(self._as_it_is("base", base))
        found.append(self._uniform() if self._compared.uniform else self._at_start())
        if base is not None:
            found.append(self._task_arithmetic(base))
        return tuple(found)

    def _as_it_is(self, name: str, model: str) -> Baseline:
        def value(one: Described) -> float | None:
            owners = {place.owner for place in one.places}
            return {"weight": float(owners == {model}), "t": float(model != self._start.base_model)}.get(
                one.places[0].parameter or ""
            )

        vector = self._point(value, lambda recipe: is_model(recipe, model, self._num_layers))
        return Baseline(name=name, recipe=self._plain.as_it_is(model), vector=vector)

    def _task_arithmetic(self, base: str) -> Baseline:
        models = self._compared.models
        vector = self._point(
            lambda one: 1.0 if one.places[0].parameter == "weight" else None,
            lambda recipe: is_task_arithmetic(recipe, base, models, self._num_layers),
        )
        return Baseline(name="task_arithmetic", recipe=self._plain.task_arithmetic(base), vector=vector)

    def _at_start(self) -> Baseline:
        return Baseline(name="start", recipe=self._start, vector=self._space.start)

    def _uniform(self) -> Baseline:
        """Equal weights, and everything else as the method has it by default."""
        starts = [
            value_at(one.hole, place)
            for one, place in zip(self._space.described, self._space.start.tolist(), strict=True)
        ]
        values = [
            start if one.neutral is None else one.neutral
            for one, start in zip(self._space.described, starts, strict=True)
        ]
        vector = self._space.start if values == starts else None
        return Baseline(name="uniform", recipe=self._space.written(values), vector=vector)

    def _point(
        self, value: Callable[[Described], float | None], is_wanted: Callable[[Recipe], bool]
    ) -> Vector | None:
        """The start with ``value`` where it is not None, if that is within the bounds and as wanted."""
        places = self._space.start.tolist()
        for i, one in enumerate(self._space.described):
            number = value(one) if isinstance(one.hole, Search) else None
            if number is not None and isinstance(one.hole, Search):
                if not one.hole.low <= number <= one.hole.high:
                    return None
                places[i] = coordinate(one.hole, number)
        vector = np.array(places)
        try:
            return vector if is_wanted(self._space.decode(vector)) else None
        except RefusedRecipe:
            return None
