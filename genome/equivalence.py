"""Whether two recipes are the same merge, however they are written down."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from genome.facts import ModelFacts
from merge_engine.spec import (
    METHODS,
    Filtered,
    Method,
    OutputSlice,
    Parameter,
    Recipe,
    Scalar,
    SliceSource,
    Value,
    first_match,
    layer_place,
)
from merge_engine.spec.recipe_checks import with_base

_TOLERANCE = 1e-9  # relative: values that went through a logarithm or an interpolation
_WITHOUT_EFFECT = "int8_mask"


def same_merge(one: Recipe, other: Recipe, facts: Mapping[str, ModelFacts]) -> bool:
    """Whether both merge the same layers of the same models by the same method with the same numbers.

    A value may be written out or left to its default, as a scalar or a gradient, over models or over slices;
    numbers may differ by rounding. A recipe without a dtype is as any other.
    """
    dtype = one.dtype or other.dtype
    frames = [
        replace(recipe, name=None, dtype=dtype if recipe.dtype is None else recipe.dtype)
        for recipe in (one, other)
    ]
    if one.modules is not None or other.modules is not None:
        return frames[0] == frames[1]
    bare = [replace(recipe, models=None, slices=None, parameters={}) for recipe in frames]
    if bare[0] != bare[1]:
        return False
    method = METHODS[one.merge_method]
    probes = _probes(frames, facts)
    places = [list(_places(recipe, method, facts)) for recipe in frames]
    return len(places[0]) == len(places[1]) and all(
        first.inputs == second.inputs
        and first.base == second.base
        and _alike(first.numbers(method, probes), second.numbers(method, probes))
        for first, second in zip(*places, strict=True)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """What is merged at one layer of the result, or outside the layers.

    ``inputs``: models with their layers, None outside; ``levels``: where the parameters of each are looked
    up; ``shared``: where those of the merge are; ``t``: place in the slice, as gradients count.
    """

    inputs: tuple[tuple[str, int | None], ...]
    base: str | None
    levels: tuple[Sequence[Mapping[str, Value]], ...]
    shared: Sequence[Mapping[str, Value]]
    t: float

    def numbers(self, method: Method, probes: Sequence[str]) -> list[Scalar | None]:
        """Every parameter of every input for tensors with these names."""
        found = []
        for parameter in method.parameters:
            if parameter.name != _WITHOUT_EFFECT:
                owners = self.levels if parameter.scope == "model" else (self.shared,)
                for levels in owners:
                    given = [level.get(parameter.name) for level in levels]
                    found += [_default(first_match(given, name, self.t), parameter) for name in probes]
        return found


def _default(value: Scalar | None, parameter: Parameter) -> Scalar | None:
    return parameter.default if value is None else value


def _places(recipe: Recipe, method: Method, facts: Mapping[str, ModelFacts]) -> Iterator[_Place]:
    """Before the layers, every layer, after the layers."""
    if recipe.models is not None:
        models = with_base(recipe.models, recipe.base_model, method)
        depth = facts[models[0].model].num_layers if models and models[0].model in facts else 0
        pieces = [
            OutputSlice(
                sources=tuple(
                    SliceSource(model=entry.model, layer_range=(0, depth), parameters=entry.parameters)
                    for entry in models
                ),
            )
        ]
    else:
        pieces = list(recipe.slices or ())
    if not pieces:
        return
    yield _place(recipe, pieces[0], method, None)
    for piece in pieces:
        first, last = piece.sources[0].layer_range
        for offset in range(last - first):
            yield _place(recipe, piece, method, offset)
    yield _place(recipe, pieces[-1], method, None)


def _place(recipe: Recipe, piece: OutputSlice, method: Method, offset: int | None) -> _Place:
    base = piece.base_model or recipe.base_model
    merged = [source for source in piece.sources if not (method.takes_base and source.model == base)]
    first, last = piece.sources[0].layer_range
    shared = (piece.parameters, recipe.parameters)
    return _Place(
        inputs=tuple(
            (source.model, None if offset is None else source.layer_range[0] + offset) for source in merged
        ),
        base=base,
        levels=tuple((source.parameters, *shared) for source in merged),
        shared=shared,
        t=layer_place(offset, last - first),
    )


def _probes(recipes: Sequence[Recipe], facts: Mapping[str, ModelFacts]) -> list[str]:
    """Names of tensors, one for each combination of filters that some tensor matches."""
    filters = sorted({part for recipe in recipes for part in _filters(recipe)})
    names = ["", *filters, *(name for known in facts.values() for name in known.layer_tensors)]
    return list({tuple(part in name for part in filters): name for name in names}.values())


def _filters(recipe: Recipe) -> Iterator[str]:
    levels = [recipe.parameters, *(entry.parameters for entry in recipe.models or ())]
    for piece in recipe.slices or ():
        levels += [piece.parameters, *(source.parameters for source in piece.sources)]
    for level in levels:
        for value in level.values():
            for entry in value if isinstance(value, tuple) else ():
                if isinstance(entry, Filtered) and entry.filter is not None:
                    yield entry.filter


def _alike(first: Sequence[Scalar | None], second: Sequence[Scalar | None]) -> bool:
    return len(first) == len(second) and all(
        one == other
        or (
            one is not None
            and other is not None
            and math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
        )
        for one, other in zip(first, second, strict=True)
    )
