"""Errors of the merge engine.

MergeError
├── RecipeError      the recipe itself is wrong (unknown key, value out of range): carries all problems
├── CheckpointError  a model folder or file cannot be read, or is not what it claims to be
├── PlanError        the recipe and the models do not fit together (shapes, layers, missing tensors)
└── OutputError      the result cannot be written
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the user's input: where, what, and what to do about it."""

    where: str  # path of keys, e.g. "genome.models[1]"
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.remedy})" if self.remedy else "")


class MergeError(Exception):
    """Base of every error that the merge engine raises on purpose."""


class RecipeError(MergeError):
    """The recipe is not valid; ``problems`` lists everything found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class CheckpointError(MergeError):
    """A model cannot be read."""


class PlanError(MergeError):
    """Recipe and models do not fit together; ``problems`` lists everything found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class OutputError(MergeError):
    """The merged model cannot be written."""
