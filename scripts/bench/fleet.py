"""How much of their time workers spend on candidates: whole searches on real Ray workers whose candidates
only sleep, and on simulated ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.simulated_fleet import Conditions, Shares, SimulatedFleet, any_outcome, log_normal

from evolve.evaluator import Evaluation, Facts, WorkerContext
from evolve.fleet import Fleet, Job
from evolve.fleet_settings import FleetSettings
from evolve.journal import Journal, read_journal
from evolve.ledger import recipe_digest
from evolve.ray_fleet import RayFleet
from evolve.records import SAMPLE, CandidateRecord, Split
from evolve.search import SearchSettings, new_run, run_search
from genome import ModelFacts, build_space, parse_search_file
from genome.space import Space

_SEARCH_FILE = """
genome:
  models: [a, b, c]
  merge_method: ties
  base_model: base
  layer_granularity: 2
tasks: [anything]
"""
_LAYERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One search: who schedules, how many candidates a generation has, and how many there are in all."""

    scheduler: str
    popsize: int
    candidates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleeping:
    """Builds evaluators that sleep for a log-normal time and score anything.

    ``spread``: the standard deviation as a share of the mean.
    """

    mean_s: float
    spread: float

    def __call__(self, context: WorkerContext) -> SleepingEvaluator:
        return SleepingEvaluator(self, context)


class SleepingEvaluator:
    def __init__(self, sleeping: Sleeping, context: WorkerContext) -> None:
        self._sleeping = sleeping
        self._context = context

    def prepare(self) -> Facts:
        return Facts(
            device="cpu",
            threads=self._context.threads,
            batch_size=1,
            memory_bytes=0,
            probe_s=self._sleeping.mean_s,
            search_items=1,
            suite_digest="",
        )

    def set_batch_size(self, batch_size: int) -> None:
        pass

    def evaluate(self, recipe: Mapping[str, Any], split: Split) -> Evaluation:
        seed = int.from_bytes(recipe_digest(recipe), "big")
        begin = time.perf_counter()
        time.sleep(log_normal(self._sleeping.mean_s, self._sleeping.spread, seed))
        outcome = any_outcome(Job(id=0, recipe=dict(recipe), split=split))
        return Evaluation(outcome=outcome, score_s=time.perf_counter() - begin)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Shares of all workers' time, in which candidates / (workers x time) is ``done``, with a candidate's
    mean duration as the unit: ``steady``, from the first sample to the last generation, and over the
    ``whole`` search, with its baselines at the beginning and its mean at the end.
    """

    workers: int
    plan: Plan
    steady: Shares
    whole: Shares


def measure_ray(workers: int, plans: Sequence[Plan], sleeping: Sleeping, folder: Path) -> list[Timing]:
    """One search after another on that many Ray workers of this machine."""
    with RayFleet(sleeping, FleetSettings(num_workers=workers)) as fleet:
        return [_timing(workers, plan, _search(fleet, plan, folder)) for plan in plans]


def measure_simulated(
    conditions: Conditions, plan: Plan, folder: Path, *, clock: Callable[[], float] | None = None
) -> Timing:
    """The same in virtual time; ``clock`` as for `SimulatedFleet`."""
    fleet = SimulatedFleet(conditions, clock=clock)
    records = _search(fleet, plan, folder)
    return Timing(
        workers=conditions.workers,
        plan=plan,
        steady=fleet.shares(*_steady(records)),
        whole=fleet.shares(*_whole(records)),
    )


def _timing(workers: int, plan: Plan, records: Sequence[CandidateRecord]) -> Timing:
    """Of workers that never died."""
    spans = [(r.measured.started_s, r.measured.started_s + r.measured.score_s) for r in records]

    def shares(begin_s: float, end_s: float) -> Shares:
        spent_s = sum(max(0.0, min(end, end_s) - max(begin, begin_s)) for begin, end in spans)
        done = spent_s / (workers * (end_s - begin_s))
        return Shares(done=done, lost=0.0, starting=0.0, idle=1 - done)

    steady, whole = shares(*_steady(records)), shares(*_whole(records))
    return Timing(workers=workers, plan=plan, steady=steady, whole=whole)


def _search(fleet: Fleet, plan: Plan, folder: Path) -> tuple[CandidateRecord, ...]:
    """A whole search; its journal is ``folder``'s only for so long."""
    space = _space()
    settings = SearchSettings(
        seed=0, popsize=plan.popsize, scheduler=plan.scheduler, max_fevals=plan.candidates
    )
    path = folder / "journal.jsonl"
    run = new_run(space, settings, batch_size=1, inputs={}, started_at="now")
    with closing(Journal.create(path, run)) as journal:
        run_search(space, settings, fleet, journal)
    records = tuple(record for record in read_journal(path).candidates if record.evaluated)
    path.unlink()
    return records


def _space() -> Space:
    facts = ModelFacts(num_layers=_LAYERS, dtype="bfloat16", model_type="any", layer_tensors=())
    return build_space(parse_search_file(_SEARCH_FILE), dict.fromkeys(("a", "b", "c", "base"), facts))


def _steady(records: Sequence[CandidateRecord]) -> tuple[float, float]:
    """From the first sample's start to the start of the last generation: whole generations."""
    starts: dict[int, float] = {}
    for record in records:
        if record.origin == SAMPLE and record.measured.attempts == 1:
            begun_s = record.measured.started_s
            starts[record.generation] = min(begun_s, starts.get(record.generation, begun_s))
    return starts[min(starts)], starts[max(starts)]


def _whole(records: Sequence[CandidateRecord]) -> tuple[float, float]:
    measured = [record.measured for record in records]
    return min(m.started_s for m in measured), max(m.started_s + m.wall_s for m in measured)
