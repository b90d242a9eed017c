"""What a worker does: turn one recipe into one outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from evolve.outcome import Outcome
from evolve.records import Split


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """What a worker process is told about itself before it builds its evaluator."""

    name: str
    threads: int
    device: str  # "cpu" or "cuda": a worker sees only its own GPU
    memory_share: float  # of the memory that is free on its machine, in (0, 1]
    logs: Path | None  # folder for its log file; None on a machine that does not see the storage path
    folder: Path | None = None  # the driver's working directory, which relative paths are meant from
    device_share: float = 1.0  # of its GPU, where it has one, in (0, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a worker knows once it is prepared; the preflight shows it."""

    device: str
    threads: int
    batch_size: int  # sequences per forward pass that fit its memory
    memory_bytes: int  # of this worker alone, on its machine; or the device's allocated memory
    probe_s: float  # seconds that one candidate takes
    search_items: int
    suite_digest: str  # of every item that is asked, on both splits


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One recipe's outcome and where its seconds went; ``forward_s`` is the part inside the model's forward
    passes. ``traceback``: of a failure, for the log.
    """

    outcome: Outcome
    merge_s: float = 0.0
    score_s: float = 0.0
    forward_s: float = 0.0
    traceback: str | None = None


class Evaluator(Protocol):
    """Lives in one worker process and holds what is worth keeping between candidates."""

    def prepare(self) -> Facts:
        """Load everything that candidates share. Raises if this worker cannot work."""
        ...

    def set_batch_size(self, batch_size: int) -> None:
        """Use this batch size from now on. All workers share one: padding reaches a score's last bit."""
        ...

    def evaluate(self, recipe: Mapping[str, Any], split: Split) -> Evaluation:
        """Score one recipe (plain merge-config data). What goes wrong with the candidate is its ``Failed``
        outcome.
        """
        ...


class EvaluatorFactory(Protocol):
    """Picklable; called once in each worker process."""

    def __call__(self, context: WorkerContext) -> Evaluator: ...
