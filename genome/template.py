"""A recipe with holes: reading it and checking what can be checked without the models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from genome.holes import Choose, Hole, HoleReader, Node, Ref, Search
from genome.occurrences import Occurrence, Walk
from merge_engine.errors import Problem
from merge_engine.spec import DTYPES
from merge_engine.spec.reading import Fields, did_you_mean, shown

# What all candidates share: they are scored in one resident model with one tokenizer.
_FIXED = ("dtype", "out_dtype", "tokenizer_source", "tokenizer", "chat_template", "name")


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A recipe with holes.

    ``data``: as the search file has it. ``tree``: the same with its holes read; ``holes``: each by its key;
    ``occurrences``: where they stand. ``structural``: keys of the holes that decide more than the value of
    a parameter. ``methods``: those that it chooses from, or its only one. ``references``: every model that
    some candidate may need, in order of appearance.
    """

    data: Mapping[str, object]
    tree: Mapping[str, Node] = field(compare=False, repr=False)
    holes: Mapping[str, Hole] = field(compare=False, repr=False)
    occurrences: tuple[Occurrence, ...] = field(compare=False, repr=False)
    structural: frozenset[str] = field(compare=False, repr=False)
    methods: tuple[str, ...] = field(compare=False, repr=False)
    references: tuple[str, ...] = field(compare=False, repr=False)

    def model_references(self) -> tuple[str, ...]:
        """Every model that the search needs, each once."""
        return self.references

    @property
    def base_model(self) -> str | None:
        """The base, where it is the same for all candidates."""
        return _text(self.data.get("base_model"))

    @property
    def pattern(self) -> str:
        """The model whose config and tokenizer the merged model has."""
        return self.base_model or self.references[0]

    @property
    def dtype(self) -> str | None:
        """Of the merged model; None takes the models' own."""
        return _text(self.data.get("dtype"))

    @property
    def layers_vary(self) -> bool:
        """Whether candidates may differ in which layers they have."""
        decisive = [place.where for place in self.occurrences if place.parameter is None]
        return any("slices" in where or where == "modules" for where in decisive)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def read_template(top: Fields, problems: list[Problem]) -> Template:
    """The ``template`` of a search file; what is wrong goes to ``problems`` and leaves a stand-in."""
    data = top.raw("template")
    before = len(problems)
    if not isinstance(data, Mapping) or data.keys() & {"search", "choose", "ref"}:
        top.refuse("template", f"expected a merge config with holes, found {shown(data)}")
        data = {}
    template = make_template({str(key): value for key, value in data.items()}, problems)
    if len(problems) == before:
        problems += _template_problems(template)
    return template


def make_template(data: Mapping[str, object], problems: list[Problem]) -> Template:
    """The template in plain ``data``; ``problems`` takes what is wrong with its holes."""
    reader = HoleReader(problems)
    tree = {key: reader.read(value, f"template.{key}") for key, value in data.items()}
    problems += _reference_problems(reader.holes, tree)
    walk = Walk(tree, reader.holes)
    return Template(
        data=data,
        tree=tree,
        holes=reader.holes,
        occurrences=tuple(walk.occurrences),
        structural=frozenset(place.key for place in walk.occurrences if place.parameter is None),
        methods=walk.methods,
        references=tuple(dict.fromkeys(walk.references)),
    )


def _reference_problems(holes: Mapping[str, Hole], tree: Node) -> Iterator[Problem]:
    """References to holes that are not there, and parts that contain themselves."""
    inside = {key: set(_refs(hole)) for key, hole in holes.items()}
    for name in dict.fromkeys(_refs(tree)):
        if name not in holes:
            named = [key for key in holes if not key.startswith("template")]
            yield Problem("template", f"no hole is named {name!r}", did_you_mean(name, named))
    for key in holes:
        if key in _reached(key, inside):
            yield Problem("template", f"{key!r} contains itself", "refer to another hole")


def _refs(node: object) -> Iterator[str]:
    """Names that this part refers to."""
    if isinstance(node, Ref):
        yield node.name
    elif isinstance(node, Choose):
        for option in node.options:
            yield from _refs(option)
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from _refs(value)
    elif isinstance(node, tuple):
        for value in node:
            yield from _refs(value)


def _reached(key: str, inside: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    pending = list(inside[key])
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += inside.get(name, ())
    return found


def _template_problems(template: Template) -> Iterator[Problem]:
    if not template.holes:
        yield Problem("template", "has no hole: there is nothing to search", "see docs/search-files.md")
    if not template.references:
        yield Problem("template", "names no model", "list them under models or slices")
    yield from _fixed_problems(template.tree)
    yield from _dtype_problems(template)
    met = {place.key for place in template.occurrences}
    for place in template.occurrences:
        yield from _place_problems(place, template.holes[place.key], template)
    for key in template.holes.keys() - met:
        yield Problem(key, "this hole feeds nothing", "a recipe has no such place")


def _fixed_problems(tree: Mapping[str, Node]) -> Iterator[Problem]:
    for key in _FIXED:
        if isinstance(tree.get(key), Search | Choose | Ref):
            yield Problem(f"template.{key}", "is the same for all candidates: no hole can stand here")


def _dtype_problems(template: Template) -> Iterator[Problem]:
    if template.dtype is not None and template.dtype not in DTYPES:
        remedy = did_you_mean(template.dtype, DTYPES)
        yield Problem("template.dtype", f"unknown value {template.dtype!r}", remedy)


def _place_problems(place: Occurrence, hole: Hole, template: Template) -> Iterator[Problem]:
    where = f"template.{place.where}"
    if hole.every and (place.parameter is None or hole.key in template.structural):
        yield Problem(where, "every: only values of parameters vary with the layers", "drop it")
    elif hole.every and place.node:
        yield Problem(where, "every: a node of a gradient has its place already", "drop it")
    if place.parameter is None and isinstance(hole, Search) and not _whole(hole):
        remedy = "give whole bounds and a whole step, as in {search: [8, 16], step: 4}"
        yield Problem(where, "only whole numbers can stand here", remedy)


def _whole(hole: Search) -> bool:
    return all(isinstance(number, int) for number in (hole.low, hole.high, hole.step))
