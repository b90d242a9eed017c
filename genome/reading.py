"""From a recipe back to the values of variables: the way back from what `genome.skeleton` fills in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genome.holes import Choose, Hole
from genome.values import Layers, Leaf, Written
from genome.variables import Column, coordinate


def read_places(written: Mapping[str, Any], data: Mapping[str, Any]) -> Mapping[int, float]:
    """Coordinates of the variables whose values the recipe shows, by their place in the vector.

    ``written``: the recipe's structure, with `Written` values; ``data``: a recipe as plain data that may have
    this structure. One over whole models is read for slices of these models too. Whether the coordinates
    decode to the recipe is not checked.
    """
    reader = _Reader()
    reader.part(written, _sliced(data, written["slices"]) if _must_slice(written, data) else data)
    return reader.settled()


def _must_slice(written: Mapping[str, Any], data: Mapping[str, Any]) -> bool:
    return bool(written.get("slices")) and data.get("slices") is None and isinstance(data.get("models"), list)


def _sliced(data: Mapping[str, Any], pieces: Sequence[Any]) -> Mapping[str, Any]:
    """The parameters of whole models and of the merge, as every one of the slices has them."""
    own = {entry["model"]: entry.get("parameters") for entry in data["models"]}
    return dict(data) | {
        "slices": [
            {
                "sources": [{"parameters": own.get(source["model"])} for source in piece["sources"]],
                "parameters": data.get("parameters"),
            }
            for piece in pieces
        ]
    }


class _Reader:
    def __init__(self) -> None:
        self._places: dict[int, float] = {}
        self._samples: dict[str, tuple[Column, dict[float, float]]] = {}

    def part(self, written: Any, data: Any) -> None:
        """A part of a recipe and what stands in its place."""
        if isinstance(written, Written):
            self._value(written.value, data, written.layers)
        elif isinstance(written, Mapping) and isinstance(data, Mapping):
            for key, value in written.items():
                self.part(value, data.get(key))
        elif isinstance(written, list) and isinstance(data, list | tuple):
            for value, found in zip(written, data, strict=False):
                self.part(value, found)

    def settled(self) -> Mapping[int, float]:
        """What was read, with the nodes of gradients that were only seen at some layers."""
        for column, samples in self._samples.values():
            self._places |= dict(zip(column.indices, _nodes(samples, len(column.indices)), strict=True))
        return self._places

    def _value(self, value: Any, data: Any, layers: Layers) -> None:
        if data is None:
            return
        if isinstance(value, Leaf):
            self._leaf(value.column, data, layers)
        elif isinstance(value, Mapping):
            self._value(value.get("value"), data.get("value") if isinstance(data, Mapping) else data, layers)
        elif isinstance(value, list):
            given = data if isinstance(data, list | tuple) else [data] * len(value)
            for entry, found in zip(value, given, strict=False):
                self._value(entry, found, layers)

    def _leaf(self, column: Column, data: Any, layers: Layers) -> None:
        if not column.smooth:
            self._note(column.hole, column.index_at(layers.start), data)
        elif (layers.start, layers.end) == (column.start, column.end):
            for index, node in zip(column.indices, _spread(data, len(column.indices)), strict=False):
                self._note(column.hole, index, node)
        else:
            places = layers.places_in(column.start, column.end)
            _, samples = self._samples.setdefault(column.key, (column, {}))
            values = _spread(data, len(places))
            samples.update(zip(places, map(_number, values), strict=False))

    def _note(self, hole: Hole, index: int, value: Any) -> None:
        place = _place(hole, value)
        if place is not None:
            self._places[index] = place


def _spread(data: Any, count: int) -> Sequence[Any]:
    return data if isinstance(data, list | tuple) else [data] * count


def _number(value: Any) -> float:
    return float(value) if isinstance(value, bool | int | float) else 0.0


def _place(hole: Hole, value: Any) -> float | None:
    """The coordinate of a value; None where no coordinate is."""
    if isinstance(hole, Choose):
        same = (
            i
            for i, option in enumerate(hole.options)
            if option == value and isinstance(option, bool) == isinstance(value, bool)
        )
        return next(same, None)
    if not isinstance(value, int | float) or (hole.log and value <= 0):
        return None
    return coordinate(hole, value)


def _nodes(samples: Mapping[float, float], count: int) -> list[float]:
    """The nodes of a gradient with these values at places in [0, 1]: exact at nodes, else a best fit."""
    places = np.array(list(samples)) * (count - 1)
    values = np.array(list(samples.values()))
    left = np.minimum(places.astype(int), count - 2)
    weights = np.zeros((len(places), count))
    rows = np.arange(len(places))
    weights[rows, left] = 1 - (places - left)
    weights[rows, left + 1] = places - left
    nodes = np.linalg.lstsq(weights, values, rcond=None)[0]
    for place, value in zip(places.tolist(), values.tolist(), strict=True):
        if place == int(place):
            nodes[int(place)] = value
    found: list[float] = nodes.tolist()
    return found
