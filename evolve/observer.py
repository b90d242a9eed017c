"""Who watches a search: progress views, trackers, the export of the best so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evolve.fleet import WorkerEvent
from evolve.records import CandidateRecord, RunRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSummary:
    """The state after one told generation. ``std`` is the search distribution's per coordinate, in the
    space's units.
    """

    generation: int
    evaluations: int  # scored candidates so far
    candidates: tuple[CandidateRecord, ...]  # that were told, in order
    mean_recipe: dict[str, Any]
    sigma: float
    std: NDArray[np.float64]  # (D,)
    best: CandidateRecord | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """How a search ended. ``best`` is the best of all but the mean, by cost on the search items."""

    best: CandidateRecord | None
    mean: CandidateRecord | None
    evaluations: int
    stopped_because: str  # "budget", "time", "interrupted", or the optimiser's own reason


class Observer:
    """Override what is of interest. Called from the driver's thread; what is raised here ends the search."""

    def on_start(self, run: RunRecord, replayed: tuple[CandidateRecord, ...]) -> None:
        """The search starts, or goes on after ``replayed``."""

    def on_candidate(self, record: CandidateRecord) -> None:
        """A candidate was scored (or failed) and is in the journal."""

    def on_generation(self, summary: GenerationSummary) -> None:
        """The optimiser was told a generation that was not complete before."""

    def on_worker(self, event: WorkerEvent) -> None:
        """A worker started, died or was replaced."""

    def on_finish(self, result: SearchResult) -> None:
        """The search ended in good order."""
