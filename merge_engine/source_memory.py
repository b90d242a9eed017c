"""What of the source models is in memory while they are merged: all of it, or what is needed now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from merge_engine.counting import Counter
from merge_engine.plan_types import TensorJob
from merge_engine.preparation import Preparation
from merge_engine.read_ahead import ReadAhead
from merge_engine.resident_limit import resident_limit
from merge_engine.source_tensors import SourceTensors
from merge_engine.tensor_files import FileWindows

Groups: TypeAlias = Sequence[Sequence[TensorJob]]


class Kept:
    """For many merges of the same models: files stay mapped, and what was learnt about them is kept."""

    def __init__(self, seed: int, counter: Counter) -> None:
        self.preparation = Preparation(seed, SourceTensors(), counter)

    @contextmanager
    def reading(self, groups: Groups) -> Iterator[Iterable[Sequence[TensorJob]]]:
        """``groups``: the operating system reads ahead by itself, once."""
        yield groups

    def forget(self) -> None:
        """Nothing is forgotten."""


class Passing:
    """For one merge of any size: nothing outlives its tensors, and the next ones are read meanwhile."""

    def __init__(self, seed: int, counter: Counter) -> None:
        self._seed, self._counter = seed, counter
        self._windows = FileWindows()
        self._sources = SourceTensors(self._windows)
        self.preparation = Preparation(seed, self._sources, counter, once=True)

    @contextmanager
    def reading(self, groups: Groups) -> Iterator[Iterable[Sequence[TensorJob]]]:
        """``groups``, to be merged one after another while the inputs of the next ones are read."""
        with resident_limit(self._windows.drop_pages), ReadAhead(groups, self._sources.header) as ahead:

            def passing() -> Iterator[Sequence[TensorJob]]:
                for group in groups:
                    yield group
                    ahead.passed()

            yield passing()

    def forget(self) -> None:
        """Let go of the tensors and all that was learnt about them."""
        self._sources.forget_tensors()
        self.preparation = Preparation(self._seed, self._sources, self._counter, once=True)
