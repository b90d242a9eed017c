"""Errors of the genome.

GenomeError
├── SearchFileError  the search file (with the models' sizes) does not make a search; carries all problems
├── VectorError      a vector is not a point of the space
└── RefusedRecipe    a point of the space combines values that make no merge; carries all problems
"""

from __future__ import annotations

from collections.abc import Sequence

from merge_engine.errors import Problem


class GenomeError(Exception):
    """Base of every error that the genome raises on purpose."""


class SearchFileError(GenomeError):
    """The search file is not valid; ``problems`` lists everything found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class VectorError(GenomeError):
    """A vector has the wrong shape, is not finite, or lies outside the bounds."""


class RefusedRecipe(GenomeError):
    """The values at a point of the space do not fit together; ``problems`` says why."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(str(problem) for problem in self.problems))
