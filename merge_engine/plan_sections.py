"""The parts of a result: which models' tensors each is made of, in whole or in slices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from merge_engine.errors import Problem
from merge_engine.layers import LayerNames, Stack
from merge_engine.parts import known_modules, language_part, split
from merge_engine.plan_parameters import Levels
from merge_engine.spec.methods import METHODS
from merge_engine.spec.reading import did_you_mean
from merge_engine.spec.recipe import InputModel, OutputModule, Recipe, SliceSource
from merge_engine.spec.recipe_checks import with_base


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the result that is made in one way; ``names`` are each model's tensors in that part."""

    where: str
    part: OutputModule
    names: Mapping[str, LayerNames]
    levels: Levels


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
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

    def counterparts(self, section: Section, stack: Stack) -> dict[str, Stack]:
        """The stack of every model that takes part that is to it what ``stack`` is to the pattern."""
        found: dict[str, Stack] = {}
        is_main = stack == section.names[self.pattern].main
        for model in self.starts:
            names = section.names[model]
            other = names.main if is_main and names.main is not None else names.alike(stack)
            if other is not None:
                found[model] = other
        return found


class SectionFinder:
    """Divides a result into sections, and sections into pieces; what does not fit goes to ``problems``.

    ``names``: the tensors of every model. ``source``: the model whose config describes the result.
    """

    def __init__(
        self, recipe: Recipe, names: Mapping[str, LayerNames], source: str, problems: list[Problem]
    ) -> None:
        self._recipe = recipe
        self._names = names
        self._source = source
        self._problems = problems

    def sections(self) -> tuple[list[Section], list[str]]:
        """The parts of the result, and the tensors of none: they are kept as the first model has them."""
        recipe, levels = self._recipe, (self._recipe.parameters,)
        names = self._names
        if recipe.modules is not None:
            return self._modules(recipe.modules)
        ((_, part),) = recipe.parts()
        if recipe.slices is None:
            return [Section(where="", part=part, names=names, levels=levels)], []
        own = names[self._source]
        if own.stacks and own.main is None:
            what = f"{self._source} has several stacks of layers"
            self._refuse(
                "slices", what, f"say what to do with each under modules: {', '.join(known_modules(own))}"
            )
        parts = {model: language_part(names[model]) for model in names}
        found = {model: part for model, (part, _) in parts.items()}
        return [Section(where="", part=part, names=found, levels=levels)], parts[self._source][1].names()

    def _modules(self, modules: Mapping[str, OutputModule]) -> tuple[list[Section], list[str]]:
        names = self._names
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
            sections.append(Section(where=f"modules.{module}.", part=part, names=found, levels=levels))
        return sections, parts[self._source][1].names()

    def pieces(self, section: Section) -> list[Piece]:
        if section.part.slices is None:
            return [self._whole_piece(section)]
        pieces = [self._slice_piece(section, i) for i in range(len(section.part.slices))]
        if not sum(piece.count for piece in pieces):
            self._refuse(f"{section.where}slices", "no layers are left", "give ranges that hold layers")
        return pieces

    def _whole_piece(self, section: Section) -> Piece:
        base = self._recipe.base_model
        sources = with_base(section.part.models or (), base, METHODS[self._recipe.merge_method])
        pattern = base or sources[0].model
        piece = Piece(
            where=f"{section.where}models",
            sources=sources,
            base_model=base,
            pattern=pattern,
            starts=dict.fromkeys([pattern, *(source.model for source in sources)], 0),
            count=0,
            levels=section.levels,
        )
        for stack in section.names[pattern].stacks:
            self._check_counts(piece, stack, piece.counterparts(section, stack))
        return piece

    def _check_counts(self, piece: Piece, stack: Stack, stacks: Mapping[str, Stack]) -> None:
        counts = {model: len(other.layers) for model, other in stacks.items()}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{model} has {count}" for model, count in counts.items())
            remedy = "choose equal runs of layers with slices"
            self._refuse(piece.where, f"numbers of layers ({stack.prefix}*) differ: {listed}", remedy)

    def _slice_piece(self, section: Section, number: int) -> Piece:
        assert section.part.slices is not None
        piece = section.part.slices[number]
        where = f"{section.where}slices[{number}]"
        for i, source in enumerate(piece.sources):
            self._check_range(f"{where}.sources[{i}].layer_range", source, section.names[source.model])
        base = piece.base_model or self._recipe.base_model
        starts = {source.model: source.layer_range[0] for source in piece.sources}
        first, end = piece.sources[0].layer_range
        return Piece(
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

    def _refuse(self, where: str, what: str, remedy: str = "") -> None:
        self._problems.append(Problem(where, what, remedy))


def first_pattern(recipe: Recipe) -> str:
    """The model that is asked for names where the recipe has no base model."""
    _, part = recipe.parts()[0]
    if part.slices is None:
        return part.references()[0] or ""
    return part.slices[0].base_model or part.slices[0].sources[0].model
