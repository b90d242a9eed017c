"""Errors of the fitness room.

FitnessError
├── SuiteError      the tasks cannot be built as asked: carries all problems at once
├── ModelError      the resident model cannot be built, or its weights do not match the stream
├── StreamError     a stream of weights broke off in a process of its own
├── OutOfMemory     a batch does not fit: the batch size must go down
└── ScoringError    a task gave no usable number for this model
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteProblem:
    """One thing wrong with a task suite: which task, what, and what to do about it."""

    task: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"task {self.task!r}: {self.what}" + (f" ({self.remedy})" if self.remedy else "")


class FitnessError(Exception):
    """Base of every error that this room raises on purpose."""


class SuiteError(FitnessError):
    """The suite cannot be built; ``problems`` lists everything found."""

    def __init__(self, problems: Sequence[SuiteProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ModelError(FitnessError):
    """The resident model cannot be built, or the tensors it was given are not its own."""


class StreamError(FitnessError):
    """A stream of weights broke off in another process: its error, and below it the traceback from there."""


class OutOfMemory(FitnessError):
    """The device had no room for a batch."""


class ScoringError(FitnessError):
    """The model ran, but a task's metric is not a finite number."""

    def __init__(self, task: str, metric: str, reason: str) -> None:
        self.task = task
        self.metric = metric
        super().__init__(f"task {task!r}, metric {metric!r}: {reason}")
