"""From points to recipes, and from outcomes to lines of the journal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evolve.failures import FailureWatch
from evolve.fleet import Done
from evolve.ledger import Ledger
from evolve.observer import Observer
from evolve.optimisers import Vector
from evolve.outcome import Failed, Outcome
from evolve.records import CandidateRecord, Measured
from evolve.replay import Proposal
from genome.errors import RefusedRecipe
from genome.space import Space
from merge_engine.spec.recipe import recipe_data


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A recipe as plain data, or why the space makes none: then it is empty."""

    recipe: dict[str, Any]
    refusal: str = ""


def decoded(space: Space, vector: Vector) -> Draft:
    """What ``space`` makes of a vector."""
    try:
        return Draft(recipe=recipe_data(space.decode(vector)))
    except RefusedRecipe as refused:
        return Draft(recipe={}, refusal=str(refused))


class Scribe:
    """Writes outcomes down, and only then tells the observers.

    Raises from its methods:
        JournalError: the disk refuses a line.
    """

    def __init__(self, ledger: Ledger, observers: Sequence[Observer], identical_failures: int) -> None:
        self._ledger = ledger
        self._observers = observers
        self._failures = FailureWatch(identical_failures)

    def scored(self, finished: Sequence[tuple[Proposal, Done]]) -> list[CandidateRecord]:
        """What workers found, be it failures.

        Raises:
            RepeatedFailureError: too many in a row failed for the same reason.
        """
        records = [_record(proposal, done.evaluation.outcome, done.measured) for proposal, done in finished]
        self._write(records)
        for record in records:
            self._failures.note(record.outcome)
        return records

    def copied(self, proposal: Proposal, original: CandidateRecord) -> CandidateRecord:
        """A candidate takes over the outcome of one with an equal recipe."""
        record = _record(proposal.copy_of(original.id), original.outcome, _no_work())
        self._write([record])
        return record

    def refused(self, proposal: Proposal, reason: str) -> CandidateRecord:
        """The space made no recipe of a point."""
        record = _record(proposal, Failed(stage="decode", reason=reason), _no_work())
        self._write([record])
        return record

    def _write(self, records: Sequence[CandidateRecord]) -> None:
        self._ledger.write(records)
        for record in records:
            for observer in self._observers:
                observer.on_candidate(record)


def _record(proposal: Proposal, outcome: Outcome, measured: Measured) -> CandidateRecord:
    return CandidateRecord(
        id=proposal.id,
        generation=proposal.generation,
        index=proposal.index,
        origin=proposal.origin,
        recipe=proposal.recipe,
        copied_from=proposal.copied_from,
        outcome=outcome,
        measured=measured,
    )


def _no_work() -> Measured:
    return Measured.nothing(time.time())
