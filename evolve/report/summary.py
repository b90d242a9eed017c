"""One search, read from its journal's records and arranged for showing. Pure: no files, no drawing."""

from __future__ import annotations

from dataclasses import dataclass

from evolve.journal import JournalView
from evolve.outcome import Scored
from evolve.records import (
    BASELINE_PREFIX,
    INITIAL_PREFIX,
    CandidateRecord,
    HoldoutRecord,
    RunRecord,
    WorkerRecord,
)
from evolve.report.worktime import WorkTime, work_time
from evolve.statistics import SOURCE_PREFIX, HoldoutTable, holdout_table
from fitness.results import Report

_ONE_OF_MANY = ("final_model", "best_config.yaml")  # every storage path has one


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
    """``candidates`` by their number; ``holdout`` the latest record of each name: best, mean, baselines;
    ``events``: when workers came and went.
    """

    run: RunRecord
    candidates: tuple[CandidateRecord, ...]
    holdout: tuple[HoldoutRecord, ...]
    events: tuple[WorkerRecord, ...]

    @property
    def scored(self) -> tuple[ScoredCandidate, ...]:
        return tuple(
            ScoredCandidate(record=record, report=record.outcome.report)
            for record in self.candidates
            if isinstance(record.outcome, Scored)
        )

    @property
    def failures(self) -> tuple[CandidateRecord, ...]:
        """Candidates without a score; those with equal recipes count once."""
        failed = (record for record in self.candidates if not isinstance(record.outcome, Scored))
        return tuple(record for record in failed if record.copied_from is None)

    @property
    def evaluated(self) -> tuple[CandidateRecord, ...]:
        """The candidates that workers were busy with: what a budget counts."""
        return tuple(record for record in self.candidates if record.evaluated)

    @property
    def repeats(self) -> int:
        """How many candidates had the recipe of an earlier one."""
        return sum(record.copied_from is not None for record in self.candidates)

    @property
    def best(self) -> ScoredCandidate | None:
        """The highest search score, samples, baselines and means alike; the earliest of equals."""
        return max(self.scored, key=lambda candidate: candidate.score, default=None)

    @property
    def best_id(self) -> int | None:
        return None if self.best is None else self.best.record.id

    @property
    def best_source(self) -> ScoredCandidate | None:
        sources = (entry for entry in self.scored if entry.record.origin.startswith(SOURCE_PREFIX))
        return max(sources, key=lambda candidate: candidate.score, default=None)

    @property
    def table(self) -> HoldoutTable:
        return holdout_table(self.holdout)

    @property
    def work(self) -> WorkTime:
        """What workers did with their time."""
        return work_time(self.evaluated, self.events)


def summarise(view: JournalView) -> Summary:
    """Arrange a journal's records."""
    return Summary(
        run=view.run,
        candidates=tuple(sorted(view.candidates, key=lambda record: record.id)),
        holdout=tuple(sorted({record.name: record for record in view.holdout}.values(), key=_holdout_order)),
        events=view.workers,
    )


def _holdout_order(record: HoldoutRecord) -> tuple[bool, bool, int]:
    return is_known(record.name), record.name != "best", record.candidate_id


def is_known(origin: str) -> bool:
    """Whether it was there before the search: a baseline, or a recipe that the search file names."""
    return origin.startswith((BASELINE_PREFIX, INITIAL_PREFIX))


def display_name(origin: str) -> str:
    """``baseline:source:path/to/math`` -> ``source math``; other origins and row names read as they are."""
    if origin.startswith(SOURCE_PREFIX):
        return f"source {short_model(origin.removeprefix(SOURCE_PREFIX))}"
    if origin.startswith(INITIAL_PREFIX):
        return f"initial {short_model(origin.removeprefix(INITIAL_PREFIX))}"
    return origin.removeprefix(BASELINE_PREFIX).replace("_", " ")


def short_model(reference: str) -> str:
    """What a figure has room for of a model reference: the last folder, of a model and its adapter; of an
    earlier search's winner the search's folder.
    """
    return "+".join(_last_name(part) for part in reference.split("+"))


def _last_name(path: str) -> str:
    names = [name for name in path.split("/") if name not in ("", ".")]
    if len(names) > 1 and names[-1] in _ONE_OF_MANY:
        return names[-2]
    return names[-1] if names else path
