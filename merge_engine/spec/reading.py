"""Strict reading of plain data (what YAML gives) into typed values, with every problem collected.

A *reader* is a function that turns one plain value into a typed one or raises `Refused`. `Fields` applies
readers to the keys of a mapping and turns refusals into `Problem`s with the full path of keys, so one pass
over a file reports everything that is wrong with it.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from merge_engine.errors import Problem

_LARGEST = sys.float_info.max
_MISSPELT = 0.75  # difflib's ratio: "weights" and "densty" are, "notes" for "models" is not

T = TypeVar("T")
Reader = Callable[[object], T]


class Refused(Exception):
    """A value that a reader does not accept: ``what`` is wrong with it, ``remedy`` says what to do."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A remedy naming the closest of ``known``, or all of them where none is close."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else "known: " + ", ".join(names)


def is_misspelt(word: str, known: Iterable[str]) -> bool:
    """Whether a word is so near one of ``known`` that it must be meant for it."""
    return bool(difflib.get_close_matches(word, list(known), n=1, cutoff=_MISSPELT))


def shown(value: object) -> str:
    """The value as an error message shows it: its repr, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def text(value: object) -> str:
    """A non-empty string."""
    if isinstance(value, str) and value.strip():
        return value
    quotable = isinstance(value, bool | int | float)
    remedy = f'write it in quotes: "{value}"' if quotable else ""
    raise Refused(f"expected a text, found {shown(value)}", remedy)


def flag(value: object) -> bool:
    """``true`` or ``false``."""
    if isinstance(value, bool):
        return value
    raise Refused(f"expected true or false, found {shown(value)}")


def real(
    *, low: float = -math.inf, high: float = math.inf, low_open: bool = False, high_open: bool = False
) -> Reader[float]:
    """A finite number between ``low`` and ``high``; an open end excludes the end itself."""
    allowed = _interval(low, high, low_open, high_open)

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
            raise Refused(f"expected a number{allowed}, found {shown(value)}")
        too_low = value <= low if low_open else value < low
        too_high = value >= high if high_open else value > high
        if too_low or too_high:
            raise Refused(f"{value!r} is out of range: allowed is a number{allowed}")
        return value

    return read


def _interval(low: float, high: float, low_open: bool, high_open: bool) -> str:
    if math.isinf(low) and math.isinf(high):
        return ""
    if math.isinf(high):
        return f" {'above' if low_open else 'of at least'} {low:g}"
    if math.isinf(low):
        return f" {'below' if high_open else 'of at most'} {high:g}"
    return f" in {'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"


def integer(*, low: int, high: int | None = None) -> Reader[int]:
    """A whole number of at least ``low`` and at most ``high``; 5.0 is one."""
    allowed = f"of at least {low}" if high is None else f"from {low} to {high}"

    def read(value: object) -> int:
        value = int(value) if isinstance(value, float) and value.is_integer() else value
        if isinstance(value, bool) or not isinstance(value, int):
            raise Refused(f"expected a whole number {allowed}, found {shown(value)}")
        if value < low or (high is not None and value > high):
            raise Refused(f"{value} is out of range: allowed is a whole number {allowed}")
        return value

    return read


def one_of(*names: str) -> Reader[str]:
    """One of the given words."""

    def read(value: object) -> str:
        if isinstance(value, str) and value in names:
            return value
        remedy = did_you_mean(value, names) if isinstance(value, str) else "known: " + ", ".join(names)
        raise Refused(f"unknown value {shown(value)}", remedy)

    return read


class Lenient(list[Problem]):
    """A list of problems for texts that others wrote for mergekit, which reads past what it does not know.

    Keys and parameters without any effect go to ``remarks`` instead of being problems, unless they are
    misspelt ones that have an effect.
    """

    def __init__(self) -> None:
        super().__init__()
        self.remarks: list[Problem] = []


class Fields:
    """The keys of one mapping, read one by one; problems go to the shared list under ``where``.

    An entry that is ``null`` counts as absent, as in every config of the ecosystem.
    """

    def __init__(self, data: object, where: str, problems: list[Problem]) -> None:
        self.where = where
        self._problems = problems
        self._asked: list[str] = []
        self._data: Mapping[object, object] = data if isinstance(data, Mapping) else {}
        if not isinstance(data, Mapping):
            self.refuse("", f"expected a mapping of keys to values, found {shown(data)}")

    def path(self, key: str) -> str:
        """The full path of ``key``; of the mapping itself for the empty key."""
        return ".".join(part for part in (self.where, key) if part) or "top level"

    def refuse(self, key: str, what: str, remedy: str = "") -> None:
        """Note a problem at ``key`` (the empty key: at the mapping itself)."""
        self._problems.append(Problem(self.path(key), what, remedy))

    def unknown(self, key: str, what: str, known: Iterable[str], *, elsewhere: bool = False) -> None:
        """Note a key without effect; ``elsewhere``: it is known where it has one."""
        known = list(known)
        if isinstance(self._problems, Lenient) and (elsewhere or not is_misspelt(key, known)):
            self._problems.remarks.append(Problem(self.path(key), what, "it has no effect"))
        else:
            self.refuse(key, what, did_you_mean(key, known))

    def raw(self, key: str) -> object:
        """The plain value at ``key``, or None."""
        self._asked.append(key)
        return self._data.get(key)

    def get(self, key: str, read: Reader[T], default: T) -> T:
        """The value at ``key`` through ``read``; ``default`` where it is absent or refused."""
        value = self.raw(key)
        if value is None:
            return default
        try:
            return read(value)
        except Refused as refused:
            self.refuse(key, refused.what, refused.remedy)
            return default

    def need(self, key: str, read: Reader[T], default: T) -> T:
        """As `get`, but an absent value is a problem (and ``default`` only a stand-in to go on with)."""
        if self._data.get(key) is None:
            self.refuse(key, "missing", "this key is required")
        return self.get(key, read, default)

    def fields(self, key: str) -> Fields:
        """The mapping at ``key``; empty where it is absent."""
        value = self.raw(key)
        return Fields({} if value is None else value, self.path(key), self._problems)

    def entries(self, key: str) -> list[tuple[str, object]]:
        """The list at ``key`` as (path, plain value) pairs; empty where it is absent."""
        value = self.raw(key)
        if value is None:
            return []
        if not isinstance(value, list | tuple):
            self.refuse(key, f"expected a list, found {shown(value)}", "start each entry with '- '")
            return []
        return [(f"{self.path(key)}[{i}]", entry) for i, entry in enumerate(value)]

    def has(self, key: str) -> bool:
        """Whether ``key`` is given and not null; it counts as asked for."""
        return self.raw(key) is not None

    def items(self) -> list[tuple[str, object]]:
        """Every key that is a text with its plain value; each counts as read."""
        found = [(key, value) for key, value in self._data.items() if isinstance(key, str)]
        self._asked.extend(key for key, _ in found)
        return found

    def finish(self) -> None:
        """Note every key that was never asked for."""
        for key in self._data:
            if key not in self._asked:
                self.unknown(str(key), "unknown key", self._asked)
