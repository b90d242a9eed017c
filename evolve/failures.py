"""When to give up: candidate after candidate fails for the same reason."""

from __future__ import annotations

import re

from evolve.errors import RepeatedFailureError
from evolve.outcome import Outcome, Scored


class FailureWatch:
    """Counts failures of one kind in a row; ``limit`` of them are too many."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kind = ""
        self._count = 0

    def note(self, outcome: Outcome) -> None:
        """
        Raises:
            RepeatedFailureError: this is the last straw.
        """
        if isinstance(outcome, Scored):
            self._count = 0
            return
        # Numbers differ where the cause is the same ("tried to allocate 20 MiB").
        kind = f"{outcome.stage}: {re.sub(r'[0-9.]+', '#', outcome.reason)}"
        self._count = self._count + 1 if kind == self._kind else 1
        self._kind = kind
        if self._count >= self._limit:
            raise RepeatedFailureError(
                f"the last {self._count} candidates failed for the same reason ({outcome.stage}: "
                f"{outcome.reason}); the tracebacks are in the workers' logs. Mend it and start the same "
                "command again"
            )
