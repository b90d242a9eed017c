"""How sure the held-out scores are: 95 % intervals, alone and paired against the best source model.

A suite's score is a weighted sum of task means over disjoint sets of items, so its standard error is the root
of the weighted sum of the tasks' squared standard errors, and two candidates scored on the same items are
compared through their per-item differences, which removes what the items' difficulty adds to both.
Source: Miller, "Adding Error Bars to Evals" (arXiv 2411.00640): standard errors from the central limit
theorem, and the paired-differences standard error for comparing two models on the same questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from evolve.outcome import Failed
from evolve.records import HoldoutRecord
from fitness.results import Report, TaskResult

CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
SOURCE_PREFIX = "baseline:source:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A score and the half width of its 95 % interval; None where the metric is no mean over items."""

    value: float
    half_width: float | None

    @property
    def excludes_zero(self) -> bool:
        return self.half_width is not None and abs(self.value) > self.half_width


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One candidate on the held-out items; ``score`` is None for a failure, which ``failure`` explains."""

    name: str
    candidate_id: int
    score: Estimate | None
    versus_best_source: Estimate | None  # None for the best source itself, and where there is none
    tasks: tuple[tuple[str, Estimate], ...]
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldoutTable:
    """All rows, and the source model they are paired against: the best one *on the held-out items*.

    Choosing the opponent after the fact can only make the comparison harder for the merge.
    """

    rows: tuple[TableRow, ...]
    best_source: str | None
    without_interval: tuple[str, ...]  # tasks whose metric is no mean over items


def holdout_table(records: Sequence[HoldoutRecord]) -> HoldoutTable:
    """Scores with intervals for every record, in the records' order."""
    reports = {
        record.name: record.outcome.report for record in records if not isinstance(record.outcome, Failed)
    }
    sources = {name: report for name, report in reports.items() if name.startswith(SOURCE_PREFIX)}
    best_source = max(sources, key=lambda name: sources[name].score, default=None)
    opponent = sources[best_source] if best_source is not None else None
    irregular = {task.task for report in reports.values() for task in report.tasks if _items(task) is None}
    return HoldoutTable(
        rows=tuple(_row(record, opponent, is_opponent=record.name == best_source) for record in records),
        best_source=best_source,
        without_interval=tuple(sorted(irregular)),
    )


def estimate(report: Report) -> Estimate:
    """The suite's score with its interval."""
    return Estimate(
        value=report.score, half_width=_combine(report.tasks, [_items(task) for task in report.tasks])
    )


def paired_difference(report: Report, other: Report) -> Estimate:
    """``report`` minus ``other``, item by item; without interval unless both scored the very same items."""
    differences = [_differences(mine, theirs) for mine, theirs in zip(report.tasks, other.tasks, strict=True)]
    return Estimate(value=report.score - other.score, half_width=_combine(report.tasks, differences))


def _row(record: HoldoutRecord, opponent: Report | None, *, is_opponent: bool) -> TableRow:
    if isinstance(record.outcome, Failed):
        return TableRow(
            name=record.name,
            candidate_id=record.candidate_id,
            score=None,
            versus_best_source=None,
            tasks=(),
            failure=record.outcome.reason,
        )
    report = record.outcome.report
    return TableRow(
        name=record.name,
        candidate_id=record.candidate_id,
        score=estimate(report),
        versus_best_source=None if opponent is None or is_opponent else paired_difference(report, opponent),
        tasks=tuple((task.task, _task_estimate(task)) for task in report.tasks),
    )


def _task_estimate(task: TaskResult) -> Estimate:
    error = _squared_error(_items(task))
    return Estimate(value=task.value, half_width=None if error is None else _Z * error**0.5)


def _items(task: TaskResult) -> NDArray[np.float64] | None:
    """The per-item values, shape (items,), if the task's value is their mean; None for any other metric."""
    if not task.items or any(item is None for item in task.items):
        return None
    items = np.array(task.items, dtype=np.float64)
    return items if np.isclose(items.mean(), task.value, rtol=1e-6, atol=1e-9) else None


def _differences(mine: TaskResult, theirs: TaskResult) -> NDArray[np.float64] | None:
    ours, others = _items(mine), _items(theirs)
    if ours is None or others is None or mine.item_ids != theirs.item_ids:
        return None
    return ours - others


def _squared_error(items: NDArray[np.float64] | None) -> float | None:
    """Squared standard error of the mean; needs two items."""
    if items is None or len(items) < 2:
        return None
    return float(items.var(ddof=1) / len(items))


def _combine(tasks: Sequence[TaskResult], samples: Sequence[NDArray[np.float64] | None]) -> float | None:
    """Half width of the interval of the weighted sum of the samples' means."""
    total = 0.0
    for task, sample in zip(tasks, samples, strict=True):
        error = _squared_error(sample)
        if error is None and task.weight != 0:
            return None
        total += task.weight**2 * (error or 0.0)
    return float(_Z * total**0.5)
