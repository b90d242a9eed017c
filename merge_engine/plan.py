"""Recipe + checkpoint headers -> the list of tensors to merge, each with its inputs and evaluated parameters.

Nothing here reads tensor data, so a recipe can be checked in full before any long work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from merge_engine.checkpoint_header import CheckpointHeader
from merge_engine.errors import CheckpointError, PlanError, Problem
from merge_engine.layers import LayerNames, Stack, layer_names
from merge_engine.plan_parameters import ParameterValues
from merge_engine.plan_sections import Piece, Section, SectionFinder, first_pattern
from merge_engine.plan_tensors import (
    Model,
    ModelTensors,
    architecture_problems,
    most_telling,
    with_heads,
)
from merge_engine.plan_types import LayerOrigin, Plan, StackPlan, TensorJob, TensorRef
from merge_engine.spec.methods import METHODS
from merge_engine.spec.recipe import InputModel, Recipe, SliceSource
from merge_engine.spec.values import Scalar, layer_place
from merge_engine.vocabulary.alignment import Alignment, align

__all__ = ["LayerOrigin", "Plan", "StackPlan", "TensorJob", "TensorRef", "make_plan"]

_KEPT = METHODS["passthrough"]
_KEPT_VALUES: Mapping[str, Scalar] = {
    parameter.name: parameter.default for parameter in _KEPT.parameters if parameter.default is not None
}


def make_plan(
    recipe: Recipe,
    header_of: Callable[[str], CheckpointHeader],
    names_of: Callable[[CheckpointHeader], LayerNames] = layer_names,
    alignment_of: Callable[[Recipe], Alignment] | None = None,
    *,
    allow_crimes: bool = False,
) -> Plan:
    """The plan of ``recipe``; ``header_of`` opens a model by its reference, ``names_of`` sorts its tensors.

    ``alignment_of`` settles the vocabulary; None: `merge_engine.vocabulary.alignment.align`. ``allow_crimes``
    lets models of several architectures pass, and drops tensors that are not in the model whose names the
    result takes.

    Raises `PlanError` with every problem: models that cannot be opened, layers out of range, missing tensors,
    shapes and vocabularies that do not fit.
    """
    problems: list[Problem] = []
    models: dict[str, Model] = {}
    for reference in recipe.model_references():
        try:
            header = header_of(reference)
            models[reference] = Model(header=header, names=names_of(header))
        except CheckpointError as error:
            problems.append(Problem(reference, str(error)))
    if not problems and not allow_crimes:
        problems += architecture_problems({reference: model.header for reference, model in models.items()})
    if problems:
        raise PlanError(problems)
    alignment = align(recipe, header_of) if alignment_of is None else alignment_of(recipe)
    tensors = ModelTensors(with_heads(models), alignment, problems, lenient=allow_crimes)
    return _Planner(recipe, tensors, alignment, problems).plan()


class _Planner:
    def __init__(
        self, recipe: Recipe, tensors: ModelTensors, alignment: Alignment, problems: list[Problem]
    ) -> None:
        self._recipe = recipe
        self._method = METHODS[recipe.merge_method]
        self._tensors = tensors
        self._alignment = alignment
        self._problems = problems
        self._parameters = ParameterValues(self._method, problems)
        self._source = recipe.base_model or first_pattern(recipe)

    def plan(self) -> Plan:
        names = {model: self._tensors.names(model) for model in self._recipe.model_references()}
        finder = SectionFinder(self._recipe, names, self._source, self._problems)
        sections, rest = finder.sections()
        self._stop()
        made = [(section, finder.pieces(section)) for section in sections]
        self._stop()
        jobs = [self._kept(name, name, self._source) for name in rest]
        for section, pieces in made:
            sliced = section.part.slices is not None
            jobs += self._sliced(section, pieces) if sliced else self._whole(section, pieces[0])
        self._stop()
        return Plan(
            jobs=tuple(jobs),
            stacks=tuple(stack for section, pieces in made for stack in self._stacks(section, pieces)),
            config_source=self._source,
            untied=self._tensors.has_borrowed_heads(self._source),
            alignment=self._alignment,
        )

    def _stop(self) -> None:
        if self._problems:
            raise PlanError(most_telling(self._problems))

    def _whole(self, section: Section, piece: Piece) -> Iterator[TensorJob]:
        own = section.names[piece.pattern]
        self._check_outside(section, piece, lambda names: names.beside(own))
        yield from self._outside(piece, own.before)
        for stack in own.stacks:
            count = len(stack.layers)
            whole = replace(piece, count=count)
            stacks = whole.counterparts(section, stack)
            for index in range(count):
                yield from self._layer(whole, stacks, index, stack.name(index, ""), layer_place(index, count))
        yield from self._outside(piece, own.after)

    def _sliced(self, section: Section, pieces: Sequence[Piece]) -> Iterator[TensorJob]:
        first, last = pieces[0], pieces[-1]
        opening, closing = section.names[first.pattern], section.names[last.pattern]
        assert opening.main is not None
        self._check_outside(section, first, lambda names: names.before)
        self._check_outside(section, last, lambda names: names.after)
        yield from self._outside(first, opening.before)
        done = 0
        for piece in pieces:
            main = section.names[piece.pattern].main
            assert main is not None
            stacks = piece.counterparts(section, main)
            for index in range(piece.count):
                prefix = opening.main.name(done + index, "")
                yield from self._layer(piece, stacks, index, prefix, layer_place(index, piece.count))
            done += piece.count
        for stack in closing.stacks:
            if stack != closing.main:
                yield from self._other_stack(section, last, stack, opening.main, done)
        yield from self._outside(last, closing.after)

    def _other_stack(
        self, section: Section, piece: Piece, stack: Stack, main: Stack, count: int
    ) -> Iterator[TensorJob]:
        """A stack beside the one that is sliced, all its layers as tensors after the layers.

        Where it goes on with the numbers of the main one, they follow the new ``count``.
        """
        whole = replace(piece, starts=dict.fromkeys(piece.starts, 0))
        stacks = whole.counterparts(section, stack)
        target = replace(stack, first=count) if stack.prefix == main.prefix else stack
        for index in range(len(stack.layers)):
            yield from self._layer(whole, stacks, index, target.name(index, ""), 0.0)

    def _layer(
        self, piece: Piece, stacks: Mapping[str, Stack], index: int, target: str, place: float
    ) -> Iterator[TensorJob]:
        """The jobs of one layer, whose names in the result begin with ``target``."""
        pattern = stacks[piece.pattern]
        suffixes = pattern.layers[piece.starts[piece.pattern] + index]
        there = {
            model: [target + suffix for suffix in stack.layers[piece.starts[model] + index]]
            for model, stack in stacks.items()
        }
        self._tensors.check_none_left(piece.pattern, [target + suffix for suffix in suffixes], there)
        for suffix in suffixes:
            names = {
                model: stacks.get(model, pattern).name(piece.starts[model] + index, suffix)
                for model in piece.starts
            }
            yield from self._job(piece, target + suffix, names, place)

    def _check_outside(
        self, section: Section, piece: Piece, outside: Callable[[LayerNames], Sequence[str]]
    ) -> None:
        found = {model: outside(section.names[model]) for model in piece.starts}
        self._tensors.check_none_left(piece.pattern, found[piece.pattern], found)

    def _outside(self, piece: Piece, names: Sequence[str]) -> Iterator[TensorJob]:
        for name in names:
            yield from self._job(piece, name, dict.fromkeys(piece.starts, name), 0.0)

    def _job(self, piece: Piece, name: str, names: Mapping[str, str], place: float) -> Iterator[TensorJob]:
        """The job of one tensor, or none where a problem was found."""
        fitting = self._tensors.mergeable(name, names, piece.pattern)
        if not fitting:
            return
        if len(fitting) < len(names):
            yield self._kept(name, names[piece.pattern], piece.pattern)
            return
        base = piece.base_model if self._method.takes_base else None
        merged = [source for source in piece.sources if source.model != base]
        dtype = self._dtype(names, piece.pattern)
        inputs = [self._input(piece, source, names, place, base) for source in merged]
        yield TensorJob(
            name=name,
            method=self._method.name,
            shape=self._tensors.shape(piece.pattern, names[piece.pattern]),
            dtype=dtype,
            out_dtype=None if dtype is None else self._recipe.out_dtype or dtype,
            base=None if base is None else self._tensors.ref(base, names),
            sources=tuple(ref for ref, _ in inputs),
            per_source=tuple(values for _, values in inputs),
            shared=self._parameters.of("global", piece.levels, names[piece.pattern], place, piece.where),
        )

    def _input(
        self,
        piece: Piece,
        source: InputModel | SliceSource,
        names: Mapping[str, str],
        place: float,
        base: str | None,
    ) -> tuple[TensorRef, Mapping[str, Scalar]]:
        """A source's tensor and parameters. One of which nothing is kept is the base, kept in full."""
        values = self._of_source(piece, source, names, place)
        if base is not None and values.get("density") == 0.0:
            return self._tensors.ref(base, names), {**values, "density": 1.0}
        return self._tensors.ref(source.model, names), values

    def _of_source(
        self, piece: Piece, source: InputModel | SliceSource, names: Mapping[str, str], place: float
    ) -> Mapping[str, Scalar]:
        levels = (source.parameters, *piece.levels)
        where = f"{piece.where} ({source.model})"
        return self._parameters.of("model", levels, names[source.model], place, where)

    def _kept(self, name: str, stored_name: str, model: str) -> TensorJob:
        """A tensor that is what one model has."""
        dtype = self._dtype({model: stored_name}, model)
        return TensorJob(
            name=name,
            method=_KEPT.name,
            shape=self._tensors.shape(model, stored_name),
            dtype=dtype,
            out_dtype=None if dtype is None else self._recipe.out_dtype or dtype,
            base=None,
            sources=(self._tensors.ref(model, {model: stored_name}),),
            per_source=(_KEPT_VALUES,),
            shared={},
        )

    def _dtype(self, names: Mapping[str, str], pattern: str) -> str | None:
        return self._tensors.merge_dtype(names, pattern, self._recipe.dtype)

    def _stacks(self, section: Section, pieces: Sequence[Piece]) -> Iterator[StackPlan]:
        old = section.names[self._source].main
        if old is None:
            return
        whole = self._tensors.names(self._source).main
        if section.part.slices is None:
            pieces = [replace(pieces[0], count=len(old.layers))]
        yield StackPlan(
            path=old.path,
            old_count=len(old.layers),
            main=whole is not None and whole.prefix == old.prefix,
            layers=tuple(
                LayerOrigin(model=piece.pattern, index=piece.starts[piece.pattern] + index)
                for piece in pieces
                for index in range(piece.count)
            ),
        )
