"""Errors of the search.

EvolveError
├── PreflightError           a search cannot start; carries every problem of its input
├── StorageError             the storage path cannot be used (foreign folder, not writable)
│   ├── StorageLockedError   another driver works on it right now
│   └── SearchChangedError   it belongs to a search with other settings; carries the differences
├── ScratchError             there is no place, or no room, for merged models on the disk
├── JournalError             the journal cannot be read or written
├── ReplayError              the journal does not come out again: another seed, space or library version
├── FleetError               there is nobody left to do the work
│   └── WorkerStartError     a worker could not be prepared
└── RepeatedFailureError     candidate after candidate fails for the same reason
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from merge_engine.errors import Problem


class EvolveError(Exception):
    """Base of every error that the search raises on purpose; its text is meant for people."""


class PreflightError(EvolveError):
    """The search cannot start; ``problems`` lists everything found."""

    def __init__(self, source: Path, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
        lines = [f"{source}: {count}; nothing was started", *(f"  {problem}" for problem in problems)]
        super().__init__("\n".join(lines))


class StorageError(EvolveError):
    """The storage path cannot be used."""


class StorageLockedError(StorageError):
    """Another driver holds the storage path."""


class SearchChangedError(StorageError):
    """The storage path was made for a search with other settings; ``differences`` has one line for each."""

    def __init__(self, message: str, differences: Sequence[str]) -> None:
        self.differences = tuple(differences)
        super().__init__("\n".join([message, *(f"  {line}" for line in self.differences)]))


class ScratchError(EvolveError):
    """There is no place, or no room, for merged models on the disk."""


class JournalError(EvolveError):
    """The journal cannot be read or written."""


class ReplayError(EvolveError):
    """Asked again, the optimiser gives other candidates than the journal holds."""


class FleetError(EvolveError):
    """No worker is left."""


class WorkerStartError(FleetError):
    """A worker could not be prepared."""


class RepeatedFailureError(EvolveError):
    """Candidate after candidate fails for the same reason."""
