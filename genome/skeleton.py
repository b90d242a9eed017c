"""A recipe whose structure is settled and checked; only numbers are still to be filled in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

from genome.errors import RefusedRecipe
from genome.facts import ModelFacts
from genome.holes import Choose
from genome.resolve import Cutter, Data
from genome.values import Pool, Writer, Written
from merge_engine.errors import Problem, RecipeError
from merge_engine.spec import (
    METHODS,
    InputModel,
    Method,
    OutputSlice,
    Parameter,
    Recipe,
    Scalar,
    SliceSource,
    Value,
    parse_recipe,
)
from merge_engine.spec.parameters import scalar_reader, value_data
from merge_engine.spec.reading import Refused
from merge_engine.spec.recipe_types import OutputModule

_T = TypeVar("_T")

# Makes a part of the recipe from the values of all variables; None: it is the same for all candidates.
_Maker: TypeAlias = "Callable[[Sequence[Scalar]], Any] | None"


class Skeleton:
    """Fills numbers into one recipe. ``written``: where they go, as plain data with `Written` values."""

    def __init__(self, data: Data, values: Sequence[Scalar], facts: Mapping[str, ModelFacts]) -> None:
        """``data``: the recipe with leaves; ``values``: of all variables, any that are within bounds.

        Raises `RefusedRecipe` where values within the bounds make no recipe.
        """
        pool = Pool(len(values))
        self.written = Cutter(pool, facts).cut(data)
        self._constants = pool.constants
        method = METHODS.get(str(data.get("merge_method")))
        _refuse([] if method is None else _range_problems(self.written, method, ""))
        try:
            recipe = parse_recipe(_sample(self.written, [*values, *self._constants]))
        except RecipeError as error:
            raise RefusedRecipe(error.problems) from None
        _refuse(_depth_problems(recipe, facts))
        self._make = _Makers(pool).recipe(recipe, self.written)

    def fill(self, values: Sequence[Scalar]) -> Recipe:
        """The recipe with these values of all variables."""
        return self._make([*values, *self._constants])


def _refuse(problems: Iterable[Problem]) -> None:
    """Raise `RefusedRecipe` with ``problems``, each once, if there are any."""
    found = list(dict.fromkeys(problems))
    if found:
        raise RefusedRecipe(found)


def _sample(data: Any, values: Sequence[Scalar]) -> Any:
    """Plain data with values instead of holes."""
    if isinstance(data, Written):
        return value_data(data.write(values))
    if isinstance(data, Mapping):
        return {key: _sample(value, values) for key, value in data.items()}
    return [_sample(entry, values) for entry in data] if isinstance(data, list) else data


def _range_problems(data: Any, method: Method, where: str) -> Iterator[Problem]:
    """Values within the bounds of a hole that its parameter does not allow."""
    if isinstance(data, list):
        for i, entry in enumerate(data):
            yield from _range_problems(entry, method, f"{where}[{i}]")
    elif isinstance(data, Mapping):
        for key, value in data.items():
            path = f"{where}.{key}" if where else str(key)
            parameter = method.parameter(str(key)) if isinstance(value, Written) else None
            if parameter is not None:
                yield from _value_problems(value, parameter, path)
            yield from _range_problems(value, method, path)


def _value_problems(value: Written, parameter: Parameter, where: str) -> Iterator[Problem]:
    read = scalar_reader(parameter)
    for leaf in value.holes:
        hole = leaf.column.hole
        kind = None if isinstance(hole, Choose) else "real" if hole.step is None else "integer"
        if kind and parameter.kind == "bool":
            yield Problem(where, "is true or false", "write {choose: [true, false]}")
        elif kind == "real" and parameter.kind == "integer":
            yield Problem(where, "is a whole number", "give a whole step, as in {search: [1, 8], step: 1}")
        for end in hole.options if isinstance(hole, Choose) else hole.ends():
            try:
                read(end)
            except Refused as refused:
                yield Problem(where, refused.what, refused.remedy)


def _depth_problems(recipe: Recipe, facts: Mapping[str, ModelFacts]) -> Iterator[Problem]:
    """Layers that a model does not have. Modules have depths of their own."""
    for i, piece in enumerate(recipe.slices or ()):
        for j, source in enumerate(piece.sources):
            known = facts.get(source.model)
            if known is not None and source.layer_range[1] > known.num_layers:
                what = f"{source.model} has {known.num_layers} layers, not {source.layer_range[1]}"
                yield Problem(f"slices[{i}].sources[{j}].layer_range", what)


class _Makers:
    """What makes each part of a recipe that depends on the candidate."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def recipe(self, recipe: Recipe, data: Data) -> Callable[[Sequence[Scalar]], Recipe]:
        made = {
            "parameters": self._parameters(recipe.parameters, data),
            "models": self._all(recipe.models, data.get("models"), self._model),
            "slices": self._all(recipe.slices, data.get("slices"), self._slice),
            "modules": self._modules(recipe.modules, data.get("modules")),
        }
        makers = {key: make for key, make in made.items() if make is not None}
        return lambda values: replace(recipe, **{key: make(values) for key, make in makers.items()})

    def _modules(self, modules: Mapping[str, OutputModule] | None, data: Any) -> _Maker:
        makers = {name: self._module(module, data[name]) for name, module in (modules or {}).items()}
        if all(make is None for make in makers.values()):
            return None
        whole = {name: self._always(makers[name], part) for name, part in (modules or {}).items()}
        return lambda values: {name: make(values) for name, make in whole.items()}

    def _module(self, module: OutputModule, data: Data) -> _Maker:
        made = {
            "parameters": self._parameters(module.parameters, data),
            "models": self._all(module.models, data.get("models"), self._model),
            "slices": self._all(module.slices, data.get("slices"), self._slice),
        }
        makers = {key: make for key, make in made.items() if make is not None}
        if not makers:
            return None
        return lambda values: replace(module, **{key: make(values) for key, make in makers.items()})

    def _slice(self, piece: OutputSlice, data: Data) -> _Maker:
        sources = self._all(piece.sources, data["sources"], self._source)
        parameters = self._parameters(piece.parameters, data)
        if sources is None and parameters is None:
            return None
        each = sources or self._pool.constant(piece.sources)
        shared = parameters or self._pool.constant(piece.parameters)
        base = piece.base_model
        return lambda values: OutputSlice(sources=each(values), base_model=base, parameters=shared(values))

    def _source(self, source: SliceSource, data: Data) -> _Maker:
        parameters = self._parameters(source.parameters, data)
        if parameters is None:
            return None
        model, layers = source.model, source.layer_range
        return lambda values: SliceSource(model=model, layer_range=layers, parameters=parameters(values))

    def _model(self, entry: InputModel, data: Data) -> _Maker:
        parameters = self._parameters(entry.parameters, data)
        if parameters is None:
            return None
        model = entry.model
        return lambda values: InputModel(model=model, parameters=parameters(values))

    def _all(self, parts: Sequence[_T] | None, data: Any, make: Callable[[_T, Any], _Maker]) -> _Maker:
        makers = [make(part, entry) for part, entry in zip(parts or (), data or (), strict=True)]
        if all(maker is None for maker in makers):
            return None
        each = [self._always(maker, part) for maker, part in zip(makers, parts or (), strict=True)]
        return lambda values: tuple([make(values) for make in each])

    def _always(self, maker: _Maker, part: object) -> Writer:
        return self._pool.constant(part) if maker is None else maker

    def _parameters(self, parameters: Mapping[str, Value], data: Data) -> _Maker:
        given = data.get("parameters") or {}
        if not any(isinstance(value, Written) for value in given.values()):
            return None
        entries = [
            (name, found.write if isinstance(found := given[name], Written) else self._pool.constant(value))
            for name, value in parameters.items()
        ]
        return lambda values: {name: write(values) for name, write in entries}
