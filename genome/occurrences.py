"""Where each hole of a template stands, and what it feeds there.

A template is walked through all alternatives at once: a part that is chosen stands for each of its options.
A hole is met as a *value* where it is the number or flag of a parameter; everywhere else (methods, models,
layer ranges, whole parts) it decides the *structure* of the recipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from genome.holes import Choose, Hole, Node, Ref, Search
from merge_engine.spec.methods import METHODS

_BODY = ("models", "slices", "modules")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Layers [``start``, ``end``) of one of ``models``; ``end`` None: to the last. No models: of any."""

    models: tuple[str, ...]
    start: int = 0
    end: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Occurrence:
    """One place of the hole ``key``.

    ``parameter`` None: it decides the structure. Otherwise it is (part of) the value of that parameter of
    ``owner``: a model's name or path, None for the merge as a whole; ``of_model``: of a single model.
    ``entry``: its place in a list with filters, whose filter is ``part`` ("rest" for the last, "" outside
    such a list). ``node``: it is a node of a written gradient. ``spans``: the layers that it can reach.
    ``methods``: those the merge can have. ``inputs``: how many models are merged there.
    """

    key: str
    where: str
    parameter: str | None = None
    owner: str | None = None
    of_model: bool = False
    entry: int = 0
    part: str = ""
    node: bool = False
    spans: tuple[Span, ...] = ()
    methods: tuple[str, ...] = ()
    inputs: int = 1


class Walk:
    """All occurrences in one template, and the methods and models it names. ``holes``: every hole by key."""

    def __init__(self, tree: Mapping[str, Node], holes: Mapping[str, Hole]) -> None:
        self._holes = holes
        self._open: list[str] = []
        self.occurrences: list[Occurrence] = []
        self.references: list[str] = []
        self.methods = self._texts(tree.get("merge_method"), "merge_method")
        bases = self._texts(tree.get("base_model"), "base_model")
        self._base = bases[0] if bases else None
        self._body(tree, "")
        self.references += bases

    def _variants(self, node: Node, where: str) -> Iterator[tuple[str, Node]]:
        """What can stand at this place, with its path, noting the holes that decide it.

        A part that contains itself through a reference is not followed again (it is refused elsewhere).
        """
        target = self._holes.get(node.name) if isinstance(node, Ref) else node
        if isinstance(target, Search):
            self.occurrences.append(Occurrence(key=target.key, where=where))
            yield where, target
        elif isinstance(target, Choose):
            for path, option in self._options(target, where):
                yield from self._variants(option, path)
        elif not isinstance(target, Ref):
            yield where, target

    def _options(self, hole: Choose, where: str) -> Iterator[tuple[str, Node]]:
        """The alternatives with their paths, noting the hole."""
        if hole.key in self._open:
            return
        self.occurrences.append(Occurrence(key=hole.key, where=where))
        self._open.append(hole.key)
        for i, option in enumerate(hole.options):
            yield f"{where}.choose[{i}]", option
        self._open.pop()

    def _texts(self, node: Node, where: str) -> tuple[str, ...]:
        return tuple(found for _, found in self._variants(node, where) if isinstance(found, str))

    def _mappings(self, node: Node, where: str) -> Iterator[tuple[str, Mapping[str, Node]]]:
        for path, found in self._variants(node, where):
            if isinstance(found, Mapping):
                yield path, found

    def _entries(self, node: Node, where: str) -> Iterator[tuple[int, str, Mapping[str, Node]]]:
        """Every mapping that can stand in the list at this place, with its number and path."""
        for path, found in self._variants(node, where):
            if isinstance(found, tuple):
                for i, entry in enumerate(found):
                    for entry_path, mapping in self._mappings(entry, f"{path}[{i}]"):
                        yield i, entry_path, mapping

    def _body(self, body: Mapping[str, Node], where: str) -> None:
        """A recipe, or a part of one: its models or slices, then the parameters that they share."""
        inputs = self._inputs(body.get("models"), _at(where, "models"))
        spans = [span for _, span in inputs]
        count = self._count(inputs)
        for _, path, piece in self._entries(body.get("slices"), _at(where, "slices")):
            first, merged = self._slice(piece, path)
            spans += first
            count = max(count, merged)
        for path, modules in self._mappings(body.get("modules"), _at(where, "modules")):
            for name, module in modules.items():
                for module_path, mapping in self._mappings(module, f"{path}.{name}"):
                    self._body(mapping, module_path)
        self._shared(body.get("parameters"), _at(where, "parameters"), None, spans, count)
        for key, node in body.items():
            if key not in (*_BODY, "parameters", "merge_method", "base_model"):
                self._structure(node, _at(where, key))

    def _slice(self, piece: Mapping[str, Node], where: str) -> tuple[list[Span], int]:
        """The layers that its first source can have, and how many models are merged."""
        inputs = self._inputs(piece.get("sources"), f"{where}.sources")
        first, count = [span for i, span in inputs if i == 0], self._count(inputs)
        self._shared(piece.get("parameters"), f"{where}.parameters", where, first, count)
        self.references += self._texts(piece.get("base_model"), f"{where}.base_model")
        return first, count

    def _inputs(self, node: Node, where: str) -> list[tuple[int, Span]]:
        """The models or sources in the list at this place: their numbers and layers."""
        found = []
        for i, path, entry in self._entries(node, where):
            names = self._texts(entry.get("model"), f"{path}.model")
            start, end = self._layer_range(entry.get("layer_range"), f"{path}.layer_range")
            found.append((i, path, entry, Span(models=names, start=start, end=end)))
            self.references += names
        inputs = [(i, span) for i, _, _, span in found]
        count = self._count(inputs)
        for _, path, entry, span in found:
            context = Occurrence(
                key="",
                where="",
                owner=span.models[0] if isinstance(entry.get("model"), str) else path,
                of_model=True,
                spans=(span,),
                methods=self.methods,
                inputs=count,
            )
            self._parameters(entry.get("parameters"), f"{path}.parameters", context)
        return inputs

    def _count(self, inputs: list[tuple[int, Span]]) -> int:
        """How many models are merged; a base that the method sets apart is none of them."""
        method = METHODS.get(self.methods[0]) if self.methods else None
        apart = method is not None and method.takes_base
        return len({i for i, span in inputs if not (apart and self._base in span.models)}) or 1

    def _shared(self, node: Node, where: str, owner: str | None, spans: Sequence[Span], inputs: int) -> None:
        """The parameters of a slice or of the whole merge."""
        spans = tuple(spans) or (Span(models=()),)
        context = Occurrence(key="", where="", owner=owner, spans=spans, methods=self.methods, inputs=inputs)
        self._parameters(node, where, context)

    def _layer_range(self, node: Node, where: str) -> tuple[int, int | None]:
        """The lowest first layer and the highest end that this range can have."""
        starts: list[int] = []
        ends: list[int] = []
        for path, found in self._variants(node, where):
            if isinstance(found, tuple) and len(found) == 2:
                starts += self._numbers(found[0], f"{path}[0]")
                ends += self._numbers(found[1], f"{path}[1]")
        return min(starts, default=0), max(ends, default=None)

    def _numbers(self, node: Node, where: str) -> Iterator[int]:
        for _, found in self._variants(node, where):
            if isinstance(found, Search):
                yield from (int(end) for end in found.ends())
            elif isinstance(found, int):
                yield found

    def _structure(self, node: Node, where: str) -> None:
        for path, found in self._variants(node, where):
            if isinstance(found, Mapping):
                for key, value in found.items():
                    self._structure(value, f"{path}.{key}")
            elif isinstance(found, tuple):
                for i, value in enumerate(found):
                    self._structure(value, f"{path}[{i}]")

    def _parameters(self, node: Node, where: str, context: Occurrence) -> None:
        for path, parameters in self._mappings(node, where):
            for name, value in parameters.items():
                self._value(value, f"{path}.{name}", replace(context, parameter=name))

    def _value(self, node: Node, where: str, context: Occurrence) -> None:
        hole = self._holes.get(node.name) if isinstance(node, Ref) else node
        if isinstance(hole, Search) or (isinstance(hole, Choose) and hole.plain):
            self.occurrences.append(replace(context, key=hole.key, where=where))
        elif isinstance(hole, Choose):
            for path, option in self._options(hole, where):
                self._value(option, path, context)
        elif isinstance(hole, tuple):
            for i, entry in enumerate(hole):
                self._listed(entry, f"{where}[{i}]", i, context)

    def _listed(self, node: Node, where: str, i: int, context: Occurrence) -> None:
        """An entry of a list: with a filter and a value, or a node of a gradient."""
        hole = self._holes.get(node.name) if isinstance(node, Ref) else node
        if isinstance(hole, Choose) and not hole.plain:
            for path, option in self._options(hole, where):
                self._listed(option, path, i, context)
        elif isinstance(hole, Mapping):
            parts = self._texts(hole.get("filter"), f"{where}.filter")
            part = parts[0] if parts and parts[0] != "*" else "rest"
            self._value(hole.get("value"), f"{where}.value", replace(context, entry=i, part=part))
        else:
            self._value(hole, where, replace(context, node=True))


def _at(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
