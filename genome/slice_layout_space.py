"""The data-flow space: paths through the layers of several models, as plain passthrough recipes.

Akiba et al. 2024, Evolutionary Optimization of Model Merging Recipes, arXiv 2403.13187, section 3.2. All
layers of all models are laid out in order, several times; each slot has an on/off gene, and the layers that
are on are the path. The paper scales the hidden state by a number for each *pair* of layers: the square of
their number, of which a path uses a handful. Here a scale belongs to the slot that is entered: as many
scales as slots, and like the paper's it counts only where the path jumps to its slot (arXiv 2605.12326 finds
that this dependence of scales on the path is what a search has to respect).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from genome.baselines import Baseline
from genome.box import Box, Vector
from genome.errors import RefusedRecipe, SearchFileError
from genome.facts import ModelFacts
from genome.slice_layout import LayoutSpec
from genome.slice_layout_slots import Slot, laid_out
from merge_engine.errors import Problem
from merge_engine.spec import InputModel, OutputSlice, Recipe, SliceSource
from merge_engine.spec.residual import RESIDUAL, factor_of, residual_problems, scale_values

_OCTAVE = 2**16  # steps of a scale from 1 to 2: products of scales are sums of steps, exact to invert
_SMALLEST_SCALE = 2**-7  # of one scale: at 0 there is no hidden state
_LARGEST_STEPS = 13 * _OCTAVE  # of all scales along a path: float16 ends at 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Layers [start, end) of one model, their output projections multiplied by ``factor``."""

    model: str
    start: int
    end: int
    factor: float


class LayoutSpace(Box):
    """A `genome.space.Space`: on/off genes are categoricals of two values (1: on), scales are reals.

    ``most_layers``: of a path; ``models``: whose layers it can go through.
    Raises `SearchFileError` where the layout does not fit the models.
    """

    def __init__(self, spec: LayoutSpec, facts: Mapping[str, ModelFacts]) -> None:
        problems = _problems(spec, facts)
        if problems:
            raise SearchFileError(problems)
        own = facts[spec.pattern]
        self._spec = spec
        self._facts = facts
        self._residual = None if spec.scales == "none" else RESIDUAL[own.model_type]
        self.models = spec.models
        self.most_layers = spec.max_layers or 2 * own.num_layers
        self._slots, variables = laid_out(spec, facts)
        super().__init__(variables)

    def decode(self, vector: Vector) -> Recipe:
        """See `genome.space.Space.decode`. Refused: a path without layers, and scales whose product no weight
        can take.
        """
        values = self.settled(vector).tolist()
        path = self._path(values)
        if not path:
            raise RefusedRecipe([Problem("layout", "every slot is off: the path has no layers")])
        return self._recipe(list(_runs(path, self._factors(path, values))))

    def encode(self, recipe: Recipe) -> Vector | None:
        """See `genome.space.Space.encode`: each layer of the path takes the first slot that it can have."""
        runs = _read(recipe)
        path = (
            None
            if runs is None
            else self._fitting([(r.model, i) for r in runs for i in range(r.start, r.end)])
        )
        if runs is None or path is None:
            return None
        vector = self._point(path)
        before = 1.0
        for slot, factor in zip(
            path, [run.factor for run in runs for _ in range(run.start, run.end)], strict=True
        ):
            if slot.scale is not None:
                vector[slot.scale] = before / factor
            before = factor
        vector = np.clip(vector, self.lower, self.upper)
        try:
            return vector if self.decode(vector) == recipe else None
        except RefusedRecipe:
            return None

    def baselines(self) -> tuple[Baseline, ...]:
        """Each model alone (others only where their vocabulary has the first one's size), and all stacked."""
        own, *others = self._spec.models
        found = [self._at(f"source:{own}", self.start)]
        for model in others:
            if self._facts[model].vocab_size == self._facts[own].vocab_size:
                alone = (InputModel(model=model),)
                recipe = Recipe(merge_method="passthrough", models=alone, dtype=self._facts[own].dtype)
                found.append(Baseline(name=f"source:{model}", recipe=recipe, vector=None))
        stacked = [slot for slot in self._slots if slot.turn == 0]
        if others and len(stacked) <= self.most_layers:
            found.append(self._at("stacked", self._point(stacked)))
        return tuple(found)

    def _at(self, name: str, vector: Vector) -> Baseline:
        return Baseline(name=name, recipe=self.decode(vector), vector=vector)

    def _point(self, path: Sequence[Slot]) -> Vector:
        """The vector of a path with nothing scaled."""
        vector = np.array([1.0 if kind == "real" else 0.0 for kind in self.kinds])
        vector[[slot.use for slot in path if slot.use is not None]] = 1.0
        return vector

    def _path(self, values: Sequence[float]) -> list[Slot]:
        """The slots that are on, as far as `max_layers` goes; a last layer that is always on is kept."""
        path = [slot for slot in self._slots if slot.use is None or values[slot.use] == 1.0]
        if len(path) <= self.most_layers:
            return path
        end = path[-1:] if self._spec.keep_ends else []
        return path[: self.most_layers - len(end)] + end

    def _factors(self, path: Sequence[Slot], values: Sequence[float]) -> Iterator[float]:
        """What each layer's output projections are multiplied by: one over all scales so far."""
        steps, sign = 0, 1.0
        before: Slot | None = None
        for slot in path:
            is_hop = before is not None and not slot.follows(before)
            if slot.scale is not None and (is_hop or self._spec.scales == "layer"):
                scale = values[slot.scale]
                steps += round(_OCTAVE * math.log2(max(abs(scale), _SMALLEST_SCALE)))
                sign = math.copysign(sign, sign * scale)
            if abs(steps) > _LARGEST_STEPS:
                what = f"the scales along the path multiply to {2.0 ** (steps / _OCTAVE):.3g}"
                raise RefusedRecipe([Problem("layout", what, "allowed is 2**-13 to 2**13 in size")])
            yield sign * 2.0 ** (-steps / _OCTAVE)
            before = slot

    def _recipe(self, runs: Sequence[_Run]) -> Recipe:
        """The first and the last slice give embeddings, final norm and head: where a path does not begin or
        end in the first model, a slice of no layers of it does.
        """
        own = self._spec.pattern
        if runs[0].model != own:
            runs = [_Run(model=own, start=0, end=0, factor=1.0), *runs]
        if runs[-1].model != own:
            runs = [*runs, _Run(model=own, start=0, end=0, factor=math.copysign(1.0, runs[-1].factor))]
        slices = tuple(self._slice(run, last=run is runs[-1]) for run in runs)
        return Recipe(merge_method="passthrough", slices=slices, dtype=self._facts[own].dtype)

    def _slice(self, run: _Run, *, last: bool) -> OutputSlice:
        scale = None if self._residual is None else scale_values(self._residual, run.factor, last=last)
        source = SliceSource(
            model=run.model, layer_range=(run.start, run.end), parameters={"scale": scale} if scale else {}
        )
        return OutputSlice(sources=(source,))

    def _fitting(self, layers: Sequence[tuple[str, int]]) -> list[Slot] | None:
        """The first slots that hold these layers in this order; None where there are none."""
        slots = list(self._slots)
        if self._spec.keep_ends:
            ends = [(slot.model, slot.layer) for slot in (slots[0], slots[-1])]
            if len(layers) < 2 or [layers[0], layers[-1]] != ends:
                return None
            body = _first_fit(slots[1:-1], layers[1:-1])
            return None if body is None else [slots[0], *body, slots[-1]]
        return _first_fit(slots, layers)


def _problems(spec: LayoutSpec, facts: Mapping[str, ModelFacts]) -> list[Problem]:
    own = facts[spec.pattern]
    problems: list[Problem] = []
    for i, model in enumerate(spec.models):
        if facts[model].model_type != own.model_type or facts[model].layer_tensors != own.layer_tensors:
            what = f"{model} ({facts[model].model_type!r}) is not built like {spec.pattern}"
            problems.append(
                Problem(f"layout.models[{i}]", what, "layers of one architecture can make a path")
            )
    if spec.keep_ends and own.num_layers < 2:
        problems.append(
            Problem("layout.keep_ends", f"{spec.pattern} has only one layer", "set keep_ends: false")
        )
    if spec.max_layers is not None and spec.max_layers < own.num_layers:
        what = f"{spec.max_layers} is less than the {own.num_layers} layers of {spec.pattern}, the start"
        problems.append(Problem("layout.max_layers", what, "allow at least these"))
    if spec.scales != "none":
        negative = spec.scale_bounds[0] <= 0
        problems += residual_problems(own.model_type, own.layer_tensors, negative=negative)
    return problems


def _runs(path: Sequence[Slot], factors: Iterator[float]) -> Iterator[_Run]:
    """The path as runs of successive layers of one model and one factor."""
    run: _Run | None = None
    for slot, factor in zip(path, factors, strict=True):
        if run is not None and (slot.model, slot.layer, factor) == (run.model, run.end, run.factor):
            run = _Run(model=run.model, start=run.start, end=slot.layer + 1, factor=factor)
            continue
        if run is not None:
            yield run
        run = _Run(model=slot.model, start=slot.layer, end=slot.layer + 1, factor=factor)
    if run is not None:
        yield run


def _read(recipe: Recipe) -> list[_Run] | None:
    """The runs of a recipe that `LayoutSpace.decode` could have written; None for every other."""
    runs = []
    for piece in recipe.slices or ():
        factor = factor_of(piece.sources[0].parameters.get("scale")) if len(piece.sources) == 1 else None
        if factor is None:
            return None
        start, end = piece.sources[0].layer_range
        runs.append(_Run(model=piece.sources[0].model, start=start, end=end, factor=factor))
    return runs if any(run.start < run.end for run in runs) else None


def _first_fit(slots: Sequence[Slot], layers: Sequence[tuple[str, int]]) -> list[Slot] | None:
    found: list[Slot] = []
    for slot in slots:
        if len(found) < len(layers) and (slot.model, slot.layer) == layers[len(found)]:
            found.append(slot)
    return found if len(found) == len(layers) else None
