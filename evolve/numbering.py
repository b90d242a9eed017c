"""Numbers for candidates before they are scored, where all of a generation are drawn at once.

A candidate costs the budget one evaluation unless its recipe equals an earlier one's, whose outcome it takes
over, or the space refuses to make a recipe of it. Which candidates cost nothing follows from their recipes
alone, in the order of their numbers: a search that resumes comes to the same numbers and the same sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evolve.ledger import Ledger, recipe_digest
from evolve.records import MEAN, CandidateRecord


class Numbering:
    """Counts up from the first baseline; ``max_fevals`` evaluations may be spent, the last one on the mean.

    ``next_id``: the number of the candidate that is entered next; those of earlier budgets' means are taken.
    """

    def __init__(self, ledger: Ledger, max_fevals: int) -> None:
        self.next_id = 0
        self._ledger = ledger
        self._max_fevals = max_fevals
        self._spent = 0
        self._entered: dict[bytes, int] = {}  # digests of recipes that had no outcome when they were entered
        self._pass_means()

    @property
    def places_left(self) -> int:
        """How many evaluations are left for other candidates than the mean that ends the budget."""
        return max(0, self._max_fevals - 1 - self._spent)

    def enter_known(self, record: CandidateRecord) -> None:
        """Take the next number for a candidate that an earlier session left."""
        self._pass(record)
        self._pass_means()

    def enter(self, recipe: Mapping[str, Any]) -> int | None:
        """Take the next number for a new candidate; an empty recipe is one that the space refused.

        Returns:
            the number of the candidate with an equal recipe that was scored or entered before it, or None.
        """
        copied_from = self._first_with(recipe) if recipe else None
        self._spent += bool(recipe) and copied_from is None
        self.next_id += 1
        self._pass_means()
        return copied_from

    def _first_with(self, recipe: Mapping[str, Any]) -> int | None:
        digest = recipe_digest(recipe)
        original = self._ledger.original(digest)
        if original is not None:
            return original.id
        first = self._entered.setdefault(digest, self.next_id)
        return None if first == self.next_id else first

    def _pass_means(self) -> None:
        """Means that ended smaller budgets stand between the samples; this budget pays for them, too."""
        while (
            self.places_left and (record := self._ledger.records.get(self.next_id)) and record.origin == MEAN
        ):
            self._pass(record)

    def _pass(self, record: CandidateRecord) -> None:
        self._spent += record.evaluated
        self.next_id += 1
