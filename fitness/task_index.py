"""Are these task and metric names real? Answered from the YAML text alone, without importing lm-eval."""

from __future__ import annotations

from fitness.errors import SuiteProblem
from fitness.suite import SuiteSpec


def check_suite(suite: SuiteSpec) -> tuple[SuiteProblem, ...]:
    """Every unknown task and metric of the suite, with close matches; empty if none was found."""
    raise NotImplementedError


def only_search_paths(suite: SuiteSpec) -> bool:
    """Whether every task is found in the suite's own search paths, so that lm-eval's index is not needed."""
    raise NotImplementedError
