"""Whether a recipe is one of its models unchanged, or the plain sum of its task vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from merge_engine.spec import METHODS, Filtered, InputModel, Recipe, Scalar, SliceSource, Value

# Methods that give back a model whose weight is 1 beside weights of 0, where all of it is kept.
_SUMS = ("linear", "task_arithmetic", "ties", "dare_ties", "dare_linear")
_PLAIN_SUMS = ("task_arithmetic", "dare_linear")


def is_model(recipe: Recipe, model: str, num_layers: int) -> bool:
    """Whether the merge is ``model``, of ``num_layers`` layers, up to rounding. In doubt it is not."""
    merges = list(_merges(recipe, num_layers))
    return bool(merges) and all(_gives(recipe, inputs, shared, model) for inputs, shared in merges)


def is_task_arithmetic(recipe: Recipe, base: str, models: Sequence[str], num_layers: int) -> bool:
    """Whether the merge is ``base`` plus all task vectors with weight 1, up to rounding."""
    merges = list(_merges(recipe, num_layers))
    others = set(models) - {base}
    return (
        bool(merges)
        and recipe.merge_method in _PLAIN_SUMS
        and recipe.base_model == base
        and all(
            {entry.model for entry in inputs} - {base} == others
            and _is(recipe, "normalize", 0, shared)
            and _keeps_all(recipe, [entry.parameters for entry in inputs], shared)
            and all(_is(recipe, "weight", 1, [e.parameters, *shared]) for e in inputs if e.model != base)
            for inputs, shared in merges
        )
    )


def _merges(
    recipe: Recipe, num_layers: int
) -> Iterator[tuple[Sequence[InputModel | SliceSource], list[Mapping[str, Value]]]]:
    """What is merged, with the parameters that it shares; nothing where layers change their places."""
    if recipe.models is not None:
        yield recipe.models, [recipe.parameters]
    reached = 0
    for piece in recipe.slices or ():
        ranges = {source.layer_range for source in piece.sources}
        if len(ranges) != 1 or (reached, max(ranges)[1]) not in ranges:
            return
        reached = max(ranges)[1]
    if recipe.slices and reached == num_layers:
        for piece in recipe.slices:
            yield piece.sources, [piece.parameters, recipe.parameters]


def _gives(
    recipe: Recipe,
    inputs: Sequence[InputModel | SliceSource],
    shared: list[Mapping[str, Value]],
    model: str,
) -> bool:
    method = METHODS[recipe.merge_method]
    if method.name in _SUMS:
        merged = [entry for entry in inputs if not (method.takes_base and entry.model == recipe.base_model)]
        alone = all(
            _is(recipe, "weight", float(entry.model == model), [entry.parameters, *shared])
            for entry in merged
        )
        listed = model in [entry.model for entry in merged]
        untouched = model == recipe.base_model and _is(recipe, "normalize", 0, shared)
        return alone and (listed or untouched) and _keeps_all(recipe, [e.parameters for e in inputs], shared)
    if method.name == "passthrough":
        return [entry.model for entry in inputs] == [model] and _is(
            recipe, "scale", 1, [inputs[0].parameters, *shared]
        )
    if method.name == "slerp":
        listed = model in [entry.model for entry in inputs]
        return listed and _is(recipe, "t", float(model != recipe.base_model), shared)
    return False


def _keeps_all(recipe: Recipe, own: Sequence[Mapping[str, Value]], shared: list[Mapping[str, Value]]) -> bool:
    densities = all(_is(recipe, "density", 1, [parameters, *shared]) for parameters in own)
    return densities and _is(recipe, "lambda", 1, shared)


def _is(recipe: Recipe, name: str, wanted: float, levels: Sequence[Mapping[str, Value]]) -> bool:
    """Whether the parameter is ``wanted`` wherever it is given, or else by default."""
    parameter = METHODS[recipe.merge_method].parameter(name)
    if parameter is None:
        return True
    given = [number for level in levels if name in level for number in _numbers(level[name])]
    return all(number == wanted for number in given) if given else parameter.default == wanted


def _numbers(value: Value) -> Iterator[Scalar]:
    for entry in value if isinstance(value, tuple) else (value,):
        if isinstance(entry, Filtered):
            yield from _numbers(entry.value)
        else:
            yield entry
