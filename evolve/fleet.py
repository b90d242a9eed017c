"""Who does the work: jobs in, finished jobs out, in any order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from evolve.evaluator import Evaluation
from evolve.records import Measured, Split, WorkerEventKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One recipe to be scored. ``id`` is the caller's and unique among the jobs in flight."""

    id: int
    recipe: dict[str, Any]
    split: Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """One finished job, whatever its outcome; ``attempts`` counts the workers that died on it, too."""

    job: Job
    evaluation: Evaluation
    worker: str
    started_s: float  # since the epoch
    wall_s: float
    attempts: int

    @property
    def measured(self) -> Measured:
        return Measured(
            worker=self.worker,
            started_s=self.started_s,
            wall_s=self.wall_s,
            merge_s=self.evaluation.merge_s,
            score_s=self.evaluation.score_s,
            forward_s=self.evaluation.forward_s,
            attempts=self.attempts,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEvent:
    """Something that happened to a worker; ``detail`` is one line for people. ``lost_s``: how long it had
    been at a candidate that it did not finish.
    """

    worker: str
    kind: WorkerEventKind
    at_s: float  # since the epoch
    detail: str
    lost_s: float = 0.0


class Fleet(Protocol):
    """Workers that score jobs. One that dies or hangs is the fleet's own business: its job is retried."""

    @property
    def capacity(self) -> int:
        """Jobs that can run at the same time."""
        ...

    def submit(self, job: Job) -> None:
        """Take a job; more than ``capacity`` wait inside."""
        ...

    def wait(self, timeout_s: float) -> list[Done]:
        """Jobs finished since the last call, after at most ``timeout_s``. Raises `FleetError` if no worker
        is left.
        """
        ...

    def events(self) -> list[WorkerEvent]:
        """What happened to workers since the last call."""
        ...

    def close(self) -> None:
        """Stop all workers; jobs in flight are dropped. May be called twice."""
        ...
