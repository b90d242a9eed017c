"""What a model scored, item by item. No heavy imports: the driver reads these without lm-eval or torch."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """One task's outcome.

    ``value`` is the task's aggregated metric as lm-eval reports it. ``items`` holds the metric's per-item
    value in the task's item order (None where the metric has no number for a single item), ``item_ids`` the
    index of each item among the task's documents.
    """

    task: str
    metric: str
    weight: float
    value: float
    items: tuple[float | None, ...]
    item_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.items) != len(self.item_ids):
            raise ValueError(
                f"task {self.task!r}: {len(self.items)} item values for {len(self.item_ids)} items"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Every task of a suite, in the suite's order; ``score`` is higher-is-better."""

    tasks: tuple[TaskResult, ...]

    @property
    def score(self) -> float:
        """Weighted sum of the task values (a negative weight minimises its metric)."""
        return math.fsum(task.weight * task.value for task in self.tasks)
