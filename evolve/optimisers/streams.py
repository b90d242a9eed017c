"""Random numbers that do not depend on how often an optimiser was asked between two tells."""

from __future__ import annotations

import numpy as np

from evolve.seeds import random_stream


class Streams:
    """The random numbers of one run of an optimiser.

    The first ask after each tell goes on where the first one before it ended; every further ask has a stream
    of its own. What is drawn after a tell is thus the same, whatever was drawn before it and then forgotten.

    ``present``: the stream of the ask that began last.
    """

    def __init__(self, seed: int, purpose: str, run: int) -> None:
        self._seed = seed
        self._purpose = purpose
        self._run = run
        self._main = self.present = random_stream(seed, purpose, run)
        self._tells = 0
        self._asks = 0  # since the last tell

    def begin_ask(self) -> np.random.RandomState:
        """The stream of the ask that begins now."""
        self._asks += 1
        ids = (self._run, self._tells, self._asks)
        self.present = (
            self._main if self._asks == 1 else random_stream(self._seed, f"{self._purpose}-more", *ids)
        )
        return self.present

    def note_tell(self) -> None:
        self._tells += 1
        self._asks = 0
