"""The candidates of a search by number: which numbers are taken, what is known of them, what may be spent.

A candidate costs the budget one evaluation unless its recipe equals an earlier one's, whose outcome it takes
over, or the space refuses to make a recipe of it. Which candidates cost nothing follows from their recipes
alone, in the order of their numbers: a search that resumes comes to the same numbers and the same sums.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from evolve.journal import Journal
from evolve.outcome import Scored, cost
from evolve.records import MEAN, CandidateRecord


class Ledger:
    """Numbers and outcomes of one search; ``max_fevals`` evaluations may be spent, the last one on the mean.

    ``records``: every candidate that has an outcome, by its number. ``best``: of all but the means.
    """

    def __init__(self, journal: Journal, max_fevals: int) -> None:
        candidates = journal.view.candidates
        self.records = {record.id: record for record in candidates}
        self.best = choose_winner(record for record in candidates if record.origin != MEAN)
        self._journal = journal
        self._max_fevals = max_fevals
        self._means = {record.id: record for record in candidates if record.origin == MEAN}
        self._next_id = 0
        self._spent = 0
        self._numbers: dict[bytes, int] = {}  # a recipe's digest -> the candidate that is scored for it
        self._pass_means()

    @property
    def places_left(self) -> int:
        """How many evaluations are left for other candidates than the mean that ends the budget."""
        return max(0, self._max_fevals - 1 - self._spent)

    @property
    def evaluations(self) -> int:
        """How many candidates were evaluated so far, in all sessions."""
        return sum(record.evaluated for record in self.records.values())

    @property
    def next_id(self) -> int:
        """The number of the candidate that is entered next; those of earlier budgets' means are taken."""
        return self._next_id

    def known(self, number: int) -> CandidateRecord | None:
        """What an earlier session left of a candidate."""
        return self.records.get(number)

    def enter_known(self, record: CandidateRecord) -> None:
        """Take the next number for a candidate that an earlier session left."""
        self._pass(record)
        self._pass_means()

    def enter(self, recipe: Mapping[str, Any]) -> int | None:
        """Take the next number for a new candidate; an empty recipe is one that the space refused.

        Returns:
            the number of the earlier candidate with an equal recipe, or None.
        """
        copied_from = None
        if recipe:
            first = self._numbers.setdefault(recipe_digest(recipe), self._next_id)
            copied_from = None if first == self._next_id else first
            self._spent += copied_from is None
        self._next_id += 1
        self._pass_means()
        return copied_from

    def scored_before(self, recipe: Mapping[str, Any]) -> int | None:
        """The number of the candidate whose outcome a candidate with this recipe shares, if it has one."""
        number = self._numbers.get(recipe_digest(recipe))
        return number if number in self.records else None

    def free_id(self) -> int:
        """A number behind all that have an outcome, for the mean."""
        return max(self.records, default=-1) + 1

    def mean_at(self, generation: int, index: int, recipe: Mapping[str, Any]) -> CandidateRecord | None:
        """The mean that ended an earlier session at this very point, if one did."""
        place = (generation, index, recipe)
        found = (mean for mean in self._means.values() if (mean.generation, mean.index, mean.recipe) == place)
        return next(found, None)

    def write(self, record: CandidateRecord) -> None:
        """Put an outcome on disk.

        Raises:
            JournalError: the disk refuses it.
        """
        self._journal.append(record)
        self.records[record.id] = record
        if record.origin != MEAN and isinstance(record.outcome, Scored):
            self.best = choose_winner([record] if self.best is None else [self.best, record])

    def _pass_means(self) -> None:
        """Means that ended smaller budgets stand between the samples; this budget pays for them, too."""
        while self.places_left and self._next_id in self._means:
            self._pass(self._means[self._next_id])

    def _pass(self, record: CandidateRecord) -> None:
        if record.evaluated:
            self._spent += 1
            self._numbers.setdefault(recipe_digest(record.recipe), record.id)
        self._next_id += 1


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
