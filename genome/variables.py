"""The variables of a template over models of known depth: which there are, and what each does.

A hole is one variable, or with ``every: N`` one for each run of N layers, counted in the layers of the
source model from the first that the hole can reach. Variables are ordered by run of layers, then by place in
a list of filters, then as they stand in the template.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from genome.box import Variable
from genome.facts import ModelFacts
from genome.holes import Choose, Hole, Node, Search
from genome.occurrences import Occurrence, Span
from genome.template import Template
from merge_engine.spec import METHODS, Parameter
from merge_engine.spec.values import Scalar

# Digits of a value that is searched on a logarithmic scale: few enough that its logarithm leads back to it.
_LOG_DIGITS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """The variables of one hole: ``indices`` in the vector, one for each run of ``every`` layers of
    [``start``, ``end``); a lone one is for all layers.
    """

    key: str
    hole: Hole
    indices: tuple[int, ...]
    start: int
    end: int

    @property
    def stepped(self) -> bool:
        return len(self.indices) > 1 and not self.smooth

    @property
    def smooth(self) -> bool:
        return len(self.indices) > 1 and isinstance(self.hole, Search) and self.hole.smooth

    def index_at(self, layer: int) -> int:
        """The variable for this layer of a source model."""
        run = (layer - self.start) // self.hole.every if self.hole.every else 0
        return self.indices[min(max(run, 0), len(self.indices) - 1)]

    def boundaries(self) -> Iterable[int]:
        """The layers at which another variable takes over."""
        return range(self.start + self.hole.every, self.end, self.hole.every) if self.stepped else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """One variable, for people and for baselines.

    ``neutral``: the value of the uniform merge, None for a structural hole; it may lie outside the bounds.
    ``places``: where its value goes.
    """

    variable: Variable
    hole: Hole
    neutral: Scalar | None
    places: tuple[Occurrence, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variables:
    """All variables of a template: in the order of the vector, and by hole."""

    described: tuple[Described, ...]
    columns: Mapping[str, Column]


def find_variables(template: Template, facts: Mapping[str, ModelFacts]) -> Variables:
    """The variables of ``template``."""
    places: dict[str, list[Occurrence]] = {}
    for place in template.occurrences:
        places.setdefault(place.key, []).append(place)
    labels = _labels(template.holes, places)
    entries: list[tuple[int, int, str]] = []  # run of layers, place among the filters, hole
    reaches = {key: _reach(found, facts) for key, found in places.items()}
    for key, found in places.items():
        runs = _runs(template.holes[key], *reaches[key])
        entries += [(run, found[0].entry, key) for run in range(len(runs))]
    entries.sort(key=lambda entry: entry[:2])
    indices: dict[str, list[int]] = {key: [] for key in places}
    described = []
    for index, (run, _, key) in enumerate(entries):
        indices[key].append(index)
        hole = template.holes[key]
        name = labels[key](_place_name(hole, run, _runs(hole, *reaches[key])))
        described.append(_described(name, hole, places[key]))
    columns = {
        key: Column(
            key=key,
            hole=template.holes[key],
            indices=tuple(found),
            start=reaches[key][0],
            end=reaches[key][1],
        )
        for key, found in indices.items()
    }
    return Variables(described=tuple(described), columns=columns)


def _reach(places: Sequence[Occurrence], facts: Mapping[str, ModelFacts]) -> tuple[int, int]:
    """The layers [start, end) that a hole can reach, over all places where it stands."""
    spans = [span for place in places for span in place.spans]
    start = min((span.start for span in spans), default=0)
    return start, max([start + 1, *(_end(span, facts) for span in spans)])


def _end(span: Span, facts: Mapping[str, ModelFacts]) -> int:
    depth = max(facts[name].num_layers for name in span.models or facts)
    return depth if span.end is None else min(span.end, depth)


def _runs(hole: Hole, start: int, end: int) -> list[tuple[int, int]]:
    """Runs of layers with a variable each; the last is shorter where they do not divide."""
    step = hole.every or end - start
    return [(first, min(first + step, end)) for first in range(start, end, step)]


def _place_name(hole: Hole, run: int, runs: Sequence[tuple[int, int]]) -> str:
    if len(runs) == 1:
        return ""
    if isinstance(hole, Search) and hole.smooth:
        return f", node {run}"
    start, end = runs[run]
    return f", layers {start}-{end - 1}" if end - start > 1 else f", layer {start}"


def _labels(
    holes: Mapping[str, Hole], places: Mapping[str, Sequence[Occurrence]]
) -> Mapping[str, Callable[[str], str]]:
    """Per hole what makes a unique name from the run of layers."""
    short = {key: _label(key, found[0]) for key, found in places.items()}
    met = Counter(short.values())
    return {
        key: _namer(*(label if met[label] == 1 else (key.removeprefix("template."), "")))
        for key, label in short.items()
    }


def _label(key: str, place: Occurrence) -> tuple[str, str]:
    """What stands before and after the run of layers."""
    if not key.startswith("template"):
        return key, ""
    if place.parameter is None or place.node:
        return place.where, ""
    owner = "" if place.owner is None else f" of {place.owner}"
    return f"{place.parameter}{owner}", f", {place.part}" if place.part else ""


def _namer(before: str, after: str) -> Callable[[str], str]:
    return lambda run: f"{before}{run}{after}"


def _described(name: str, hole: Hole, places: Sequence[Occurrence]) -> Described:
    neutral = _neutral(hole, places[0])
    if isinstance(hole, Choose):
        variable = Variable(
            name=name, kind="categorical", low=0, high=len(hole.options) - 1, start=float(hole.init)
        )
    else:
        wished = hole.init if hole.init is not None else neutral
        low, high = hole.ends()
        middle = math.sqrt(low * high) if hole.log else (low + high) / 2
        value = middle if wished is None else min(max(wished, low), high)
        variable = Variable(
            name=name,
            kind="real" if hole.step is None else "integer",
            low=coordinate(hole, low),
            high=coordinate(hole, high),
            start=coordinate(hole, value),
        )
    return Described(variable=variable, hole=hole, neutral=neutral, places=tuple(places))


def _neutral(hole: Hole, place: Occurrence) -> Scalar | None:
    """The value of the uniform merge: weights 1/n, else the method's own default, else the middle."""
    if place.parameter is None or not isinstance(hole, Search):
        return None
    if place.parameter == "weight":
        return 1.0 / place.inputs
    parameter = known_parameter(place)
    return None if parameter is None else parameter.default


def known_parameter(place: Occurrence) -> Parameter | None:
    """The row of the method table for this place, of the first method that has it."""
    methods = (METHODS[name] for name in place.methods if name in METHODS)
    found = (method.parameter(place.parameter or "") for method in methods)
    return next((parameter for parameter in found if parameter is not None), None)


def coordinate(hole: Search, value: float) -> float:
    """Where ``value`` lies in the vector: its logarithm, its number of steps above ``low``, or itself."""
    if hole.log:
        return math.log(value)
    if hole.step is not None:
        return float(math.floor((value - hole.low) / hole.step + 0.5))
    return float(value)


def value_at(hole: Hole, place: float) -> Scalar | Node:
    """The value at a settled coordinate: the way back from `coordinate`; an option of a choice."""
    if isinstance(hole, Choose):
        return hole.options[int(place)]
    if hole.log:
        low, high = hole.ends()
        return min(max(float(f"{math.exp(place):.{_LOG_DIGITS}g}"), low), high)
    if hole.step is not None:
        return min(hole.low + int(place) * hole.step, hole.high)
    return place
