"""The typed content of a journal. Each class is one kind of line; `evolve.journal` reads and writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from evolve.outcome import Outcome

SCHEMA_VERSION = 1

Split = Literal["search", "holdout"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateRecord:
    """One candidate of the search and its outcome on the search items.

    ``generation`` and ``index`` place it in the ask/tell sequence. ``origin`` is ``sample``, ``mean`` or
    ``baseline:<name>`` (``baseline:source:<model>``, ``baseline:uniform``, ``baseline:task_arithmetic``).
    ``recipe`` is the decoded merge config as plain YAML data, never raw genes.
    """

    id: int
    generation: int
    index: int
    origin: str
    recipe: dict[str, Any]
    outcome: Outcome
    measured: Measured


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldoutRecord:
    """One row of the final report: a candidate already in the journal, scored on the held-out items."""

    name: str  # "best", "mean", or a baseline's origin
    candidate_id: int
    outcome: Outcome
    measured: Measured


Record = RunRecord | CandidateRecord | HoldoutRecord
