"""The typed content of a journal. Each class is one kind of line; `evolve.journal` reads and writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from evolve.outcome import Outcome

SCHEMA_VERSION = 3  # 2: candidates with equal recipes share an outcome; 3: when workers came and went

SAMPLE = "sample"  # origin of a point drawn from the search distribution
MEAN = "mean"  # origin of the mean of the search distribution
BASELINE_PREFIX = "baseline:"  # origins of what the search has to beat
INITIAL_PREFIX = "initial:"  # origins of recipes that the search file names

Split = Literal["search", "holdout"]
WorkerEventKind = Literal["started", "died", "hung", "lost"]  # lost: gone for good, without a replacement


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """First line of a journal: what the whole search is fixed to. A resumed run must agree with it.

    ``inputs``: digests of what lies outside the search file, by a name for people: each model's files, the
    items of the tasks.
    """

    schema: int
    seed: int
    popsize: int
    batch_size: int
    dimensions: int
    inputs: dict[str, str]
    versions: dict[str, str]
    started_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What differs from run to run and is no part of the result: times in seconds, places, attempts."""

    worker: str
    started_s: float  # since the epoch
    wall_s: float
    merge_s: float
    score_s: float
    forward_s: float  # inside the model's own forward passes
    attempts: int

    @classmethod
    def nothing(cls, now_s: float) -> Measured:
        """Of an outcome that took no work."""
        return cls(
            worker="", started_s=now_s, wall_s=0.0, merge_s=0.0, score_s=0.0, forward_s=0.0, attempts=0
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateRecord:
    """One candidate of the search and its outcome on the search items.

    ``generation`` and ``index`` place it in the ask/tell sequence: a sample is the ``index``-th drawn after
    ``generation - 1`` tells. ``origin`` is ``sample``, ``mean``, ``baseline:<name>``
    (``baseline:source:<model>``, ``baseline:uniform``, ``baseline:task_arithmetic``) or ``initial:<file>``.
    ``recipe`` is the decoded merge config as plain YAML data, never raw genes; it is empty where the space
    refused to make one. ``copied_from``: the earlier candidate with an equal recipe whose outcome this is.
    """

    id: int
    generation: int
    index: int
    origin: str
    recipe: dict[str, Any]
    outcome: Outcome
    measured: Measured
    copied_from: int | None = None

    @property
    def evaluated(self) -> bool:
        """Whether a worker scored it (or failed to), which is what a budget counts."""
        return self.copied_from is None and bool(self.recipe)


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldoutRecord:
    """One row of the final report: a candidate already in the journal, scored on the held-out items."""

    name: str  # "best", "mean", or the origin of a baseline or an initial recipe
    candidate_id: int
    outcome: Outcome
    measured: Measured


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """When a worker came or went: nothing that a result depends on. ``detail`` is one line for people.

    ``lost_s``: how long it had been at a candidate that it did not finish.
    """

    worker: str
    event: WorkerEventKind
    at_s: float  # since the epoch
    lost_s: float = 0.0
    detail: str


Record = RunRecord | CandidateRecord | HoldoutRecord | WorkerRecord
