"""The candidates of a search that have an outcome, and which recipes were scored already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from evolve.journal import Journal
from evolve.outcome import Scored, cost
from evolve.records import MEAN, CandidateRecord


class Ledger:
    """Outcomes of one search, in all its sessions.

    ``records``: every candidate that has an outcome, by its number. ``best``: of all but the means.
    ``evaluations``: how many of them were evaluated.
    """

    def __init__(self, journal: Journal) -> None:
        self.records: dict[int, CandidateRecord] = {}
        self.evaluations = 0
        self._journal = journal
        self._originals: dict[bytes, int] = {}  # a recipe's digest -> the candidate that was scored for it
        self._means: list[CandidateRecord] = []
        for record in journal.view.candidates:
            self._take(record)
        self.best = choose_winner(record for record in self.records.values() if record.origin != MEAN)

    def original(self, digest: bytes) -> CandidateRecord | None:
        """The candidate whose outcome all with a recipe of this digest share, if one was scored."""
        number = self._originals.get(digest)
        return None if number is None else self.records[number]

    def free_id(self) -> int:
        """A number behind all that have an outcome, for the mean."""
        return max(self.records, default=-1) + 1

    def mean_at(self, generation: int, index: int, recipe: Mapping[str, Any]) -> CandidateRecord | None:
        """The mean that ended an earlier session at this very point, if one did."""
        place = (generation, index, recipe)
        found = (mean for mean in self._means if (mean.generation, mean.index, mean.recipe) == place)
        return next(found, None)

    def write(self, records: Sequence[CandidateRecord]) -> None:
        """Put outcomes on disk, all in one go: waiting for the disk is what a candidate costs most.

        Raises:
            JournalError: the disk refuses it.
        """
        self._journal.append(*records)
        for record in records:
            self._take(record)
            if record.origin != MEAN and isinstance(record.outcome, Scored):
                self.best = choose_winner([record] if self.best is None else [self.best, record])

    def _take(self, record: CandidateRecord) -> None:
        self.records[record.id] = record
        if record.evaluated:
            self.evaluations += 1
            self._originals.setdefault(recipe_digest(record.recipe), record.id)
        if record.origin == MEAN:
            self._means.append(record)


def recipe_digest(recipe: Mapping[str, Any]) -> bytes:
    """The same for equal recipes (as `recipe_data` gives them), in whatever order their keys are."""
    return hashlib.blake2b(orjson.dumps(recipe, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()


def choose_winner(records: Iterable[CandidateRecord]) -> CandidateRecord | None:
    """The candidate with the lowest cost on the search items, the first of equals; None if none has a
    score.
    """
    scored = [record for record in records if isinstance(record.outcome, Scored)]
    return min(scored, key=lambda record: (cost(record.outcome), record.id), default=None)


def is_spent(records: Sequence[CandidateRecord], max_fevals: int) -> bool:
    """Whether a search with these candidates came to the end of its budget.

    The evaluation that is kept for the mean is left over where its recipe was scored before.
    """
    last = max(records, key=lambda record: record.id, default=None)
    is_copied_mean = last is not None and last.origin == MEAN and not last.evaluated
    return sum(record.evaluated for record in records) + is_copied_mean >= max_fevals
