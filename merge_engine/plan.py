"""Recipe + checkpoint headers -> the list of tensors to merge, each with its inputs and evaluated parameters.

Nothing here reads tensor data, so a recipe can be checked in full before any long work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from merge_engine.checkpoint_header import CheckpointHeader
from merge_engine.errors import CheckpointError, PlanError, Problem
from merge_engine.layers import LayerNames, Stack, layer_names
from merge_engine.parts import known_modules, language_part, split
from merge_engine.plan_parameters import Levels, ParameterValues
from merge_engine.plan_tensors import Model, ModelTensors, architecture_problems, most_telling
from merge_engine.plan_types import LayerOrigin, Plan, StackPlan, TensorJob, TensorRef
from merge_engine.spec.methods import METHODS
from merge_engine.spec.reading import did_you_mean
from merge_engine.spec.recipe import InputModel, OutputModule, Recipe, SliceSource
from merge_engine.spec.recipe_checks import with_base
from merge_engine.spec.values import Scalar, layer_place
from merge_engine.vocabulary.alignment import Alignment, align

__all__ = ["DTYPE_NAMES", "LayerOrigin", "Plan", "StackPlan", "TensorJob", "TensorRef", "make_plan"]

DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
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
    lets models of several architectures pass, and drops tensors that the model has not whose names the
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
    tensors = ModelTensors(models, alignment, problems, lenient=allow_crimes)
    return _Planner(recipe, tensors, alignment, problems).plan()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    """A part of the result that is made in one way; ``names`` are each model's tensors in that part."""

    where: str
    part: OutputModule
    names: Mapping[str, LayerNames]
    levels: Levels


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """What is merged in one go: whole models, or one slice.

    ``pattern``: the model whose names and shapes the result has. ``starts``: for every model that takes part,
    the base included, its first layer here.
    """

    where: str
    sources: tuple[InputModel | SliceSource, ...]
    base_model: str | None
    pattern: str
    starts: Mapping[str, int]
    count: int
    levels: Levels


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
        self._source = recipe.base_model or _first_pattern(recipe)

    def plan(self) -> Plan:
        sections, rest = self._sections()
        self._stop()
        made = [(section, self._pieces(section)) for section in sections]
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
            alignment=self._alignment,
        )

    def _stop(self) -> None:
        if self._problems:
            raise PlanError(most_telling(self._problems))

    def _sections(self) -> tuple[list[_Section], list[str]]:
        """The parts of the result, and the tensors of none: they are kept as the first model has them."""
        recipe, levels = self._recipe, (self._recipe.parameters,)
        names = {model: self._tensors.names(model) for model in recipe.model_references()}
        if recipe.modules is not None:
            return self._modules(names, recipe.modules)
        ((_, part),) = recipe.parts()
        if recipe.slices is None:
            return [_Section(where="", part=part, names=names, levels=levels)], []
        own = names[self._source]
        if own.stacks and own.main is None:
            what = f"{self._source} has several stacks of layers"
            self._refuse("slices", what, f"say what to do with each under modules: {_listed(own)}")
        parts = {model: language_part(names[model]) for model in names}
        found = {model: part for model, (part, _) in parts.items()}
        return [_Section(where="", part=part, names=found, levels=levels)], parts[self._source][1].names()

    def _modules(
        self, names: Mapping[str, LayerNames], modules: Mapping[str, OutputModule]
    ) -> tuple[list[_Section], list[str]]:
        parts = {model: split(names[model], list(modules)) for model in names}
        sections = []
        for module, part in modules.items():
            found = {model: parts[model][0][module] for model in names}
            if not found[self._source].names():
                known = known_modules(names[self._source])
                self._refuse(
                    f"modules.{module}", f"{self._source} has no such part", did_you_mean(module, known)
                )
            levels = (part.parameters, self._recipe.parameters)
            sections.append(_Section(where=f"modules.{module}.", part=part, names=found, levels=levels))
        return sections, parts[self._source][1].names()

    def _pieces(self, section: _Section) -> list[_Piece]:
        if section.part.slices is None:
            return [self._whole_piece(section)]
        pieces = [self._slice_piece(section, i) for i in range(len(section.part.slices))]
        if not sum(piece.count for piece in pieces):
            self._refuse(f"{section.where}slices", "no layers are left", "give ranges that hold layers")
        return pieces

    def _whole_piece(self, section: _Section) -> _Piece:
        base = self._recipe.base_model
        sources = with_base(section.part.models or (), base, self._method)
        pattern = base or sources[0].model
        piece = _Piece(
            where=f"{section.where}models",
            sources=sources,
            base_model=base,
            pattern=pattern,
            starts=dict.fromkeys([pattern, *(source.model for source in sources)], 0),
            count=0,
            levels=section.levels,
        )
        for stack in section.names[pattern].stacks:
            self._check_counts(piece, stack, self._counterparts(section, piece, stack))
        return piece

    def _check_counts(self, piece: _Piece, stack: Stack, stacks: Mapping[str, Stack]) -> None:
        counts = {model: len(other.layers) for model, other in stacks.items()}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{model} has {count}" for model, count in counts.items())
            remedy = "choose equal runs of layers with slices"
            self._refuse(piece.where, f"numbers of layers ({stack.prefix}*) differ: {listed}", remedy)

    def _slice_piece(self, section: _Section, number: int) -> _Piece:
        assert section.part.slices is not None
        piece = section.part.slices[number]
        where = f"{section.where}slices[{number}]"
        for i, source in enumerate(piece.sources):
            self._check_range(f"{where}.sources[{i}].layer_range", source, section.names[source.model])
        base = piece.base_model or self._recipe.base_model
        starts = {source.model: source.layer_range[0] for source in piece.sources}
        first, end = piece.sources[0].layer_range
        return _Piece(
            where=where,
            sources=piece.sources,
            base_model=base,
            pattern=base if base in starts else piece.sources[0].model,
            starts=starts,
            count=end - first,
            levels=(piece.parameters, *section.levels),
        )

    def _check_range(self, where: str, source: SliceSource, names: LayerNames) -> None:
        count = len(names.layers)
        if source.layer_range[1] > count:
            found = f"has layers 0 to {count - 1}" if count else "has no layers there"
            self._refuse(where, f"{list(source.layer_range)} is out of range", f"{source.model} {found}")

    def _whole(self, section: _Section, piece: _Piece) -> Iterator[TensorJob]:
        own = section.names[piece.pattern]
        self._check_outside(section, piece, (*own.before, *own.after))
        yield from self._outside(piece, own.before)
        for stack in own.stacks:
            count = len(stack.layers)
            whole = replace(piece, count=count)
            stacks = self._counterparts(section, whole, stack)
            for index in range(count):
                yield from self._layer(whole, stacks, index, stack.name(index, ""), layer_place(index, count))
        yield from self._outside(piece, own.after)

    def _sliced(self, section: _Section, pieces: Sequence[_Piece]) -> Iterator[TensorJob]:
        first, last = pieces[0], pieces[-1]
        opening, closing = section.names[first.pattern], section.names[last.pattern]
        assert opening.main is not None
        self._check_outside(section, first, opening.before, only_before=True)
        yield from self._outside(first, opening.before)
        done = 0
        for piece in pieces:
            main = section.names[piece.pattern].main
            assert main is not None
            stacks = self._counterparts(section, piece, main)
            for index in range(piece.count):
                prefix = opening.main.name(done + index, "")
                yield from self._layer(piece, stacks, index, prefix, layer_place(index, piece.count))
            done += piece.count
        for stack in closing.stacks:
            if stack != closing.main:
                yield from self._other_stack(section, last, stack, opening.main, done)
        yield from self._outside(last, closing.after)

    def _other_stack(
        self, section: _Section, piece: _Piece, stack: Stack, main: Stack, count: int
    ) -> Iterator[TensorJob]:
        """A stack beside the one that is sliced, all its layers as tensors after the layers.

        Where it goes on with the numbers of the main one, they follow the new ``count``.
        """
        whole = replace(piece, starts=dict.fromkeys(piece.starts, 0))
        stacks = self._counterparts(section, whole, stack)
        target = replace(stack, first=count) if stack.prefix == main.prefix else stack
        for index in range(len(stack.layers)):
            yield from self._layer(whole, stacks, index, target.name(index, ""), 0.0)

    def _counterparts(self, section: _Section, piece: _Piece, stack: Stack) -> dict[str, Stack]:
        """The stack of every model that takes part that is to it what ``stack`` is to the pattern."""
        found: dict[str, Stack] = {}
        is_main = stack == section.names[piece.pattern].main
        for model in piece.starts:
            names = section.names[model]
            alike = (other for other in names.stacks if _alike(other, stack))
            other = names.main if is_main and names.main is not None else next(alike, None)
            if other is not None:
                found[model] = other
        return found

    def _layer(
        self, piece: _Piece, stacks: Mapping[str, Stack], index: int, target: str, place: float
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
        self, section: _Section, piece: _Piece, own: Sequence[str], *, only_before: bool = False
    ) -> None:
        there = {model: section.names[model] for model in piece.starts}
        found = {
            model: names.before if only_before else (*names.before, *names.after)
            for model, names in there.items()
        }
        self._tensors.check_none_left(piece.pattern, own, found)

    def _outside(self, piece: _Piece, names: Sequence[str]) -> Iterator[TensorJob]:
        for name in names:
            yield from self._job(piece, name, dict.fromkeys(piece.starts, name), 0.0)

    def _job(self, piece: _Piece, name: str, names: Mapping[str, str], place: float) -> Iterator[TensorJob]:
        """The job of one tensor, or none where a problem was found."""
        fitting = self._tensors.mergeable(name, names, piece.pattern)
        if not fitting:
            return
        if len(fitting) < len(names):
            yield self._kept(name, names[piece.pattern], piece.pattern)
            return
        base = piece.base_model if self._method.takes_base else None
        merged = [source for source in piece.sources if source.model != base]
        dtype = self._dtype(piece.pattern, names[piece.pattern])
        yield TensorJob(
            name=name,
            method=self._method.name,
            shape=self._tensors.shape(piece.pattern, names[piece.pattern]),
            dtype=dtype,
            out_dtype=None if dtype is None else self._recipe.out_dtype or dtype,
            base=None if base is None else self._tensors.ref(base, names),
            sources=tuple(self._tensors.ref(source.model, names) for source in merged),
            per_source=tuple(self._of_source(piece, source, names, place) for source in merged),
            shared=self._parameters.of("global", piece.levels, names[piece.pattern], place, piece.where),
        )

    def _of_source(
        self, piece: _Piece, source: InputModel | SliceSource, names: Mapping[str, str], place: float
    ) -> Mapping[str, Scalar]:
        levels = (source.parameters, *piece.levels)
        where = f"{piece.where} ({source.model})"
        return self._parameters.of("model", levels, names[source.model], place, where)

    def _kept(self, name: str, stored_name: str, model: str) -> TensorJob:
        """A tensor that is what one model has."""
        dtype = self._dtype(model, stored_name)
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

    def _dtype(self, model: str, name: str) -> str | None:
        stored = DTYPE_NAMES.get(self._tensors.info(model, name).dtype)
        return None if stored is None else self._recipe.dtype or stored

    def _stacks(self, section: _Section, pieces: Sequence[_Piece]) -> Iterator[StackPlan]:
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

    def _refuse(self, where: str, what: str, remedy: str = "") -> None:
        self._problems.append(Problem(where, what, remedy))


def _first_pattern(recipe: Recipe) -> str:
    _, part = recipe.parts()[0]
    if part.slices is None:
        return part.references()[0] or ""
    return part.slices[0].base_model or part.slices[0].sources[0].model


def _alike(a: Stack, b: Stack) -> bool:
    return a.prefix == b.prefix and bool(a.first) == bool(b.first)


def _listed(names: LayerNames) -> str:
    return ", ".join(known_modules(names))
