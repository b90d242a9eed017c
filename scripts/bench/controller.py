"""What the controller itself costs: a long search with many dimensions whose candidates take no time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evolve.evaluator import Evaluation
from evolve.fleet import Done, Job, WorkerEvent
from evolve.journal import Journal
from evolve.optimisers import default_popsize
from evolve.outcome import Scored
from evolve.search import SearchSettings, new_run, run_search
from fitness.results import Report, TaskResult
from genome import ModelFacts, build_space, parse_search_file

_WORKERS = 8
_TASKS, _ITEMS = 3, 200
_SEARCH_FILE = """
genome:
  models: [a, b, c]
  merge_method: ties
  base_model: base
  layer_granularity: 1
  filters: [self_attn, mlp]
tasks: [anything]
"""
_GENES_PER_LAYER = 18  # 3 models x (weight, density) x (2 filters and the rest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    dimensions: int
    candidates: int
    journal_bytes: int
    per_candidate_s: float  # ask, decode, journal, tell
    resume_s: float


class InstantFleet:
    """Scores at once, with as many item results as a real search has."""

    capacity = _WORKERS

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def wait(self, timeout_s: float) -> list[Done]:
        jobs, self._jobs = self._jobs, []
        return [
            Done(job=job, evaluation=self._evaluation(), worker="none", started_s=0.0, wall_s=0.0, attempts=1)
            for job in jobs
        ]

    def events(self) -> list[WorkerEvent]:
        return []

    def close(self) -> None:
        pass

    def _evaluation(self) -> Evaluation:
        items = (self._random.random((_TASKS, _ITEMS)) < self._random.random()).astype(float)
        tasks = tuple(
            TaskResult(
                task=f"task-{number}",
                metric="acc,none",
                weight=1.0,
                value=float(row.mean()),
                items=tuple(row.tolist()),
                item_ids=tuple(range(_ITEMS)),
            )
            for number, row in enumerate(items)
        )
        outcome = Scored(report=Report(tasks=tasks))
        return Evaluation(outcome=outcome, merge_s=0.0, score_s=0.0, forward_s=0.0)


def measure(folder: Path, dimensions: int, candidates: int) -> Timing:
    """Search, then resume the finished search; the journal stays in ``folder``."""
    facts = ModelFacts(
        num_layers=-(-dimensions // _GENES_PER_LAYER), dtype="bfloat16", model_type="any", layer_tensors=()
    )
    space = build_space(parse_search_file(_SEARCH_FILE), dict.fromkeys(("a", "b", "c", "base"), facts))
    popsize = default_popsize(len(space.start), _WORKERS)
    settings = SearchSettings(seed=0, popsize=popsize, max_fevals=candidates)
    path = folder / "journal.jsonl"
    started = time.perf_counter()
    journal = Journal.create(path, new_run(space, settings, batch_size=1, inputs={}, started_at="now"))
    run_search(space, settings, InstantFleet(), journal)
    journal.close()
    searched = time.perf_counter()
    journal = Journal.open(path)
    result = run_search(space, settings, InstantFleet(), journal)
    journal.close()
    return Timing(
        dimensions=len(space.start),
        candidates=result.evaluations,
        journal_bytes=path.stat().st_size,
        per_candidate_s=(searched - started) / candidates,
        resume_s=time.perf_counter() - searched,
    )
