"""A fleet without processes: jobs run in the caller's, the last one first: order must not matter."""

from __future__ import annotations

import time

from evolve.evaluator import Evaluator
from evolve.fleet import Done, Job, WorkerEvent


class InlineFleet:
    def __init__(self, evaluator: Evaluator, capacity: int = 2) -> None:
        self.capacity = capacity
        self.evaluated: list[Job] = []
        self._evaluator = evaluator
        self._jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        assert len(self._jobs) < self.capacity, "the driver sent more than there is room for"
        self._jobs.append(job)

    def wait(self, timeout_s: float) -> list[Done]:
        job = self._jobs.pop()
        self.evaluated.append(job)
        return [
            Done(
                job=job,
                evaluation=self._evaluator.evaluate(job.recipe, job.split),
                worker="inline",
                started_s=time.time(),
                wall_s=0.0,
                attempts=1,
            )
        ]

    def events(self) -> list[WorkerEvent]:
        return []

    def close(self) -> None:
        self._jobs.clear()
