"""Which structures of a template a recipe can come from.

The parts of a recipe decide the structural holes of the template that they are matched with: methods, models,
layer ranges, chosen parts. A slice of the template may have been cut into several, and models into slices.
What is proposed here is only likely; whether it decodes to the recipe is looked at afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from genome.holes import Choose, Node, Ref, Search
from genome.template import Template

Places: TypeAlias = "Mapping[str, int]"  # of structural holes: the number of an option or a step

_MOST_STEPS = 20_000  # of one match: templates in which much is chosen could be matched for ever


def structures(template: Template, data: Mapping[str, Any]) -> Iterator[Places]:
    """Structures that ``data``, a recipe as plain data, may have, each with the holes that it settles."""
    if not template.structural:
        yield {}
        return
    try:
        yield from _Matcher(template, data).match(template.tree, data, {})
    except (_TooMany, RecursionError):  # the latter in a template of hundreds of slices
        return


class _TooMany(Exception):
    """The match takes too long."""


class _Matcher:
    def __init__(self, template: Template, data: Mapping[str, Any]) -> None:
        self._template = template
        self._base = data.get("base_model")
        self._steps = 0

    def match(self, node: Node, data: Any, found: Places) -> Iterator[Places]:
        """Every way in which ``data`` can be ``node``, after what was ``found`` before."""
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise _TooMany
        target = self._template.holes[node.name] if isinstance(node, Ref) else node
        if isinstance(target, Search | Choose):
            if target.key not in self._template.structural:
                yield found
            elif isinstance(target, Search):
                yield from _at(target.key, _step(target, data), found)
            else:
                yield from self._chosen(target, data, found)
        elif isinstance(target, Mapping):
            yield from self._mapping(target, data, found)
        elif isinstance(target, tuple):
            yield from self._list(target, data, found)
        elif target == data or target is None:
            yield found

    def _chosen(self, hole: Choose, data: Any, found: Places) -> Iterator[Places]:
        for i, option in enumerate(hole.options):
            for settled in _at(hole.key, i, found):
                yield from self.match(option, data, settled)

    def _mapping(self, node: Mapping[str, Node], data: Any, found: Places) -> Iterator[Places]:
        if not isinstance(data, Mapping):
            return
        pending = list(node.items())

        def rest(i: int, found: Places) -> Iterator[Places]:
            if i == len(pending):
                yield found
                return
            key, value = pending[i]
            for settled in self._entry(key, value, data, found):
                yield from rest(i + 1, settled)

        yield from rest(0, found)

    def _entry(self, key: str, node: Node, data: Mapping[str, Any], found: Places) -> Iterator[Places]:
        """One key of a recipe or of a part of it."""
        given = data.get(key)
        if key == "models" and given is None and data.get("slices"):
            yield from self._inputs(node, data["slices"][0].get("sources"), found)
        elif key == "models" or key == "sources":
            yield from self._inputs(node, given, found)
        elif key == "slices" and given is not None:
            yield from self._slices(node, given, found)
        elif key == "parameters" or given is None:
            yield from self._any(node, found)
        else:
            yield from self.match(node, given, found)

    def _inputs(self, node: Node, data: Any, found: Places) -> Iterator[Places]:
        """Models or sources; where models became slices, a base model was added to them."""
        yield from self.match(node, data, found)
        if isinstance(data, list):
            without = [entry for entry in data if entry.get("model") != self._base]
            if len(without) < len(data):
                yield from self.match(node, without, found)

    def _slices(self, node: Node, pieces: Sequence[Any], found: Places) -> Iterator[Places]:
        """Slices, each of which may have been cut into several."""
        for nodes, settled in self._lists(node, found):
            yield from self._uncut(nodes, pieces, settled)

    def _lists(self, node: Node, found: Places) -> Iterator[tuple[Sequence[Node], Places]]:
        target = self._template.holes[node.name] if isinstance(node, Ref) else node
        if isinstance(target, tuple):
            yield target, found
        elif isinstance(target, Choose):
            for i, option in enumerate(target.options):
                for settled in _at(target.key, i, found):
                    yield from self._lists(option, settled)

    def _uncut(self, nodes: Sequence[Node], pieces: Sequence[Any], found: Places) -> Iterator[Places]:
        if not nodes or not pieces:
            if not nodes and not pieces:
                yield found
            return
        joined = pieces[0]
        for count in range(1, len(pieces) - len(nodes) + 2):
            if count > 1:
                joined = _joined(joined, pieces[count - 1])
            if joined is None:
                return
            for settled in self.match(nodes[0], joined, found):
                yield from self._uncut(nodes[1:], pieces[count:], settled)

    def _list(self, nodes: Sequence[Node], data: Any, found: Places) -> Iterator[Places]:
        if not isinstance(data, list | tuple) or len(data) != len(nodes):
            return
        if not nodes:
            yield found
            return
        for settled in self.match(nodes[0], data[0], found):
            yield from self._list(nodes[1:], data[1:], settled)

    def _any(self, node: Node, found: Places) -> Iterator[Places]:
        """Every structure that a part can have of which the recipe shows nothing, or too much to say."""
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise _TooMany
        target = self._template.holes[node.name] if isinstance(node, Ref) else node
        if isinstance(target, Choose) and target.key in self._template.structural:
            for i, option in enumerate(target.options):
                for settled in _at(target.key, i, found):
                    yield from self._any(option, settled)
        elif isinstance(target, Mapping | tuple):
            parts = target.values() if isinstance(target, Mapping) else target
            yield from self._all([part for part in parts if self._decides(part)], found)
        else:
            yield found

    def _decides(self, node: Node) -> bool:
        """Whether a part has structural holes in it."""
        if isinstance(node, Search | Choose | Ref):
            return True
        parts = node.values() if isinstance(node, Mapping) else node if isinstance(node, tuple) else ()
        return any(self._decides(part) for part in parts)

    def _all(self, parts: Sequence[Node], found: Places) -> Iterator[Places]:
        if not parts:
            yield found
            return
        for settled in self._any(parts[0], found):
            yield from self._all(parts[1:], settled)


def _at(key: str, place: int | None, found: Places) -> Iterator[Places]:
    """``found`` with this hole settled, unless it was settled otherwise before."""
    if place is not None and found.get(key, place) == place:
        yield {**found, key: place}


def _step(hole: Search, value: Any) -> int | None:
    """The number of steps from the low end to ``value``; None where it is not on one."""
    if type(value) is not int or hole.step is None or not hole.low <= value <= hole.high:
        return None
    place = round((value - hole.low) / hole.step)
    return place if hole.low + place * hole.step == value else None


def _joined(piece: Any, following: Any) -> Any:
    """The slice of which both are parts, one after the other; None where they are not."""
    sources = []
    for before, after in zip(piece["sources"], following["sources"], strict=False):
        start, end = before["layer_range"]
        if before["model"] != after["model"] or after["layer_range"][0] != end:
            return None
        sources.append(before | {"layer_range": [start, after["layer_range"][1]]})
    return piece | {"sources": sources} if len(sources) == len(following["sources"]) else None
