"""Searches one after another: the stages of a search file, each an ordinary search file of its own.

A stage has the keys of a search file; what stands beside ``stages`` at the top is shared by all of them. As a
model a stage may name ``winner:<stage>``: the result of an earlier one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genome.errors import SearchFileError
from merge_engine.errors import Problem
from merge_engine.spec.reading import did_you_mean, shown

WINNER = "winner:"

_SPACES = ("genome", "template", "layout")  # a stage's own one replaces the shared one, whichever it is
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One search of several.

    ``data``: its search file as plain data, with the shared keys in it. ``own``: the keys that it gives
    itself. ``needs``: the stages whose winners it names, each once. ``place``: its path of keys in the file.
    """

    name: str
    data: dict[str, Any]
    own: frozenset[str]
    needs: tuple[str, ...]
    place: str

    def where(self, path: str) -> str:
        """A path of keys in the stage's search file -> in the file that it came from."""
        key = re.split(r"[.\[]", path, maxsplit=1)[0]
        return f"{self.place}.{path}" if key in self.own else path


def read_stages(data: object) -> tuple[Stage, ...]:
    """The stages of a search file's plain data; none where it has no ``stages``.

    Raises `SearchFileError` with every problem of the list itself; the stages' own content is not looked at.
    """
    top = data if isinstance(data, dict) else {}
    problems: list[Problem] = []
    stages: list[Stage] = []
    if top.get("stages") is None:
        problems += _winners_without_stages(top)
    elif not isinstance(top["stages"], list) or not top["stages"]:
        what = f"expected a list of searches, found {shown(top['stages'])}"
        problems.append(Problem("stages", what, "give each a name, and a genome, template or layout"))
    else:
        shared = {key: value for key, value in top.items() if key != "stages"}
        entries = [_read_stage(shared, entry, i, problems) for i, entry in enumerate(top["stages"])]
        stages = [stage for stage in entries if stage is not None]
        problems += _order_problems(stages)
    if problems:
        raise SearchFileError(problems)
    return tuple(stages)


def with_winners(data: Any, folder_of: Callable[[str], str]) -> Any:
    """``data`` with every ``winner:<stage>`` replaced by what ``folder_of`` says of the stage's name."""

    def replaced(reference: str) -> str:
        model, plus, adapter = reference.partition("+")
        if not model.startswith(WINNER):
            return reference
        return folder_of(model.removeprefix(WINNER)) + plus + adapter

    return map_texts(data, replaced)


def map_texts(data: Any, change: Callable[[str], str]) -> Any:
    """Plain data with every text value in it changed; keys stay."""
    if isinstance(data, str):
        return change(data)
    if isinstance(data, Mapping):
        return {key: map_texts(value, change) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [map_texts(value, change) for value in data]
    return data


def _read_stage(
    shared: Mapping[str, Any], entry: object, number: int, problems: list[Problem]
) -> Stage | None:
    place = f"stages[{number}]"
    if not isinstance(entry, dict):
        problems.append(Problem(place, f"expected the keys of a search, found {shown(entry)}"))
        return None
    own = {key: value for key, value in entry.items() if key != "name"}
    name = entry.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        what = "the stage has no name" if name is None else f"{shown(name)} cannot be a stage's name"
        problems.append(Problem(f"{place}.name", what, "use letters, digits, - and _"))
        return None
    if "stages" in own:
        problems.append(Problem(f"{place}.stages", "a stage cannot have stages of its own"))
    replaces = any(own.get(key) is not None for key in _SPACES)
    inherited = {key: value for key, value in shared.items() if not (replaces and key in _SPACES)}
    data = {**inherited, **own}
    return Stage(name=name, data=data, own=frozenset(own), needs=_needs(data), place=place)


def _needs(data: object) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for _, name in _winners(data, "")))


def _winners(data: object, path: str) -> Iterator[tuple[str, str]]:
    """Every ``winner:<stage>`` in plain data: its path of keys, and the stage's name."""
    if isinstance(data, str) and data.startswith(WINNER):
        yield path, data.partition("+")[0].removeprefix(WINNER)
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from _winners(value, f"{path}.{key}" if path else str(key))
    elif isinstance(data, list | tuple):
        for number, value in enumerate(data):
            yield from _winners(value, f"{path}[{number}]")


def _winners_without_stages(top: Mapping[str, Any]) -> Iterator[Problem]:
    for path, name in _winners(top, ""):
        yield Problem(path, f"{WINNER}{name} names a stage, and this file has none", "name a model")


def _order_problems(stages: Sequence[Stage]) -> Iterator[Problem]:
    """Names given twice, and winners that are not there yet when a stage begins."""
    all_names = [stage.name for stage in stages]
    earlier: list[str] = []
    seen: set[str] = set()
    for stage in stages:
        if stage.name.lower() in seen:
            yield Problem(f"{stage.place}.name", f"{stage.name!r} is already taken", "names must differ")
        for path, name in _winners(stage.data, ""):
            if name in earlier:
                continue
            if name in all_names:
                what = f"{WINNER}{name}: {name!r} does not come before {stage.name!r}"
                yield Problem(stage.where(path), what, "name an earlier stage, or change their order")
            else:
                what = f"{WINNER}{name}: there is no stage {name!r}"
                remedy = did_you_mean(name, earlier) if earlier else "the first stage can name no winner"
                yield Problem(stage.where(path), what, remedy)
        earlier.append(stage.name)
        seen.add(stage.name.lower())
