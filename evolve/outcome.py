"""The outcome of one candidate, as a type."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fitness.results import Report

Stage = Literal["decode", "worker", "merge", "score", "timeout"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The candidate was merged and scored; ``report.score`` is a finite number."""

    report: Report

    def __post_init__(self) -> None:
        if not math.isfinite(self.report.score):
            raise ValueError(f"a scored candidate needs a finite score, not {self.report.score}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The candidate has no score. ``reason`` is one line for people; ``stage`` says where it went wrong."""

    reason: str
    stage: Stage


Outcome: TypeAlias = Scored | Failed


def cost(outcome: Outcome) -> float:
    """Lower is better, for the optimiser: the only place where the sign of a score is flipped."""
    return -outcome.report.score if isinstance(outcome, Scored) else math.inf
