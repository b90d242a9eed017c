"""Journals made up for tests: a search over two sources and three tasks with known scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evolve.journal import Journal, JournalView
from evolve.outcome import Failed, Outcome, Scored
from evolve.records import SCHEMA_VERSION, CandidateRecord, HoldoutRecord, Measured, RunRecord
from evolve.storage import StoragePath
from fitness.results import Report, TaskResult

SEARCH_FILE = """\
genome: {models: [a, b], merge_method: linear}
tasks: [t]
budget: {candidates: 80}
"""
TASKS = ("sums", "words", "facts")
BASELINES = ("source:models/math", "source:models/prose", "uniform", "task_arithmetic")


def run_record(popsize: int = 8) -> RunRecord:
    return RunRecord(
        schema=SCHEMA_VERSION,
        seed=3,
        popsize=popsize,
        batch_size=16,
        dimensions=12,
        inputs={},
        versions={"cma": "4.5.0", "torch": "2.13.0"},
        started_at="2026-01-02T03:04:05+00:00",
    )


def task_result(task: str, items: Sequence[float], weight: float = 1.0) -> TaskResult:
    values = tuple(float(item) for item in items)
    return TaskResult(
        task=task,
        metric="acc,none",
        weight=weight,
        value=float(np.mean(values)),
        items=values,
        item_ids=tuple(range(len(values))),
    )


def scored(*accuracies: float, items: int = 40, seed: int = 0) -> Scored:
    """An outcome whose tasks have these accuracies; which items are right is drawn by the seed."""
    generator = np.random.default_rng(seed)
    tasks = []
    for name, accuracy in zip(TASKS, accuracies, strict=False):
        right = generator.permutation(items) < round(accuracy * items)
        tasks.append(task_result(name, right.astype(float).tolist()))
    return Scored(report=Report(tasks=tuple(tasks)))


def recipe(weight: float, layers: int = 8, group: int = 2) -> dict[str, Any]:
    """A sliced TIES merge whose parameters change over the layers and under a filter."""

    def parameters(shift: float) -> dict[str, Any]:
        attention = {"filter": "self_attn", "value": round(weight * (0.4 + shift), 4)}
        return {
            "weight": [attention, {"value": round(weight * (1 - shift), 4)}],
            "density": round(0.3 + 0.6 * shift, 4),
        }

    def piece(start: int) -> dict[str, Any]:
        layer_range = [start, start + group]
        share = start / layers
        return {
            "sources": [
                {"model": "models/base", "layer_range": layer_range},
                {"model": "models/math", "layer_range": layer_range, "parameters": parameters(share)},
                {"model": "models/prose", "layer_range": layer_range, "parameters": parameters(1 - share)},
            ]
        }

    return {
        "merge_method": "ties",
        "base_model": "models/base",
        "slices": [piece(start) for start in range(0, layers, group)],
        "dtype": "bfloat16",
    }


def measured(number: int, workers: int = 2) -> Measured:
    return Measured(
        worker=f"worker-{number % workers}",
        started_s=1_700_000_000.0 + 1.5 * (number // workers),
        wall_s=1.4,
        merge_s=0.1,
        score_s=1.2,
        forward_s=1.15,
        attempts=1,
    )


def candidate(number: int, origin: str = "sample", outcome: Outcome | None = None) -> CandidateRecord:
    return CandidateRecord(
        id=number,
        generation=number // 8,
        index=number % 8,
        origin=origin,
        recipe=recipe(0.5 + number / 100),
        outcome=scored(0.5, 0.5, 0.5, seed=number) if outcome is None else outcome,
        measured=measured(number),
    )


def holdout(name: str, number: int, outcome: Outcome) -> HoldoutRecord:
    return HoldoutRecord(name=name, candidate_id=number, outcome=outcome, measured=measured(number))


def view(count: int = 40, *, with_holdout: bool = True) -> JournalView:
    """Scores that rise over ``count`` candidates, one failure, the mean last."""
    generator = np.random.default_rng(1)
    candidates = [
        candidate(
            number, f"baseline:{name}", scored(0.5 - 0.05 * number, 0.4, 0.2 + 0.05 * number, seed=number)
        )
        for number, name in enumerate(BASELINES)
    ]
    for number in range(len(BASELINES), count - 1):
        level = 0.35 + 0.4 * number / count + generator.normal(0, 0.06, 3)
        candidates.append(candidate(number, outcome=scored(*np.clip(level, 0, 1).tolist(), seed=number)))
    candidates[10] = candidate(10, outcome=Failed(reason="weights are not finite", stage="merge"))
    candidates.append(candidate(count - 1, "mean", scored(0.72, 0.7, 0.74, seed=count)))
    rows = [holdout("best", count - 2, scored(0.72, 0.71, 0.73, items=200, seed=1))]
    rows.append(holdout("mean", count - 1, scored(0.7, 0.68, 0.72, items=200, seed=2)))
    for number, name in enumerate(BASELINES):
        outcome = scored(0.5 - 0.05 * number, 0.4, 0.2 + 0.05 * number, items=200, seed=number + 3)
        rows.append(holdout(f"baseline:{name}", number, outcome))
    return JournalView(
        run=run_record(), candidates=tuple(candidates), holdout=tuple(rows) if with_holdout else ()
    )


def written(folder: Path, content: JournalView) -> StoragePath:
    """A storage path with a search file of 80 candidates and a journal of this content."""
    storage = StoragePath(folder)
    folder.mkdir(parents=True, exist_ok=True)
    storage.search_file.write_text(SEARCH_FILE, encoding="utf-8")
    journal = Journal.create(storage.journal, content.run)
    for record in (*content.candidates, *content.holdout):
        journal.append(record)
    journal.close()
    return storage
