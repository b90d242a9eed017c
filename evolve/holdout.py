"""The final report's candidates on the held-out items, which nothing in the search has seen."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evolve.dispatch import run_jobs
from evolve.fleet import Done, Fleet, Job
from evolve.interrupt import Interrupt
from evolve.journal import Journal
from evolve.ledger import choose_winner
from evolve.observer import Observer
from evolve.outcome import Scored
from evolve.records import BASELINE_PREFIX, INITIAL_PREFIX, MEAN, CandidateRecord, HoldoutRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldoutRow:
    """One row of the report: "best", "mean", or the origin of a baseline or initial recipe."""

    name: str
    candidate: CandidateRecord


def holdout_rows(records: Sequence[CandidateRecord]) -> list[HoldoutRow]:
    """The best sample, the latest mean, and all that was known before the search, as far as it has a score.

    A candidate with the recipe of an earlier one is represented by that.
    """
    by_id = {record.id: record for record in records}
    scored = sorted(
        (record for record in records if isinstance(record.outcome, Scored)), key=lambda record: record.id
    )
    best = choose_winner(record for record in scored if record.origin != MEAN)
    means = [record for record in scored if record.origin == MEAN]
    known = [record for record in scored if record.origin.startswith((BASELINE_PREFIX, INITIAL_PREFIX))]
    named = [("best", best), *((MEAN, mean) for mean in means[-1:]), *((each.origin, each) for each in known)]
    return [
        HoldoutRow(name=name, candidate=_original(record, by_id))
        for name, record in named
        if record is not None
    ]


def _original(record: CandidateRecord, by_id: Mapping[int, CandidateRecord]) -> CandidateRecord:
    return record if record.copied_from is None else by_id.get(record.copied_from, record)


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

    def on_done(finished: Sequence[Done]) -> None:
        for done, row in itertools.product(finished, rows):
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
