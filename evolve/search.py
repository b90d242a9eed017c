"""The driver: ask, score on the fleet, journal, tell; and the same again from the journal when a search
resumes.

Generation 0 is the baselines. CMA-ES starts at the best of them (unless ``random_init`` lets the seed say
where) and is told the others, with their costs, in its first generation: measured against a start at the
uniform merge, that finds far better points where one source is much better than the rest, and equal ones
elsewhere (docs/log.md). The last candidate of a budget is the mean of the search distribution; the
optimiser is not told about it, so that the same search with a larger budget goes on as if there had been no
end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evolve.dispatch import run_jobs
from evolve.failures import FailureWatch
from evolve.fleet import Done, Fleet, Job
from evolve.interrupt import Interrupt
from evolve.journal import Journal
from evolve.observer import GenerationSummary, Observer, SearchResult
from evolve.optimiser import DEFAULT_SIGMA0, CmaEs, CmaSettings, Optimiser, Vector
from evolve.outcome import Scored, cost
from evolve.records import SCHEMA_VERSION, CandidateRecord, RunRecord
from evolve.replay import Proposal, check_replay, check_same_search
from evolve.seeds import random_stream
from evolve.space import Baseline, SearchSpace
from evolve.versions import library_versions
from merge_engine.spec.recipe import recipe_data

MEAN = "mean"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """What a search is fixed to (the first block, journalled), and how far it may go this time.

    ``max_fevals`` is exact: it counts every candidate of the whole search, baselines and mean included.
    ``time_limit_s`` counts from this start; what runs when it ends is finished, and the mean is scored
    still.
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
    space: SearchSpace,
    settings: SearchSettings,
    fleet: Fleet,
    journal: Journal,
    observers: Sequence[Observer] = (),
) -> SearchResult:
    """Search until the budget is spent, the optimiser has converged, or somebody asks to stop (SIGINT,
    SIGTERM).

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
        return _Driver(space, settings, fleet, journal, observers, interrupt).run()


def new_run(
    space: SearchSpace,
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


def choose_winner(records: Iterable[CandidateRecord]) -> CandidateRecord | None:
    """The candidate with the lowest cost on the search items, the first of equals; None if none has a
    score.
    """
    scored = [record for record in records if isinstance(record.outcome, Scored)]
    return min(scored, key=lambda record: (cost(record.outcome), record.id), default=None)


class _Driver:
    """One run of `run_search`."""

    def __init__(
        self,
        space: SearchSpace,
        settings: SearchSettings,
        fleet: Fleet,
        journal: Journal,
        observers: Sequence[Observer],
        interrupt: Interrupt,
    ) -> None:
        self._space = space
        self._settings = settings
        self._fleet = fleet
        self._journal = journal
        self._observers = observers
        self._interrupt = interrupt
        candidates = journal.view.candidates
        self._records = {record.id: record for record in candidates}
        self._means = {record.id: record for record in candidates if record.origin == MEAN}
        self._best = choose_winner(record for record in candidates if record.origin != MEAN)
        self._next_id = 0
        self._places_left = self._places()
        self._failures = FailureWatch(settings.identical_failures)
        limit_s = math.inf if settings.time_limit_s is None else settings.time_limit_s
        self._deadline_s = time.monotonic() + limit_s

    def run(self) -> SearchResult:
        for observer in self._observers:
            observer.on_start(self._journal.view.run, self._journal.view.candidates)
        generation = 0
        optimiser, injected, records = self._baselines()
        while (stop := self._stop_reason() or optimiser.stopped()) is None:
            generation += 1
            records = self._generation(generation, optimiser, injected)
            injected = []
        mean = None
        if stop != "interrupted":
            mean = self._mean(generation, len(records), optimiser)
            stop = self._stop_reason() if self._interrupt.requested else stop
        result = SearchResult(
            best=self._best, mean=mean, evaluations=len(self._records), stopped_because=str(stop)
        )
        for observer in self._observers:
            observer.on_finish(result)
        return result

    def _places(self) -> int:
        """How many candidates this budget has room for beside the mean that ends it and those that ended
        smaller ones.
        """
        last_id = self._settings.max_fevals - 1
        return last_id - sum(number < last_id for number in self._means)

    def _stop_reason(self) -> str | None:
        if self._interrupt.requested:
            return "interrupted"
        if self._places_left == 0:
            return "budget"
        return "time" if time.monotonic() >= self._deadline_s else None

    def _baselines(self) -> tuple[Optimiser, list[tuple[Vector, float]], list[CandidateRecord]]:
        """Generation 0, the optimiser that starts from it, and what that is to be told of it."""
        baselines = self._space.baselines()
        origins = [f"baseline:{baseline.name}" for baseline in baselines]
        records = self._score(0, origins, lambda index: recipe_data(baselines[index].recipe))
        points = _points_in_space(baselines, records)
        start = self._space.start
        if self._settings.random_init:
            start = random_stream(self._settings.seed, "start").uniform(self._space.lower, self._space.upper)
        elif points:
            start, _ = points.pop(min(range(len(points)), key=lambda index: points[index][1]))
        optimiser = self._new_optimiser(start)
        optimiser.inject([vector for vector, _ in points])
        return optimiser, points, records

    def _new_optimiser(self, start: Vector) -> Optimiser:
        settings = CmaSettings(
            seed=self._settings.seed,
            popsize=self._settings.popsize,
            algorithm=self._settings.algorithm,
            sigma0=self._settings.sigma0,
            restarts=self._settings.restarts,
        )
        return CmaEs(settings, start=start, lower=self._space.lower, upper=self._space.upper)

    def _generation(
        self, generation: int, optimiser: Optimiser, injected: list[tuple[Vector, float]]
    ) -> list[CandidateRecord]:
        """Ask, score, tell. Returns the candidates that were scored before the search had to stop."""
        known = len(self._records)
        vectors = optimiser.ask()
        records = self._score(
            generation, ["sample"] * len(vectors), lambda index: self._decoded(vectors[index])
        )
        scored = [(vectors[record.index], cost(record.outcome)) for record in records]
        optimiser.tell([*injected, *scored])
        if len(records) == len(vectors) and len(self._records) > known:
            self._summarise(generation, records, optimiser)
        return records

    def _decoded(self, vector: Vector) -> dict[str, Any]:
        return recipe_data(self._space.decode(vector))

    def _summarise(self, generation: int, records: list[CandidateRecord], optimiser: Optimiser) -> None:
        summary = GenerationSummary(
            generation=generation,
            evaluations=len(self._records),
            candidates=tuple(records),
            mean_recipe=self._decoded(optimiser.mean()),
            sigma=optimiser.sigma(),
            std=optimiser.std(),
            best=self._best,
        )
        for observer in self._observers:
            observer.on_generation(summary)

    def _mean(self, generation: int, index: int, optimiser: Optimiser) -> CandidateRecord | None:
        """Score the mean, unless the search ended at this very point before."""
        recipe = self._decoded(optimiser.mean())
        for record in self._means.values():
            if (record.generation, record.index, record.recipe) == (generation, index, recipe):
                return record
        if len(self._records) >= self._settings.max_fevals:
            return None
        proposal = Proposal(
            id=max(self._records, default=-1) + 1,
            generation=generation,
            index=index,
            origin=MEAN,
            recipe=recipe,
        )
        self._evaluate([proposal], may_start=lambda: True)
        return self._records.get(proposal.id)

    def _score(
        self, generation: int, origins: Sequence[str], recipe_at: Callable[[int], dict[str, Any]]
    ) -> list[CandidateRecord]:
        """The outcomes of a generation, as far as the budget reaches, from the journal or from the fleet."""
        ids, missing = [], []
        for index, origin in enumerate(origins[: self._places_left]):
            ids.append(self._new_id())
            known = self._records.get(ids[-1])
            # A generation is drawn at once: where its first candidate comes out again, all do.
            if known is not None and index > 0:
                continue
            proposal = Proposal(
                id=ids[-1], generation=generation, index=index, origin=origin, recipe=recipe_at(index)
            )
            if known is None:
                missing.append(proposal)
            else:
                check_replay(proposal, known, self._journal)
        self._places_left -= len(ids)
        self._evaluate(missing, may_start=lambda: time.monotonic() < self._deadline_s)
        return [self._records[number] for number in ids if number in self._records]

    def _new_id(self) -> int:
        """Ids count up; those of the means of earlier, smaller budgets are taken."""
        while self._next_id in self._means:
            self._next_id += 1
        self._next_id += 1
        return self._next_id - 1

    def _evaluate(self, proposals: Sequence[Proposal], may_start: Callable[[], bool]) -> None:
        by_id = {proposal.id: proposal for proposal in proposals}
        run_jobs(
            [Job(id=proposal.id, recipe=proposal.recipe, split="search") for proposal in proposals],
            self._fleet,
            self._interrupt,
            self._observers,
            on_done=lambda done: self._record(by_id[done.job.id], done),
            may_start=may_start,
        )

    def _record(self, proposal: Proposal, done: Done) -> None:
        record = CandidateRecord(
            id=proposal.id,
            generation=proposal.generation,
            index=proposal.index,
            origin=proposal.origin,
            recipe=proposal.recipe,
            outcome=done.evaluation.outcome,
            measured=done.measured,
        )
        self._journal.append(record)
        self._records[record.id] = record
        if record.origin != MEAN:
            self._best = choose_winner([record] if self._best is None else [self._best, record])
        for observer in self._observers:
            observer.on_candidate(record)
        self._failures.note(record.outcome)


def _points_in_space(
    baselines: Sequence[Baseline], records: Iterable[CandidateRecord]
) -> list[tuple[Vector, float]]:
    """The scored baselines that are points of the space, each point once, with their costs."""
    points: dict[bytes, tuple[Vector, float]] = {}
    for record in records:
        vector = baselines[record.index].vector
        if vector is not None and isinstance(record.outcome, Scored):
            points.setdefault(vector.tobytes(), (vector, cost(record.outcome)))
    return list(points.values())
