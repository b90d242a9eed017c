"""Parameter values with holes: from the values of variables to what a recipe holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypeAlias

from genome.errors import RefusedRecipe
from genome.variables import Column
from merge_engine.errors import Problem
from merge_engine.spec import Filtered, Scalar, Value, evaluate, layer_place
from merge_engine.spec.reading import shown

# Gives a parameter's value, from the values of all variables and the constants that a `Pool` adds to them.
Writer: TypeAlias = "Callable[[Sequence[Scalar]], Any]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A hole in the value of a parameter, once the structure of the recipe is settled."""

    column: Column


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Layers [``start``, ``end``) of a source model, a part of the slice [``whole_start``, ``whole_end``)."""

    start: int
    end: int
    whole_start: int
    whole_end: int

    @property
    def whole(self) -> bool:
        return (self.start, self.end) == (self.whole_start, self.whole_end)

    def places(self) -> list[float]:
        """Where each layer lies in the whole slice, as gradients count: 0 the first, 1 the last."""
        return self.places_in(self.whole_start, self.whole_end)

    def places_in(self, start: int, end: int) -> list[float]:
        """Where each layer lies among the layers [``start``, ``end``)."""
        return [layer_place(layer - start, end - start) for layer in range(self.start, self.end)]


def leaves(value: object) -> Iterator[Leaf]:
    """Every hole in the value of a parameter."""
    if isinstance(value, Leaf):
        yield value
    elif isinstance(value, Mapping):
        yield from leaves(value.get("value"))
    elif isinstance(value, list):
        for entry in value:
            yield from leaves(entry)


def varies_by_layer(value: object) -> bool:
    """Whether a value is not the same in all layers."""
    if isinstance(value, Leaf):
        return len(value.column.indices) > 1
    if isinstance(value, Mapping):
        return varies_by_layer(value.get("value"))
    if isinstance(value, list):
        filtered = any(isinstance(entry, Mapping) for entry in value)
        return any(varies_by_layer(entry) for entry in value) if filtered else len(value) > 1
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The value of a parameter that a candidate's numbers go into.

    ``value``: plain data with leaves, for ``layers``. ``holes``: its leaves.
    """

    write: Writer
    value: Any
    layers: Layers
    holes: tuple[Leaf, ...]


class Pool:
    """Constants that follow the values of the ``variables`` of a space, so that one getter fetches both."""

    def __init__(self, variables: int) -> None:
        self._variables = variables
        self.constants: list[Any] = []

    def written(self, value: object, layers: Layers) -> Written:
        """The value (plain data with leaves) in these layers."""
        return Written(
            write=self._writer(value, layers), value=value, layers=layers, holes=tuple(leaves(value))
        )

    def _writer(self, value: object, layers: Layers) -> Writer:
        if isinstance(value, Leaf):
            return _leaf_writer(value.column, layers)
        if not isinstance(value, list):
            return self.constant(value)
        if all(isinstance(entry, Mapping) for entry in value):
            return _filtered([self._entry(entry, layers) for entry in value])
        indices = [self._node(entry, layers) for entry in value]
        return _gradient(indices, None if layers.whole else layers.places())

    def constant(self, value: object) -> Writer:
        """What writes the same for all candidates."""
        return itemgetter(self._constant(value))

    def _entry(self, entry: Mapping[str, Any], layers: Layers) -> tuple[str | None, Writer]:
        if not entry.keys() <= {"filter", "value"} or isinstance(entry.get("value"), Mapping):
            raise _refused(entry, "a filter and a value")
        return entry.get("filter"), self._writer(entry.get("value"), layers)

    def _node(self, entry: object, layers: Layers) -> int:
        if isinstance(entry, Leaf):
            return entry.column.index_at(layers.start)
        if not isinstance(entry, bool | int | float):
            raise _refused(entry, "a number")
        return self._constant(entry)

    def _constant(self, constant: object) -> int:
        self.constants.append(constant)
        return self._variables + len(self.constants) - 1


def _refused(found: object, expected: str) -> RefusedRecipe:
    return RefusedRecipe([Problem("parameters", f"expected {expected} in a list, found {shown(found)}")])


def _leaf_writer(column: Column, layers: Layers) -> Writer:
    if not column.smooth:
        return itemgetter(column.index_at(layers.start))
    covers = (layers.start, layers.end) == (column.start, column.end)
    return _gradient(column.indices, None if covers else layers.places_in(column.start, column.end))


def _gradient(indices: Sequence[int], places: Sequence[float] | None) -> Writer:
    """A gradient with these nodes; with ``places`` its values there, one node for each."""
    if len(indices) == 1:
        return itemgetter(indices[0])
    nodes = itemgetter(*indices)
    if places is None:
        return nodes

    def write(values: Sequence[Scalar]) -> Any:
        given = nodes(values)
        found = tuple(evaluate(given, "", place) for place in places)
        return found if len(found) > 1 else found[0]

    return write


def _filtered(entries: Sequence[tuple[str | None, Writer]]) -> Writer:
    def write(values: Sequence[Scalar]) -> Value:
        return tuple([Filtered(filter=part, value=writer(values)) for part, writer in entries])

    return write
