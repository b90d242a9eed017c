"""Candidate by candidate: no worker waits for another one.

A worker that is free gets the next point of the search distribution as it is at that moment. The optimiser is
told whenever as many outcomes have arrived since the last tell as a generation has candidates; an outcome
counts fully, however many tells came since its point was drawn (docs/log.md). A candidate of generation g was
drawn after g - 1 tells.

The order of arrival is the order of the journal's lines, and all that was ever asked and told follows from
it: a search that resumes stands where it was before. Candidates that were in flight then are forgotten; those
of the present generation come out again.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from evolve.dispatch import wait_for_jobs
from evolve.draws import Draw, Draws
from evolve.fleet import Done, Job
from evolve.ledger import recipe_digest
from evolve.optimisers import Optimiser, Vector
from evolve.outcome import cost
from evolve.records import MEAN, SAMPLE, CandidateRecord
from evolve.replay import Proposal, check_replay, too_early
from evolve.scribe import decoded
from evolve.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class _InFlight:
    """A candidate that a worker scores, and those with the same recipe that wait for its outcome."""

    draw: Draw
    proposal: Proposal
    copies: list[tuple[Draw, Proposal]] = field(default_factory=list)


class AsyncScheduler:
    """With one worker the finished search is always the same; with more, as workers happen to finish.

    ``place``: of the mean, if the search ends now: behind the outcomes that have arrived since the last tell.
    """

    def __init__(
        self, session: Session, optimiser: Optimiser, injected: Sequence[tuple[Vector, float]]
    ) -> None:
        """``injected``: to be told with generation 1."""
        self.place = (1, 0)
        self._session = session
        self._optimiser = optimiser
        self._injected = list(injected)
        self._kept = [record for record in session.journal.view.candidates if record.origin == SAMPLE]
        self._draws = Draws(optimiser, [(record.generation, record.index) for record in self._kept])
        self._arrived: list[tuple[Draw, CandidateRecord]] = []  # since the last tell
        self._in_flight: dict[bytes, _InFlight] = {}  # by the digests of their recipes
        self._waiting = 0  # copies of those in flight
        ended = [record.id for record in session.journal.view.candidates if record.origin == MEAN]
        self._numbers = itertools.count(max(ended, default=-1) + 1)

    def run(self) -> str:
        """Search until there is a reason to stop, which is returned."""
        self._replay()
        session = self._session
        while True:
            stop = self._fill()
            if session.interrupt.requested:
                return "interrupted"
            if stop is not None and not self._in_flight:
                self._end()
                return stop
            self._take(wait_for_jobs(session.fleet, session.observers))

    def _replay(self) -> None:
        """Do again all that was done when the journal's lines were written, in their order."""
        checked = 0  # generations; where the first candidate of one comes out again, all do
        for record in self._kept:
            draw = self._draws.at((record.generation, record.index))
            if draw is None:
                raise too_early(record, self._session.journal)
            if record.generation > checked:
                checked = record.generation
                recipe = decoded(self._session.space, draw.vector).recipe
                check_replay(_proposal(record.id, draw, recipe), record, self._session.journal)
            self._learn(draw, record)

    def _fill(self) -> str | None:
        """Give all free workers something to do. Returns why no more is to be drawn, if so."""
        while (stop := self._stop_reason()) is None and self._has_room():
            self._start(self._draws.next())
        return stop

    def _stop_reason(self) -> str | None:
        spent = self._session.ledger.evaluations + len(self._in_flight)
        places_left = self._session.settings.max_fevals - 1 - spent
        return self._session.limits.reason(places_left) or self._optimiser.stopped()

    def _has_room(self) -> bool:
        # Where hardly anything new is left, a free worker is no reason to draw the same for ever.
        return len(self._in_flight) < self._session.fleet.capacity and self._waiting < self._draws.size

    def _start(self, draw: Draw) -> None:
        """Send a point to a worker, unless its outcome is there already or on its way."""
        session = self._session
        draft = decoded(session.space, draw.vector)
        proposal = _proposal(self._free_number(), draw, draft.recipe)
        digest = recipe_digest(draft.recipe)
        if draft.refusal:
            self._arrive(draw, session.scribe.refused(proposal, draft.refusal))
        elif (original := session.ledger.original(digest)) is not None:
            self._arrive(draw, session.scribe.copied(proposal, original))
        elif (twin := self._in_flight.get(digest)) is not None:
            twin.copies.append((draw, proposal))
            self._waiting += 1
        else:
            self._in_flight[digest] = _InFlight(draw=draw, proposal=proposal)
            session.fleet.submit(Job(id=proposal.id, recipe=draft.recipe, split="search"))

    def _free_number(self) -> int:
        """The next that no candidate has; numbers that were lost in flight are given again."""
        return next(number for number in self._numbers if number not in self._session.ledger.records)

    def _take(self, finished: Sequence[Done]) -> None:
        """Workers have finished: write it down, and what waited for it, in the order of arrival."""
        scribe = self._session.scribe
        ended = [self._in_flight.pop(recipe_digest(done.job.recipe)) for done in finished]
        originals = scribe.scored([(each.proposal, done) for each, done in zip(ended, finished, strict=True)])
        for each, original in zip(ended, originals, strict=True):
            self._arrive(each.draw, original)
        for each, original in zip(ended, originals, strict=True):
            self._waiting -= len(each.copies)
            for draw, proposal in each.copies:
                self._arrive(draw, scribe.copied(proposal, original))

    def _arrive(self, draw: Draw, record: CandidateRecord) -> None:
        told = self._learn(draw, record)
        if told:
            self._session.announce(self._draws.generation - 1, told, self._optimiser)

    def _learn(self, draw: Draw, record: CandidateRecord) -> list[CandidateRecord]:
        """One more outcome. When there are enough the optimiser is told of them, and they are returned."""
        if draw.run == self._optimiser.run:
            self._arrived.append((draw, record))
        if len(self._arrived) < self._draws.size:
            return []
        records = self._tell()
        self._session.limits.note(records)
        self._draws.begin_generation()
        return records

    def _tell(self) -> list[CandidateRecord]:
        arrived, self._arrived = self._arrived, []
        injected, self._injected = self._injected, []
        pairs = [(draw.vector, cost(record.outcome)) for draw, record in arrived]
        self._optimiser.tell([*injected, *pairs])
        return [record for _, record in arrived]

    def _end(self) -> None:
        """The mean is to know of all that arrived. A larger budget goes on as if this had not been told."""
        self.place = (self._draws.generation, len(self._arrived))
        if self._arrived:
            self._tell()


def _proposal(number: int, draw: Draw, recipe: dict[str, Any]) -> Proposal:
    return Proposal(id=number, generation=draw.generation, index=draw.index, origin=SAMPLE, recipe=recipe)
