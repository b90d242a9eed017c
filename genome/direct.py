"""Genes that are the values of parameters: grid of numbers <-> recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from genome.frame import Frame
from genome.layout import Layout
from merge_engine.spec import Filtered, Gradient, InputModel, OutputSlice, Recipe, Scalar, SliceSource, Value


class DirectForm:
    """Writes a grid of genes, shape (groups, filters, slots), into a recipe and reads it back.

    ``inputs``: the models of each merge in order, the base included where the method needs one;
    ``base_model``: what the recipe names as its base.
    """

    def __init__(self, frame: Frame, layout: Layout, inputs: Sequence[str], base_model: str | None) -> None:
        self._frame = frame
        self._layout = layout
        self.base_model = base_model
        self._inputs = [(model, self._slots_of(model)) for model in inputs]
        self._shared = self._slots_of(None)

    def _slots_of(self, model: str | None) -> list[tuple[str, int]]:
        return [(slot.parameter, s) for s, slot in enumerate(self._layout.slots) if slot.model == model]

    def write(self, grid: NDArray[np.float64]) -> Recipe:
        """The recipe with these genes."""
        if self._layout.sliced:
            tables = grid.transpose(0, 2, 1).tolist()  # groups, slots, filters
            slices = tuple(
                self._slice(layers, self._values(table))
                for layers, table in zip(self._layout.groups, tables, strict=True)
            )
            return self._frame.recipe(base_model=self.base_model, slices=slices, parameters={})
        nodes = grid.transpose(2, 1, 0).tolist()  # slots, filters, groups
        values = self._values([[_gradient(numbers) for numbers in by_filter] for by_filter in nodes])
        models = tuple(
            InputModel(model=model, parameters={name: values[s] for name, s in slots})
            for model, slots in self._inputs
        )
        shared = {name: values[s] for name, s in self._shared}
        return self._frame.recipe(base_model=self.base_model, models=models, parameters=shared)

    def _slice(self, layers: tuple[int, int], values: list[Value]) -> OutputSlice:
        sources = tuple(
            SliceSource(model=model, layer_range=layers, parameters={name: values[s] for name, s in slots})
            for model, slots in self._inputs
        )
        return OutputSlice(sources=sources, parameters={name: values[s] for name, s in self._shared})

    def _values(self, table: list[list[Scalar | Gradient]]) -> list[Value]:
        return [filtered_value(self._layout.filters, by_filter) for by_filter in table]

    def read(self, recipe: Recipe) -> NDArray[np.float64] | None:
        """The genes of a recipe that `write` gives for some grid; None for every other recipe."""
        if self._layout.sliced:
            pieces = [self._table(piece.sources, piece.parameters) for piece in recipe.slices or ()]
        else:
            pieces = [self._table(recipe.models or (), recipe.parameters)]
        try:
            table = np.array(pieces, dtype=np.float64)
        except (TypeError, ValueError):  # a value of another kind or length than the layout's
            return None
        groups, filters, slots = self._layout.shape
        if table.size != groups * filters * slots:
            return None
        if self._layout.sliced:
            grid = table.reshape(groups, slots, filters).transpose(0, 2, 1)
        else:
            grid = table.reshape(slots, filters, groups).transpose(2, 1, 0)
        return grid if self.write(grid) == recipe else None

    def _table(
        self, inputs: Iterable[InputModel | SliceSource], shared: Mapping[str, Value]
    ) -> list[list[object]]:
        """Per slot and filter what the recipe has there, None where it has nothing."""
        owned = {entry.model: entry.parameters for entry in inputs}
        return [
            self._by_filter((shared if slot.model is None else owned.get(slot.model, {})).get(slot.parameter))
            for slot in self._layout.slots
        ]

    def _by_filter(self, value: Value | None) -> list[object]:
        if len(self._layout.filters) == 1:
            return [value]
        entries = value if isinstance(value, tuple) else ()
        return [entry.value for entry in entries if isinstance(entry, Filtered)]


def filtered_value(filters: Sequence[str | None], by_filter: Sequence[Scalar | Gradient]) -> Value:
    """One value for each filter, as a recipe writes it; a lone value without a filter."""
    if len(filters) == 1:
        return by_filter[0]
    return tuple(Filtered(filter=part, value=value) for part, value in zip(filters, by_filter, strict=True))


def _gradient(numbers: list[float]) -> Scalar | Gradient:
    return tuple(numbers) if len(numbers) > 1 else numbers[0]
