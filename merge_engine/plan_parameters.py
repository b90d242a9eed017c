"""The parameters of single tensors, from the levels of a recipe, its filters and its gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from merge_engine.errors import Problem
from merge_engine.spec.methods import Method
from merge_engine.spec.values import Scalar, Value, first_match, is_filtered

Levels = Sequence[Mapping[str, Value]]


class ParameterValues:
    """What ``levels`` (the most special first) say about tensors; what they lack goes to ``problems``."""

    def __init__(self, method: Method, problems: list[Problem]) -> None:
        self._method = method
        self._problems = problems
        self._filtered: dict[int, tuple[Mapping[str, Value], bool]] = {}  # keeps the level, and so its id
        self._evaluated: dict[tuple[object, ...], dict[str, Scalar]] = {}

    def of(self, scope: str, levels: Levels, name: str, place: float, where: str) -> dict[str, Scalar]:
        """The parameters of one tensor. Without filters they are those of the whole layer, found once."""
        by_name = any(map(self._by_name, levels))
        key = (*map(id, levels), scope, place, name if by_name else None)
        if key not in self._evaluated:
            self._evaluated[key] = self._evaluate(scope, levels, name, place, where)
        return self._evaluated[key]

    def _by_name(self, level: Mapping[str, Value]) -> bool:
        """Whether a parameter of this level depends on the tensor's name."""
        if id(level) not in self._filtered:
            self._filtered[id(level)] = level, any(map(is_filtered, level.values()))
        return self._filtered[id(level)][1]

    def _evaluate(self, scope: str, levels: Levels, name: str, place: float, where: str) -> dict[str, Scalar]:
        found: dict[str, Scalar] = {}
        for parameter in self._method.parameters:
            if parameter.scope != scope:
                continue
            value = first_match((level.get(parameter.name) for level in levels), name, place)
            value = parameter.default if value is None else value
            if value is None:
                what = f"no filter matches {name!r} and {self._method.name} has no default"
                where_it_is = f"{where}.parameters.{parameter.name}"
                self._problems.append(Problem(where_it_is, what, "add an entry without a filter"))
                value = 0.0
            found[parameter.name] = value
        return found
