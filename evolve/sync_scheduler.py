"""Generation by generation: all candidates are drawn, then all are scored, then the optimiser is told."""

from __future__ import annotations

from collections.abc import Sequence

from evolve.optimisers import Optimiser, Vector
from evolve.outcome import cost
from evolve.records import SAMPLE, CandidateRecord
from evolve.scoring import Scoring
from evolve.scribe import decoded
from evolve.session import Session


class SyncScheduler:
    """The finished search is the same candidate by candidate, whatever the number of workers and whatever
    happens to them; while the last candidates of a generation run, other workers wait.

    ``place``: of the mean, if the search ends now: behind the candidates of the last generation.
    """

    def __init__(
        self,
        session: Session,
        scoring: Scoring,
        optimiser: Optimiser,
        injected: Sequence[tuple[Vector, float]],
        known: Sequence[CandidateRecord],
    ) -> None:
        """``injected``: to be told with generation 1. ``known``: generation 0."""
        self.place = (0, len(known))
        self._session = session
        self._scoring = scoring
        self._optimiser = optimiser
        self._injected = list(injected)

    def run(self) -> str:
        """Search until there is a reason to stop, which is returned."""
        limits, optimiser = self._session.limits, self._optimiser
        while (stop := limits.reason(self._scoring.places_left) or optimiser.stopped()) is None:
            self._generation()
        return stop

    def _generation(self) -> None:
        session, optimiser = self._session, self._optimiser
        generation = self.place[0] + 1
        before = len(session.ledger.records)
        vectors = optimiser.ask()
        records = self._scoring.score(
            generation, [SAMPLE] * len(vectors), lambda index: decoded(session.space, vectors[index])
        )
        scored = [(vectors[record.index], cost(record.outcome)) for record in records]
        optimiser.tell([*self._injected, *scored])
        self._injected = []
        self.place = (generation, len(records))
        session.limits.note(records)
        if len(records) == len(vectors) and len(session.ledger.records) > before:
            session.announce(generation, records, optimiser)
