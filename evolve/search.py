"""The driver: ask, score on the fleet, journal, tell; and the same again from the journal when a search
resumes.

Generation 0 is the baselines and the recipes that the search file names. The optimiser starts at the best of
them (unless ``random_init`` lets the seed say where) and is told the others, with their costs, in its first
generation: measured against a start at the uniform merge, that finds far better points where one source is
much better than the rest, and equal ones elsewhere (docs/log.md). The last candidate of a budget is the mean
of the search distribution; the optimiser is not told about it, so that the same search with a larger budget
goes on as if there had been no end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from evolve.async_scheduler import AsyncScheduler
from evolve.beginning import begin, known_recipes
from evolve.fleet import Fleet
from evolve.initial import InitialRecipe
from evolve.interrupt import Interrupt
from evolve.journal import Journal
from evolve.ledger import Ledger
from evolve.observer import Observer, SearchResult
from evolve.optimisers import Box, Optimiser, OptimiserSettings, make_optimiser
from evolve.records import SCHEMA_VERSION, CandidateRecord, RunRecord
from evolve.replay import check_same_search
from evolve.scoring import Scoring
from evolve.scribe import Draft, Scribe, decoded
from evolve.session import Limits, SearchSettings, Session
from evolve.sync_scheduler import SyncScheduler
from evolve.versions import library_versions
from genome.space import Space

__all__ = ["SearchSettings", "new_run", "run_search"]


class Scheduler(Protocol):
    """In which order candidates are drawn and scored, and when the optimiser is told of them."""

    place: tuple[int, int]  # generation and index of the mean, if the search ends now

    def run(self) -> str:
        """Search until there is a reason to stop, which is returned."""
        ...


def run_search(
    space: Space,
    settings: SearchSettings,
    fleet: Fleet,
    journal: Journal,
    observers: Sequence[Observer] = (),
    initial: Sequence[InitialRecipe] = (),
) -> SearchResult:
    """Search until the budget is spent, the optimiser has converged or finds nothing new, or somebody asks
    to stop (SIGINT, SIGTERM).

    What the journal holds already is not scored again. Candidates in flight at an interruption are dropped.

    Raises:
        ReplayError: the journal was written by another search or other library versions.
        RepeatedFailureError: candidate after candidate failed for the same reason.
        JournalError: the journal cannot be written.
        FleetError: no worker is left.
    """
    now = {"seed": settings.seed, "popsize": settings.popsize, "dimensions": len(space.start)}
    check_same_search(journal.view.run, now)
    ledger = Ledger(journal)
    with Interrupt() as interrupt:
        session = Session(
            space=space,
            settings=settings,
            fleet=fleet,
            journal=journal,
            observers=observers,
            interrupt=interrupt,
            ledger=ledger,
            scribe=Scribe(ledger, observers, settings.identical_failures),
            limits=Limits(settings, interrupt),
        )
        return _Driver(session).run(initial)


def new_run(
    space: Space,
    settings: SearchSettings,
    *,
    batch_size: int,
    inputs: Mapping[str, str],
    started_at: str,
) -> RunRecord:
    """The first line of the journal of a search that starts now."""
    return RunRecord(
        schema=SCHEMA_VERSION,
        seed=settings.seed,
        popsize=settings.popsize,
        batch_size=batch_size,
        dimensions=len(space.start),
        inputs=dict(inputs),
        versions=library_versions(),
        started_at=started_at,
    )


class _Driver:
    """One run of `run_search`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._scoring = Scoring(session)

    def run(self, initial: Sequence[InitialRecipe]) -> SearchResult:
        session = self._session
        for observer in session.observers:
            observer.on_start(session.journal.view.run, session.journal.view.candidates)
        optimiser, scheduler = self._begin(initial)
        stop = scheduler.run()
        mean = None
        if stop != "interrupted":
            mean = self._mean(scheduler.place, optimiser)
            stop = "interrupted" if session.interrupt.requested else stop
        result = SearchResult(
            best=session.ledger.best,
            mean=mean,
            evaluations=session.ledger.evaluations,
            stopped_because=stop,
        )
        for observer in session.observers:
            observer.on_finish(result)
        return result

    def _begin(self, initial: Sequence[InitialRecipe]) -> tuple[Optimiser, Scheduler]:
        """Score generation 0, and start from it."""
        session, settings = self._session, self._session.settings
        known = known_recipes(session.space, initial)
        records = self._scoring.score(
            0,
            [entry.origin for entry in known],
            lambda index: Draft(recipe=known[index].recipe),
        )
        beginning = begin(session.space, known, records, settings.seed if settings.random_init else None)
        optimiser = make_optimiser(
            OptimiserSettings(
                seed=settings.seed,
                popsize=settings.popsize,
                algorithm=settings.algorithm,
                sigma0=settings.sigma0,
                restarts=settings.restarts,
            ),
            Box(kinds=session.space.kinds, lower=session.space.lower, upper=session.space.upper),
            beginning.start,
        )
        optimiser.inject([vector for vector, _ in beginning.told])
        if settings.scheduler == "async":
            return optimiser, AsyncScheduler(session, optimiser, beginning.told)
        return optimiser, SyncScheduler(session, self._scoring, optimiser, beginning.told, records)

    def _mean(self, place: tuple[int, int], optimiser: Optimiser) -> CandidateRecord | None:
        """Score the mean, unless the search ended at this very point before, or no recipe is there."""
        ledger = self._session.ledger
        recipe = decoded(self._session.space, optimiser.mean()).recipe
        known = ledger.mean_at(*place, recipe)
        if known is not None or not recipe or ledger.evaluations >= self._session.settings.max_fevals:
            return known
        return self._scoring.score_mean(*place, recipe)
