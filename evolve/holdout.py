"""The final report's candidates on the held-out items, which nothing in the search has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from evolve.dispatch import run_jobs
from evolve.fleet import Done, Fleet, Job
from evolve.interrupt import Interrupt
from evolve.journal import Journal
from evolve.observer import Observer
from evolve.records import CandidateRecord, HoldoutRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldoutRow:
    """One row of the report: "best", "mean", or a baseline's origin."""

    name: str
    candidate: CandidateRecord


def run_holdout(
    rows: Sequence[HoldoutRow], fleet: Fleet, journal: Journal, observers: Sequence[Observer] = ()
) -> tuple[HoldoutRecord, ...]:
    """Score every row that the journal did not have when it was opened; a candidate in two rows is scored
    once.

    Returns:
        the rows in their order; those not reached before a SIGINT or SIGTERM are missing.
    """
    known = {(record.name, record.candidate_id): record for record in journal.view.holdout}
    by_candidate = {record.candidate_id: record for record in journal.view.holdout}

    def keep(row: HoldoutRow, record: HoldoutRecord) -> None:
        known[row.name, row.candidate.id] = record
        journal.append(record)

    def on_done(done: Done) -> None:
        for row in rows:
            if row.candidate.id == done.job.id:
                outcome = done.evaluation.outcome
                keep(row, HoldoutRecord(
                    name=row.name, candidate_id=done.job.id, outcome=outcome, measured=done.measured
                ))  # fmt: skip

    for row in rows:
        if (row.name, row.candidate.id) not in known and row.candidate.id in by_candidate:
            keep(row, replace(by_candidate[row.candidate.id], name=row.name))
    candidates = {row.candidate.id: row.candidate for row in rows if row.candidate.id not in by_candidate}
    jobs = [
        Job(id=number, recipe=candidate.recipe, split="holdout") for number, candidate in candidates.items()
    ]
    with Interrupt() as interrupt:
        run_jobs(jobs, fleet, interrupt, observers, on_done=on_done)
    return tuple(known[row.name, row.candidate.id] for row in rows if (row.name, row.candidate.id) in known)
