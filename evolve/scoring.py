"""Whole generations and their outcomes: from the journal, from an equal recipe, or from the fleet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from evolve.dispatch import run_jobs
from evolve.fleet import Done, Job
from evolve.ledger import recipe_digest
from evolve.numbering import Numbering
from evolve.records import MEAN, CandidateRecord
from evolve.replay import Proposal, check_place, check_replay
from evolve.scribe import Draft
from evolve.session import Session


class Scoring:
    """Gives the candidates of a generation their outcomes, in whatever order they come.

    Raises from its methods what `evolve.search.run_search` does.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._ledger = session.ledger
        self._numbering = Numbering(session.ledger, session.settings.max_fevals)

    @property
    def places_left(self) -> int:
        """See `Numbering.places_left`."""
        return self._numbering.places_left

    def score(
        self, generation: int, origins: Sequence[str], draft_of: Callable[[int], Draft]
    ) -> list[CandidateRecord]:
        """The outcomes of one generation in its order, as far as the budget and the time reach."""
        numbers: list[int] = []
        waiting: list[Proposal] = []
        for index, origin in enumerate(origins):
            if self._numbering.places_left == 0:
                break
            number = self._numbering.next_id
            numbers.append(number)
            known = self._ledger.records.get(number)
            # A generation is drawn at once: where its first candidate comes out again, all do.
            if known is not None and index > 0:
                check_place(known, (generation, index), self._session.journal)
                self._numbering.enter_known(known)
                continue
            draft = draft_of(index)
            proposal = Proposal(
                id=number, generation=generation, index=index, origin=origin, recipe=draft.recipe
            )
            if known is not None:
                check_replay(proposal, known, self._session.journal)
                self._numbering.enter_known(known)
                continue
            copied_from = self._numbering.enter(draft.recipe)
            if draft.refusal:
                self._session.scribe.refused(proposal, draft.refusal)
            else:
                waiting.append(proposal if copied_from is None else proposal.copy_of(copied_from))
        self._settle(waiting, self._session.limits.in_time)
        return [self._ledger.records[number] for number in numbers if number in self._ledger.records]

    def score_mean(self, generation: int, index: int, recipe: dict[str, Any]) -> CandidateRecord | None:
        """The outcome of the mean of the search distribution; None at an interruption."""
        original = self._ledger.original(recipe_digest(recipe))
        proposal = Proposal(
            id=self._ledger.free_id(),
            generation=generation,
            index=index,
            origin=MEAN,
            recipe=recipe,
            copied_from=None if original is None else original.id,
        )
        self._settle([proposal], may_start=lambda: True)
        return self._ledger.records.get(proposal.id)

    def _settle(self, proposals: Sequence[Proposal], may_start: Callable[[], bool]) -> None:
        """Score every recipe once; the others take over the outcomes, unless their originals got none."""
        originals = {proposal.id: proposal for proposal in proposals if proposal.copied_from is None}

        def on_done(finished: Sequence[Done]) -> None:
            self._session.scribe.scored([(originals[done.job.id], done) for done in finished])

        run_jobs(
            [
                Job(id=number, recipe=original.recipe, split="search")
                for number, original in originals.items()
            ],
            self._session.fleet,
            self._session.interrupt,
            self._session.observers,
            on_done=on_done,
            may_start=may_start,
        )
        for proposal in proposals:
            if proposal.copied_from in self._ledger.records:
                self._session.scribe.copied(proposal, self._ledger.records[proposal.copied_from])
