"""Holes: what stands in a template in place of a value, and reading them.

``{search: [low, high]}`` a number, ``{choose: [...]}`` one of several parts, ``{ref: name}`` the value of a
named hole. Everything else in a template is plain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from merge_engine.errors import Problem
from merge_engine.spec.reading import Fields, Reader, Refused, flag, integer, one_of, real, shown, text
from merge_engine.spec.values import Scalar

_MOST_STEPS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A number in [``low``, ``high``].

    ``key``: its name, or its path in the template. ``step``: only ``low``, ``low + step``, ... are taken;
    None: every number. ``init`` None: by the parameter it is for. ``every``: layers that share one variable;
    0: all of them. ``smooth``: these are nodes of a gradient over the layers. ``log``: searched on a
    logarithmic scale.
    """

    key: str
    low: float
    high: float
    step: float | None = None
    init: float | None = None
    every: int = 0
    smooth: bool = False
    log: bool = False

    @property
    def steps(self) -> int:
        """How many steps lead from ``low`` to the last value."""
        assert self.step is not None
        return math.floor((self.high - self.low) / self.step + 1e-9)

    def ends(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        return self.low, self.high if self.step is None else self.low + self.steps * self.step


@dataclass(frozen=True, slots=True, kw_only=True)
class Choose:
    """One of ``options``; ``init`` is the number of the one to start with."""

    key: str
    options: tuple[Node, ...]
    init: int = 0
    every: int = 0

    @property
    def plain(self) -> bool:
        """Whether every option is a number, a flag, or a text."""
        return all(isinstance(option, str | bool | int | float) for option in self.options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ref:
    """What the hole named ``name`` is."""

    name: str


Hole: TypeAlias = "Search | Choose"
Node: TypeAlias = "Search | Choose | Ref | Mapping[str, Node] | tuple[Node, ...] | str | Scalar | None"


class HoleReader:
    """Turns plain data into a tree with holes; what is wrong goes to ``problems``.

    ``holes``: every hole by its key. Holes of the same name are one hole and have to say the same.
    """

    def __init__(self, problems: list[Problem]) -> None:
        self._problems = problems
        self.holes: dict[str, Hole] = {}

    def read(self, data: object, where: str) -> Node:
        """The tree of ``data``, which stands at the path ``where``."""
        if isinstance(data, Mapping):
            for kind, read in _KINDS.items():
                if kind in data:
                    return read(self, Fields(data, where, self._problems))
            return {str(key): self.read(value, f"{where}.{key}") for key, value in data.items()}
        if isinstance(data, list | tuple):
            return tuple(self.read(entry, f"{where}[{i}]") for i, entry in enumerate(data))
        if data is None or isinstance(data, str | bool | int | float):
            return data
        self._problems.append(Problem(where, f"expected a plain value, found {shown(data)}"))
        return None

    def _search(self, fields: Fields) -> Node:
        low, high = fields.get("search", _interval, (0.0, 1.0))
        step = fields.get("step", real(low=0, low_open=True), None)
        hole = Search(
            key=self._key(fields),
            low=low,
            high=high,
            step=step,
            init=fields.get("init", real(), None),
            every=fields.get("every", integer(low=1), 0),
            smooth=fields.get("smooth", flag, False),
            log=fields.get("scale", one_of("linear", "log"), "linear") == "log",
        )
        fields.finish()
        return self._known(hole, fields, _search_problem(hole))

    def _choose(self, fields: Fields) -> Node:
        options = tuple(self.read(data, where) for where, data in fields.entries("choose"))
        init = fields.raw("init")
        hole = Choose(
            key=self._key(fields),
            options=options,
            init=_place(init, fields.raw("choose")),
            every=fields.get("every", integer(low=1), 0),
        )
        fields.finish()
        problem: tuple[str, str, str] | None = None
        if len(options) < 2:
            problem = ("choose", "fewer than two alternatives leave nothing to choose", "give at least two")
        elif hole.init < 0:
            problem = ("init", f"{shown(init)} is none of the alternatives", "repeat one of them")
        elif hole.every and not hole.plain:
            problem = ("every", "only plain values vary with the layers", "drop it")
        return self._known(hole, fields, problem)

    def _ref(self, fields: Fields) -> Node:
        name = fields.need("ref", text, "")
        fields.finish()
        return Ref(name=name)

    def _key(self, fields: Fields) -> str:
        return fields.get("name", text, fields.where)

    def _known(self, hole: Hole, fields: Fields, problem: tuple[str, str, str] | None) -> Hole:
        if problem is not None:
            fields.refuse(*problem)
        if self.holes.setdefault(hole.key, hole) != hole:
            remedy = f"say the same at each, or write {{ref: {hole.key}}} at all but one"
            fields.refuse("name", f"two different holes are named {hole.key!r}", remedy)
        return hole


_KINDS = {"search": HoleReader._search, "choose": HoleReader._choose, "ref": HoleReader._ref}


def _interval(value: object) -> tuple[float, float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise Refused(f"expected [low, high], found {shown(value)}")
    read: Reader[float] = real()
    low, high = read(value[0]), read(value[1])
    if low >= high:
        raise Refused(f"low must be below high, found {shown(value)}")
    return low, high


def _search_problem(hole: Search) -> tuple[str, str, str] | None:
    """The key, what is wrong there, and what to do."""
    if hole.log and hole.low <= 0:
        return "scale", "a logarithmic scale needs bounds above 0", "raise the lower bound"
    if hole.step is not None and hole.log:
        return "step", "steps are even: they do not go with a logarithmic scale", "drop one of the two"
    if hole.step is not None and not 1 <= (hole.high - hole.low) / hole.step <= _MOST_STEPS:
        return "step", f"makes no or too many steps between {hole.low:g} and {hole.high:g}", "change it"
    if hole.init is not None and not hole.low <= hole.init <= hole.high:
        return "init", f"{hole.init:g} lies outside [{hole.low:g}, {hole.high:g}]", "start within the bounds"
    if hole.smooth and not hole.every:
        return "smooth", "has no effect: all layers share one variable", "set every, or drop smooth"
    if hole.smooth and hole.step is not None:
        return "smooth", "what lies between two steps is none", "drop smooth or step"
    return None


def _place(init: object, options: object) -> int:
    """The number of the option that ``init`` repeats; 0 where it says nothing, -1 where there is none."""
    if init is None:
        return 0
    same = [
        i
        for i, option in enumerate(options if isinstance(options, list) else [])
        if option == init and isinstance(option, bool) == isinstance(init, bool)
    ]
    return same[0] if same else -1
