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

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evolve.beginning import begin, known_recipes
from evolve.fleet import Fleet
from evolve.initial import InitialRecipe
from evolve.interrupt import Interrupt
from evolve.journal import Journal
from evolve.ledger import Ledger
from evolve.observer import GenerationSummary, Observer, SearchResult
from evolve.optimisers import DEFAULT_SIGMA0, Box, Optimiser, OptimiserSettings, Vector, make_optimiser
from evolve.outcome import cost
from evolve.records import SCHEMA_VERSION, CandidateRecord, RunRecord
from evolve.replay import check_same_search
from evolve.scoring import Draft, Scoring, decoded
from evolve.versions import library_versions
from genome.space import Space

REPEATED_GENERATIONS = 20  # without a new recipe, and the search stops


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """What a search is fixed to (the first block, journalled), and how far it may go this time.

    ``max_fevals`` is exact: it counts every candidate of the whole search that a worker scores, baselines
    and mean included; not those whose recipes were scored before. ``time_limit_s`` counts from this start;
    what runs when it ends is finished, and the mean is scored still.
    """

    seed: int
    popsize: int
    algorithm: str = "cma"
    sigma0: float = DEFAULT_SIGMA0
    restarts: int = 0
    random_init: bool = False

    max_fevals: int
    time_limit_s: float | None = None
    identical_failures: int = 8  # one after another, and the search stops


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
    with Interrupt() as interrupt:
        return _Driver(space, settings, fleet, journal, observers, interrupt).run(initial)


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

    def __init__(
        self,
        space: Space,
        settings: SearchSettings,
        fleet: Fleet,
        journal: Journal,
        observers: Sequence[Observer],
        interrupt: Interrupt,
    ) -> None:
        self._space = space
        self._settings = settings
        self._journal = journal
        self._observers = observers
        self._interrupt = interrupt
        limit_s = math.inf if settings.time_limit_s is None else settings.time_limit_s
        self._deadline_s = time.monotonic() + limit_s
        self._ledger = Ledger(journal, settings.max_fevals)
        self._scoring = Scoring(
            self._ledger,
            fleet,
            journal,
            observers,
            interrupt,
            identical_failures=settings.identical_failures,
            may_start=lambda: time.monotonic() < self._deadline_s,
        )
        self._nothing_new = 0  # generations in a row

    def run(self, initial: Sequence[InitialRecipe]) -> SearchResult:
        for observer in self._observers:
            observer.on_start(self._journal.view.run, self._journal.view.candidates)
        generation = 0
        optimiser, injected, records = self._begin(initial)
        while (stop := self._stop_reason() or optimiser.stopped()) is None:
            generation += 1
            records = self._generation(generation, optimiser, injected)
            injected = []
        mean = None
        if stop != "interrupted":
            mean = self._mean(generation, len(records), optimiser)
            stop = self._stop_reason() if self._interrupt.requested else stop
        result = SearchResult(
            best=self._ledger.best,
            mean=mean,
            evaluations=self._ledger.evaluations,
            stopped_because=str(stop),
        )
        for observer in self._observers:
            observer.on_finish(result)
        return result

    def _stop_reason(self) -> str | None:
        if self._interrupt.requested:
            return "interrupted"
        if self._ledger.places_left == 0:
            return "budget"
        if self._nothing_new >= REPEATED_GENERATIONS:
            return f"no new recipe in the last {self._nothing_new} generations"
        return "time" if time.monotonic() >= self._deadline_s else None

    def _begin(
        self, initial: Sequence[InitialRecipe]
    ) -> tuple[Optimiser, list[tuple[Vector, float]], list[CandidateRecord]]:
        """Generation 0, the optimiser that starts from it, and what that is to be told of it."""
        known = known_recipes(self._space, initial)
        records = self._scoring.score(
            0,
            [entry.origin for entry in known],
            lambda index: Draft(recipe=known[index].recipe),
        )
        settings = self._settings
        beginning = begin(self._space, known, records, settings.seed if settings.random_init else None)
        optimiser = make_optimiser(
            OptimiserSettings(
                seed=settings.seed,
                popsize=settings.popsize,
                algorithm=settings.algorithm,
                sigma0=settings.sigma0,
                restarts=settings.restarts,
            ),
            Box(kinds=self._space.kinds, lower=self._space.lower, upper=self._space.upper),
            beginning.start,
        )
        optimiser.inject([vector for vector, _ in beginning.told])
        return optimiser, beginning.told, records

    def _generation(
        self, generation: int, optimiser: Optimiser, injected: list[tuple[Vector, float]]
    ) -> list[CandidateRecord]:
        """Ask, score, tell. Returns the candidates that have an outcome before the search had to stop."""
        known = len(self._ledger.records)
        vectors = optimiser.ask()
        records = self._scoring.score(
            generation, ["sample"] * len(vectors), lambda index: decoded(self._space, vectors[index])
        )
        scored = [(vectors[record.index], cost(record.outcome)) for record in records]
        optimiser.tell([*injected, *scored])
        is_new = any(record.evaluated for record in records)
        self._nothing_new = 0 if is_new else self._nothing_new + 1
        if len(records) == len(vectors) and len(self._ledger.records) > known:
            self._summarise(generation, records, optimiser)
        return records

    def _summarise(self, generation: int, records: list[CandidateRecord], optimiser: Optimiser) -> None:
        summary = GenerationSummary(
            generation=generation,
            evaluations=self._ledger.evaluations,
            candidates=tuple(records),
            mean_recipe=decoded(self._space, optimiser.mean()).recipe,
            sigma=optimiser.sigma(),
            std=optimiser.std(),
            best=self._ledger.best,
        )
        for observer in self._observers:
            observer.on_generation(summary)

    def _mean(self, generation: int, index: int, optimiser: Optimiser) -> CandidateRecord | None:
        """Score the mean, unless the search ended at this very point before, or no recipe is there."""
        recipe = decoded(self._space, optimiser.mean()).recipe
        known = self._ledger.mean_at(generation, index, recipe)
        if known is not None or not recipe or self._ledger.evaluations >= self._settings.max_fevals:
            return known
        return self._scoring.score_mean(generation, index, recipe)
