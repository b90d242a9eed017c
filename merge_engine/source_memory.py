"""What of the source models is in memory while they are merged: all of it, or what is needed now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from merge_engine.counting import Counter
from merge_engine.plan_types import TensorJob, TensorRef
from merge_engine.preparation import Preparation
from merge_engine.resident_limit import resident_limit
from merge_engine.source_tensors import SourceTensors
from merge_engine.tensor_files import FileWindows, read_ahead


class Kept:
    """For many merges of the same models: files stay mapped, and what was learnt about them is kept."""

    def __init__(self, seed: int, counter: Counter) -> None:
        self.preparation = Preparation(seed, SourceTensors(), counter)

    @contextmanager
    def reading(self) -> Iterator[Callable[[Iterable[TensorJob]], None]]:
        """The operating system reads ahead by itself, once."""
        yield lambda jobs: None

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
    def reading(self) -> Iterator[Callable[[Iterable[TensorJob]], None]]:
        """What is yielded is told which jobs come next; their inputs are then read into the page cache."""
        with resident_limit(self._windows.drop_pages), ThreadPoolExecutor(1) as reader:

            def read(jobs: Iterable[TensorJob]) -> None:
                reader.submit(self._read, list(jobs))

            yield read

    def forget(self) -> None:
        """Let go of the tensors and all that was learnt about them."""
        self._sources.forget_tensors()
        self.preparation = Preparation(self._seed, self._sources, self._counter, once=True)

    def _read(self, jobs: Iterable[TensorJob]) -> None:
        for job in jobs:
            for ref in job.inputs:
                self._read_tensor(ref)

    def _read_tensor(self, ref: TensorRef) -> None:
        for plain in (ref, *ref.donors):
            read_ahead(self._sources.header(plain.model).tensors[plain.name])
