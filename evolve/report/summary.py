"""One search, read from its journal's records and arranged for showing. Pure: no files, no drawing."""

from __future__ import annotations

from dataclasses import dataclass

from evolve.journal import JournalView
from evolve.outcome import Scored
from evolve.records import CandidateRecord, HoldoutRecord, RunRecord
from evolve.statistics import SOURCE_PREFIX, HoldoutTable, holdout_table
from fitness.results import Report

BASELINE_PREFIX = "baseline:"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredCandidate:
    """A candidate that has a score."""

    record: CandidateRecord
    report: Report

    @property
    def score(self) -> float:
        return self.report.score


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """``candidates`` by their number; ``holdout`` with the latest record of each name."""

    run: RunRecord
    candidates: tuple[CandidateRecord, ...]
    holdout: tuple[HoldoutRecord, ...]

    @property
    def scored(self) -> tuple[ScoredCandidate, ...]:
        return tuple(
            ScoredCandidate(record=record, report=record.outcome.report)
            for record in self.candidates
            if isinstance(record.outcome, Scored)
        )

    @property
    def failures(self) -> tuple[CandidateRecord, ...]:
        return tuple(record for record in self.candidates if not isinstance(record.outcome, Scored))

    @property
    def best(self) -> ScoredCandidate | None:
        """The highest search score; the earliest of equals."""
        return max(self.scored, key=lambda candidate: candidate.score, default=None)

    @property
    def best_source(self) -> ScoredCandidate | None:
        sources = (entry for entry in self.scored if entry.record.origin.startswith(SOURCE_PREFIX))
        return max(sources, key=lambda candidate: candidate.score, default=None)

    @property
    def table(self) -> HoldoutTable:
        return holdout_table(self.holdout)

    @property
    def elapsed_s(self) -> float:
        """Wall time in which candidates were being scored; pauses between sessions are not counted."""
        spans = sorted((m.started_s, m.started_s + m.wall_s) for m in (r.measured for r in self.candidates))
        total, end = 0.0, 0.0
        for start, stop in spans:
            total += max(0.0, stop - max(start, end))
            end = max(end, stop)
        return total


def summarise(view: JournalView) -> Summary:
    """Arrange a journal's records."""
    return Summary(
        run=view.run,
        candidates=tuple(sorted(view.candidates, key=lambda record: record.id)),
        holdout=tuple({record.name: record for record in view.holdout}.values()),
    )


def display_name(origin: str) -> str:
    """``baseline:source:path/to/math`` -> ``source math``; other origins and row names read as they are."""
    if origin.startswith(SOURCE_PREFIX):
        return f"source {short_model(origin.removeprefix(SOURCE_PREFIX))}"
    return origin.removeprefix(BASELINE_PREFIX).replace("_", " ")


def short_model(reference: str) -> str:
    """What a figure has room for of a model reference: the last folder, of a model and its adapter."""
    return "+".join(part.rstrip("/").rsplit("/", 1)[-1] for part in reference.split("+"))
