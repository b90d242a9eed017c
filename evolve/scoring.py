"""From recipes to outcomes: from the journal, from an equal recipe, or from the fleet."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from evolve.dispatch import run_jobs
from evolve.failures import FailureWatch
from evolve.fleet import Done, Fleet, Job
from evolve.interrupt import Interrupt
from evolve.journal import Journal
from evolve.ledger import Ledger
from evolve.observer import Observer
from evolve.optimisers import Vector
from evolve.outcome import Failed, Outcome
from evolve.records import MEAN, CandidateRecord, Measured
from evolve.replay import Proposal, check_replay
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


class Scoring:
    """Gives candidates their outcomes, in whatever order, and writes them down at once.

    Raises from its methods what `evolve.search.run_search` does.
    """

    def __init__(
        self,
        ledger: Ledger,
        fleet: Fleet,
        journal: Journal,
        observers: Sequence[Observer],
        interrupt: Interrupt,
        *,
        identical_failures: int,
        may_start: Callable[[], bool],
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._journal = journal
        self._observers = observers
        self._interrupt = interrupt
        self._failures = FailureWatch(identical_failures)
        self._may_start = may_start

    def score(
        self, generation: int, origins: Sequence[str], draft_of: Callable[[int], Draft]
    ) -> list[CandidateRecord]:
        """The outcomes of one generation in its order, as far as the budget and the time reach."""
        numbers: list[int] = []
        waiting: list[Proposal] = []
        for index, origin in enumerate(origins):
            if self._ledger.places_left == 0:
                break
            number = self._ledger.next_id
            numbers.append(number)
            known = self._ledger.known(number)
            # A generation is drawn at once: where its first candidate comes out again, all do.
            if known is not None and index > 0:
                self._ledger.enter_known(known)
                continue
            draft = draft_of(index)
            proposal = Proposal(
                id=number, generation=generation, index=index, origin=origin, recipe=draft.recipe
            )
            if known is not None:
                check_replay(proposal, known, self._journal)
                self._ledger.enter_known(known)
                continue
            copied_from = self._ledger.enter(draft.recipe)
            if draft.refusal:
                self._write(proposal, Failed(stage="decode", reason=draft.refusal), _no_work())
            else:
                waiting.append(proposal if copied_from is None else proposal.copy_of(copied_from))
        self._settle(waiting, self._may_start)
        return [self._ledger.records[number] for number in numbers if number in self._ledger.records]

    def score_mean(self, generation: int, index: int, recipe: dict[str, Any]) -> CandidateRecord | None:
        """The outcome of the mean of the search distribution; None at an interruption."""
        proposal = Proposal(
            id=self._ledger.free_id(),
            generation=generation,
            index=index,
            origin=MEAN,
            recipe=recipe,
            copied_from=self._ledger.scored_before(recipe),
        )
        self._settle([proposal], may_start=lambda: True)
        return self._ledger.records.get(proposal.id)

    def _settle(self, proposals: Sequence[Proposal], may_start: Callable[[], bool]) -> None:
        """Score every recipe once; the others take over the outcomes, unless their originals got none."""
        originals = {proposal.id: proposal for proposal in proposals if proposal.copied_from is None}
        run_jobs(
            [
                Job(id=number, recipe=original.recipe, split="search")
                for number, original in originals.items()
            ],
            self._fleet,
            self._interrupt,
            self._observers,
            on_done=lambda done: self._scored(originals[done.job.id], done),
            may_start=may_start,
        )
        for proposal in proposals:
            if proposal.copied_from in self._ledger.records:
                original = self._ledger.records[proposal.copied_from]
                self._write(proposal, original.outcome, _no_work())

    def _scored(self, proposal: Proposal, done: Done) -> None:
        self._write(proposal, done.evaluation.outcome, done.measured)
        self._failures.note(done.evaluation.outcome)

    def _write(self, proposal: Proposal, outcome: Outcome, measured: Measured) -> None:
        record = CandidateRecord(
            id=proposal.id,
            generation=proposal.generation,
            index=proposal.index,
            origin=proposal.origin,
            recipe=proposal.recipe,
            copied_from=proposal.copied_from,
            outcome=outcome,
            measured=measured,
        )
        self._ledger.write(record)
        for observer in self._observers:
            observer.on_candidate(record)


def _no_work() -> Measured:
    return Measured.nothing(time.time())
