"""Is a journal this search's? Seed and journal, replayed through ask and tell, are its only checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from evolve.errors import ReplayError, SearchChangedError
from evolve.journal import Journal
from evolve.records import CandidateRecord, RunRecord
from evolve.versions import library_versions

_REPLAYED = ("generation", "index", "origin", "recipe")
_WAY_OUT = (
    "restore the file from a copy, or remove that candidate's line and all after it to score them again"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A candidate before it is scored. ``copied_from``: the earlier one with an equal recipe, if any."""

    id: int
    generation: int
    index: int
    origin: str
    recipe: dict[str, Any]
    copied_from: int | None = None

    def copy_of(self, number: int) -> Proposal:
        """The same, but to take over the outcome of candidate ``number``."""
        return replace(self, copied_from=number)


def check_same_search(run: RunRecord, now: Mapping[str, int]) -> None:
    """
    Raises:
        ReplayError: a field of the journal's first line is not what it is ``now``.
    """
    changed = [
        f"{name} was {getattr(run, name)}, is {value}"
        for name, value in now.items()
        if getattr(run, name) != value
    ]
    if changed:
        raise ReplayError(f"the journal belongs to another search: {'; '.join(changed)}")


def check_same_inputs(run: RunRecord, inputs: Mapping[str, str]) -> None:
    """
    Raises:
        SearchChangedError: a model's files or the tasks' items are not those that the search began with.
    """
    changed = [
        f"{name}: {'changed' if name in inputs else 'gone'}"
        for name in run.inputs
        if inputs.get(name) != run.inputs[name]
    ]
    if changed:
        raise SearchChangedError(
            "what this search works on has changed since it began; put it back, or start anew in another "
            "storage path:",
            changed,
        )


def check_replay(proposal: Proposal, record: CandidateRecord, journal: Journal) -> None:
    """
    Raises:
        ReplayError: the candidate in the journal is not the one that is asked for now.
    """
    if any(getattr(record, name) != getattr(proposal, name) for name in _REPLAYED):
        raise _does_not_come_out(record, journal)


def check_place(record: CandidateRecord, place: tuple[int, int], journal: Journal) -> None:
    """``place``: the generation and index of the candidate that has this number now.

    Raises:
        ReplayError: the journal has another one under it.
    """
    if (record.generation, record.index) != place:
        raise _does_not_come_out(record, journal)


def too_early(record: CandidateRecord, journal: Journal) -> ReplayError:
    """The error of a candidate that cannot have been drawn after the lines before it."""
    what = f"candidate {record.id} is of generation {record.generation}, but the lines before it are too few"
    return ReplayError(
        f"{journal.path}: {what} for that: some are missing, or in another order than they were written in; "
        + _WAY_OUT
    )


def _does_not_come_out(record: CandidateRecord, journal: Journal) -> ReplayError:
    what = f"candidate {record.id} does not come out again as the journal has it"
    return ReplayError(f"{journal.path}: {what}; {_version_hint(journal.view.run)}")


def _version_hint(run: RunRecord) -> str:
    now = library_versions()
    changed = [
        f"{name} was {run.versions.get(name, 'absent')}, is {now.get(name, 'absent')}"
        for name in sorted({*now, *run.versions})
        if run.versions.get(name) != now.get(name)
    ]
    if changed:
        return f"versions have changed: {'; '.join(changed)}. Go back to them to resume this search"
    return (
        "its versions are the same as now, so its settings or its models' files must have changed, or lines "
        f"before it are missing: then {_WAY_OUT}"
    )
