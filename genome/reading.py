"""From a recipe back to the values of variables: the way back from what `genome.skeleton` fills in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from genome.holes import Choose, Hole
from genome.values import Layers, Leaf, Written
from genome.variables import Column, coordinate
from merge_engine.spec import Scalar


def read_places(
    written: Mapping[str, Any], data: Mapping[str, Any], start: Sequence[Scalar]
) -> Mapping[int, float]:
    """Coordinates of the variables whose values the recipe shows, by their place in the vector.

    ``written``: the recipe's structure, with `Written` values; ``data``: a recipe as plain data that may have
    this structure. One over whole models is read for slices of these models too. Whether the coordinates
    decode to the recipe is not checked. ``start``: values of all variables, to which those keep closest that
    the recipe does not settle.
    """
    reader = _Reader(start)
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


# A node of a gradient: a hole with its place in the vector, or a plain number.
_Node: TypeAlias = "tuple[Hole, int] | float"


class _Reader:
    def __init__(self, start: Sequence[Scalar]) -> None:
        self._start = start
        self._places: dict[int, float] = {}
        self._gradients: dict[int, tuple[Sequence[_Node], dict[float, float]]] = {}

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
        """What was read, with the nodes of gradients that were only seen at the layers."""
        seen = set(self._places)
        for nodes, samples in self._gradients.values():
            guess = [node if isinstance(node, float) else float(self._start[node[1]]) for node in nodes]
            for node, value in zip(nodes, _fitted(samples, guess), strict=True):
                if not isinstance(node, float) and node[1] not in seen:
                    self._note(*node, value)
        return self._places

    def _value(self, value: Any, data: Any, layers: Layers) -> None:
        if data is None:
            return
        if isinstance(value, Leaf):
            self._leaf(value.column, data, layers)
        elif isinstance(value, Mapping):
            self._value(value.get("value"), data.get("value") if isinstance(data, Mapping) else data, layers)
        elif isinstance(value, list) and value:
            if layers.whole or isinstance(value[0], Mapping) or len(value) == 1:
                for entry, found in zip(value, _spread(data, len(value)), strict=False):
                    self._value(entry, found, layers)
            else:
                nodes = [_node(entry, layers) for entry in value]
                self._sample(id(value), nodes, layers.places(), data)

    def _leaf(self, column: Column, data: Any, layers: Layers) -> None:
        if not column.smooth:
            self._note(column.hole, column.index_at(layers.start), data)
            return
        nodes: list[_Node] = [(column.hole, index) for index in column.indices]
        if (layers.start, layers.end) == (column.start, column.end):
            for index, found in zip(column.indices, _spread(data, len(nodes)), strict=False):
                self._note(column.hole, index, found)
        else:
            self._sample(id(column), nodes, layers.places_in(column.start, column.end), data)

    def _sample(self, key: int, nodes: Sequence[_Node], places: Sequence[float], data: Any) -> None:
        """Values of a gradient at some places."""
        _, samples = self._gradients.setdefault(key, (nodes, {}))
        samples.update(zip(places, map(_number, _spread(data, len(places))), strict=False))

    def _note(self, hole: Hole, index: int, value: Any) -> None:
        place = _place(hole, value)
        if place is not None:
            self._places[index] = place


def _node(entry: object, layers: Layers) -> _Node:
    if isinstance(entry, Leaf):
        return entry.column.hole, entry.column.index_at(layers.start)
    return _number(entry)


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


def _fitted(samples: Mapping[float, float], guess: Sequence[float]) -> list[float]:
    """The nodes of a gradient with these values at places in [0, 1], as close to ``guess`` as they can be:
    exact where a place is a node, else by least squares.
    """
    count = len(guess)
    places = np.array(list(samples)) * (count - 1)
    values = np.array(list(samples.values()))
    left = np.minimum(places.astype(int), count - 2)
    rows = np.arange(len(places))
    weights = np.zeros((len(places), count))
    weights[rows, left] = 1 - (places - left)
    weights[rows, left + 1] = places - left
    nodes = guess + np.linalg.lstsq(weights, values - weights @ np.array(guess), rcond=None)[0]
    for place, value in zip(places.tolist(), values.tolist(), strict=True):
        if place == int(place):
            nodes[int(place)] = value
    found: list[float] = nodes.tolist()
    return found
