"""What one start of a search works with and is bound by, however its candidates are scheduled."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from evolve.fleet import Fleet
from evolve.interrupt import Interrupt
from evolve.journal import Journal
from evolve.ledger import Ledger
from evolve.observer import GenerationSummary, Observer
from evolve.optimisers import DEFAULT_SIGMA0, Optimiser
from evolve.records import CandidateRecord
from evolve.scribe import Scribe, decoded
from genome.space import Space

REPEATED_GENERATIONS = 20  # without a new recipe, and the search stops


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """What a search is fixed to (the first block), and how far it may go this time.

    ``max_fevals`` is exact: it counts every candidate of the whole search that a worker scores, baselines
    and mean included; not those whose recipes were scored before. ``time_limit_s`` counts from this start;
    what runs when it ends is finished, and the mean is scored still.
    """

    seed: int
    popsize: int
    algorithm: str = "cma"
    sigma0: float = DEFAULT_SIGMA0
    restarts: int = 0
    random_init: bool = False
    scheduler: str = "sync"

    max_fevals: int
    time_limit_s: float | None = None
    identical_failures: int = 8  # one after another, and the search stops


class Limits:
    """Why a search has to stop, whatever the optimiser thinks."""

    def __init__(self, settings: SearchSettings, interrupt: Interrupt) -> None:
        self._interrupt = interrupt
        limit_s = math.inf if settings.time_limit_s is None else settings.time_limit_s
        self._deadline_s = time.monotonic() + limit_s
        self._nothing_new = 0  # generations in a row

    def note(self, told: Sequence[CandidateRecord]) -> None:
        """A generation was told."""
        is_new = any(record.evaluated for record in told)
        self._nothing_new = 0 if is_new else self._nothing_new + 1

    def in_time(self) -> bool:
        return time.monotonic() < self._deadline_s

    def reason(self, places_left: int) -> str | None:
        """Why no more candidates are to be drawn, if so. ``places_left``: of the budget, the mean's apart."""
        if self._interrupt.requested:
            return "interrupted"
        if places_left <= 0:
            return "budget"
        if self._nothing_new >= REPEATED_GENERATIONS:
            return f"no new recipe in the last {self._nothing_new} generations"
        return None if self.in_time() else "time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One start of a search, from its first question to the fleet to its last."""

    space: Space
    settings: SearchSettings
    fleet: Fleet
    journal: Journal
    observers: Sequence[Observer]
    interrupt: Interrupt
    ledger: Ledger
    scribe: Scribe
    limits: Limits

    def announce(self, generation: int, records: Sequence[CandidateRecord], optimiser: Optimiser) -> None:
        """Tell the observers of a generation that the optimiser was told."""
        summary = GenerationSummary(
            generation=generation,
            evaluations=self.ledger.evaluations,
            candidates=tuple(records),
            mean_recipe=decoded(self.space, optimiser.mean()).recipe,
            sigma=optimiser.sigma(),
            std=optimiser.std(),
            best=self.ledger.best,
        )
        for observer in self.observers:
            observer.on_generation(summary)
