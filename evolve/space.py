"""What the driver needs from a search space; `genome.Space` is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from merge_engine.spec.recipe import Recipe


class Baseline(Protocol):
    """A recipe to compare with. ``vector`` is its point in the space, or None if it has none."""

    @property
    def name(self) -> str: ...
    @property
    def recipe(self) -> Recipe: ...
    @property
    def vector(self) -> NDArray[np.float64] | None: ...


class SearchSpace(Protocol):
    """A box of vectors (D,), each of which decodes to one recipe."""

    @property
    def lower(self) -> NDArray[np.float64]: ...
    @property
    def upper(self) -> NDArray[np.float64]: ...
    @property
    def start(self) -> NDArray[np.float64]: ...

    def decode(self, vector: NDArray[np.float64]) -> Recipe: ...

    def baselines(self) -> Sequence[Baseline]: ...
