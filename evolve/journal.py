"""The journal: every candidate of a search, one JSON line each; the only state of a run.

A line counts once its newline is on disk. What a crash leaves behind the last newline is dropped when the
journal is opened again; anything else that does not parse is damage and refused. Everything that may differ
between two runs of one search stands under ``measured`` in its line.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from evolve.errors import JournalError
from evolve.journal_lines import decode, encode, to_line
from evolve.records import (
    SCHEMA_VERSION,
    CandidateRecord,
    HoldoutRecord,
    Record,
    RunRecord,
    WorkerRecord,
)
from evolve.storage import sync_folder, write_atomically

# In version 1 every candidate was scored, those with equal recipes too.
READ_VERSIONS = (1, 2, SCHEMA_VERSION)


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalView:
    """What a journal holds; candidates in the order in which they finished, workers' events as they came."""

    run: RunRecord
    candidates: tuple[CandidateRecord, ...]
    holdout: tuple[HoldoutRecord, ...]
    workers: tuple[WorkerRecord, ...] = ()

    @property
    def evaluations(self) -> int:
        """How many candidates were evaluated, which is what a budget counts."""
        return sum(record.evaluated for record in self.candidates)


class Journal:
    """An open journal, to be appended to by one driver."""

    def __init__(self, path: Path, view: JournalView) -> None:
        self.path = path
        self.view = view  # what it held when it was opened
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._size_bytes = os.fstat(self._descriptor).st_size

    @classmethod
    def create(cls, path: Path, run: RunRecord) -> Journal:
        """Start the journal of a new search.

        Raises:
            StorageError: the file cannot be written.
        """
        write_atomically(path, to_line(run).decode())
        return cls(path, JournalView(run=run, candidates=(), holdout=()))

    @classmethod
    def open(cls, path: Path) -> Journal:
        """Go on with a journal; a torn last line is cut off.

        Raises:
            JournalError: as in `read_journal`.
        """
        view, whole_bytes = _read(path)
        if whole_bytes < path.stat().st_size:
            os.truncate(path, whole_bytes)
        return cls(path, view)

    def append(self, *records: CandidateRecord | HoldoutRecord | WorkerRecord) -> None:
        """Put records on disk; on return they survive a power cut, unless they are about workers: nothing
        hangs on that, and a thousand of them start at once.

        Raises:
            JournalError: the disk refuses it; the journal is as it was before.
        """
        data = b"".join(map(to_line, records))
        try:
            written = os.write(self._descriptor, data)
            if written < len(data):  # the disk filled up half-way: the next write says why
                os.write(self._descriptor, data[written:])
            if not all(isinstance(record, WorkerRecord) for record in records):
                os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, self._size_bytes)
            raise JournalError(
                f"cannot write to {self.path}: {error.strerror}; what was found so far is safe: make room "
                "and start the same command again to go on"
            ) from error
        self._size_bytes += len(data)

    def close(self) -> None:
        os.close(self._descriptor)
        sync_folder(self.path.parent)


def read_journal(path: Path) -> JournalView:
    """Read a journal without changing it; a search may be writing to it meanwhile.

    Raises:
        JournalError: there is none, a line is damaged, or another version of the program wrote it.
    """
    return _read(path)[0]


def canonical(records: Iterable[Record]) -> list[dict[str, Any]]:
    """The part of ``records`` that is the same in every run of one search: plain data in a fixed order."""
    lines = [encode(record) for record in records if not isinstance(record, WorkerRecord)]
    for line in lines:
        del line["measured"]
    return sorted(lines, key=lambda line: (line["kind"], line.get("id", 0), line.get("name", "")))


def _read(path: Path) -> tuple[JournalView, int]:
    """The journal's content and how many bytes of it are whole lines."""
    with _collector_paused():
        return _read_lines(path)


def _read_lines(path: Path) -> tuple[JournalView, int]:
    run: RunRecord | None = None
    candidates: dict[int, CandidateRecord] = {}
    holdout: list[HoldoutRecord] = []
    workers: list[WorkerRecord] = []
    whole_bytes = 0
    for number, line in _whole_lines(path):
        whole_bytes += len(line)
        record = _parse(path, number, line)
        if (number == 1) != isinstance(record, RunRecord):
            what = "the first line, and only that, has to be the run's"
            raise JournalError(f"{path}, line {number}: {what}; restore the file from a copy")
        if isinstance(record, RunRecord):
            run = record
        elif isinstance(record, HoldoutRecord):
            holdout.append(record)
        elif isinstance(record, WorkerRecord):
            workers.append(record)
        elif record.id in candidates:
            what = f"candidate {record.id} is there a second time"
            raise JournalError(f"{path}, line {number}: {what}; restore the file from a copy")
        else:
            candidates[record.id] = record
    if run is None:
        raise JournalError(f"{path} is empty: no search has started there")
    view = JournalView(
        run=run, candidates=tuple(candidates.values()), holdout=tuple(holdout), workers=tuple(workers)
    )
    return view, whole_bytes


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Millions of values come in, none of them garbage: looking for some would triple the time. Nor is it
    worth looking at them ever again, as every full collection would do.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as handle:
            for number, line in enumerate(handle, 1):
                if line.endswith(b"\n"):
                    yield number, line
    except OSError as error:
        raise JournalError(f"cannot read the journal {path}: {error.strerror}") from error


def _parse(path: Path, number: int, line: bytes) -> Record:
    try:
        data = orjson.loads(line)
        if data["kind"] == "run" and data["schema"] not in READ_VERSIONS:
            known = ", ".join(map(str, READ_VERSIONS))
            raise JournalError(
                f"{path} has schema version {data['schema']}, this program reads versions {known}: "
                "finish the search with the version that started it"
            )
        return decode(data)
    except (ValueError, KeyError, TypeError) as error:
        what = f"line {number} is damaged ({type(error).__name__}: {error})"
        raise JournalError(
            f"{path}, {what}; restore the file from a copy, or {_way_without(number)}"
        ) from error


def _way_without(number: int) -> str:
    """How to go on without a line."""
    if number == 1:
        return "start anew in another storage path: that line says which search this is"
    # Without generations, what is drawn follows from every line before it: see `evolve.async_scheduler`.
    return (
        "remove that line (with scheduler: async, all lines after it, too) to have its candidate scored again"
    )
