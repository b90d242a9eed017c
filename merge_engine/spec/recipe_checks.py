"""What must hold between the parts of a recipe: base, number of models, layer ranges, required parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from merge_engine.errors import Problem
from merge_engine.spec.methods import Method
from merge_engine.spec.recipe_types import InputModel, OutputModule, OutputSlice, Recipe, SliceSource
from merge_engine.spec.values import Value

NO_LAYERS = (-1, -1)  # stands for a layer range that was refused already


def recipe_problems(recipe: Recipe, method: Method) -> Iterator[Problem]:
    """Everything wrong with ``recipe`` beyond single values; texts that were refused already are empty."""
    if recipe.modules is not None and not recipe.modules:
        yield Problem("modules", "there are none", "name at least one, or use models or slices")
    for name, part in recipe.parts():
        yield from _part_problems("" if name is None else f"modules.{name}.", part, recipe, method)


def _part_problems(where: str, part: OutputModule, recipe: Recipe, method: Method) -> Iterator[Problem]:
    shared = (part.parameters, recipe.parameters)
    if part.models is not None:
        merge = _Merge(
            where=f"{where}models",
            inputs=with_base(part.models, recipe.base_model, method),
            base_model=recipe.base_model,
            base_must_be_listed=False,
            shared=shared,
        )
        yield from _merge_problems(merge, method)
    if part.slices == ():
        yield Problem(f"{where}slices", "the list is empty", "give at least one slice")
    for i, piece in enumerate(part.slices or ()):
        merge = _Merge(
            where=f"{where}slices[{i}].sources",
            inputs=piece.sources,
            base_model=piece.base_model or recipe.base_model,
            base_must_be_listed=method.takes_base,
            shared=(piece.parameters, *shared),
        )
        yield from _merge_problems(merge, method)
        yield from _length_problems(merge.where, piece)


def with_base(models: Sequence[InputModel], base_model: str | None, method: Method) -> tuple[InputModel, ...]:
    """The models of a whole-model merge. A base that the method merges like any other is one of them, listed
    or not (so does mergekit)."""
    listed = base_model is None or method.takes_base or base_model in [entry.model for entry in models]
    return tuple(models) if base_model is None or listed else (*models, InputModel(model=base_model))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Merge:
    """What is merged at one place: the whole models, or the sources of one slice."""

    where: str
    inputs: Sequence[InputModel | SliceSource]
    base_model: str | None
    base_must_be_listed: bool
    shared: tuple[Mapping[str, Value], ...]

    def merged(self, method: Method) -> list[tuple[str, InputModel | SliceSource]]:
        """Every input with its path, but for a base that the method does not count as one."""
        return [
            (f"{self.where}[{i}]", entry)
            for i, entry in enumerate(self.inputs)
            if not (method.takes_base and entry.model == self.base_model)
        ]


def _merge_problems(merge: _Merge, method: Method) -> Iterator[Problem]:
    yield from _duplicate_problems(merge)
    yield from _base_problems(merge, method)
    yield from _count_problems(merge, method)
    yield from _missing_parameters(merge, method)


def _duplicate_problems(merge: _Merge) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for i, entry in enumerate(merge.inputs):
        if entry.model and entry.model in seen:
            what = f"{entry.model!r} is already {merge.where}[{seen[entry.model]}]"
            yield Problem(f"{merge.where}[{i}]", what, "list each model once")
        seen.setdefault(entry.model, i)


def _base_problems(merge: _Merge, method: Method) -> Iterator[Problem]:
    if merge.base_model is None:
        if method.needs_base:
            yield Problem("base_model", "missing", f"{method.name} merges differences from a base model")
    elif merge.base_must_be_listed and merge.base_model not in [entry.model for entry in merge.inputs]:
        yield Problem(merge.where, f"the base model {merge.base_model!r} is not in the list", "add it")


def _count_problems(merge: _Merge, method: Method) -> Iterator[Problem]:
    low, high, count = method.min_models, method.max_models, len(merge.merged(method))
    if count < low or (high is not None and count > high):
        allowed = f"exactly {low}" if low == high else f"at least {low}"
        beside = " beside the base model" if method.takes_base and merge.base_model is not None else ""
        yield Problem(merge.where, f"{method.name} takes {allowed} model(s){beside}, found {count}")


def _missing_parameters(merge: _Merge, method: Method) -> Iterator[Problem]:
    """Parameters without a default that no level gives; that no filter matches a tensor shows in the plan."""
    remedy = f"{method.name} has no default for it"
    for parameter in method.parameters:
        if parameter.default is not None or any(parameter.name in level for level in merge.shared):
            continue
        if parameter.scope == "global":
            yield Problem(f"parameters.{parameter.name}", "missing", remedy)
            continue
        for where, entry in merge.merged(method):
            if parameter.name not in entry.parameters:
                yield Problem(f"{where}.parameters.{parameter.name}", "missing", remedy)


def _length_problems(where: str, piece: OutputSlice) -> Iterator[Problem]:
    ranges = [source.layer_range for source in piece.sources if source.layer_range != NO_LAYERS]
    lengths = [end - start for start, end in ranges]
    if len(set(lengths)) > 1:
        yield Problem(where, f"the layer ranges differ in length: {lengths}", "all must be equally long")
