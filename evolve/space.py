"""What the driver needs from a search space; `genome.Space` is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from genome.box import Kind, Vector
from merge_engine.spec.recipe import Recipe


class Baseline(Protocol):
    """A recipe to compare with. ``vector`` is its point in the space, or None if it has none."""

    @property
    def name(self) -> str: ...
    @property
    def recipe(self) -> Recipe: ...
    @property
    def vector(self) -> Vector | None: ...


class SearchSpace(Protocol):
    """A box of vectors (D,), each of which decodes to one recipe or raises `genome.RefusedRecipe`."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def kinds(self) -> tuple[Kind, ...]: ...
    @property
    def lower(self) -> Vector: ...
    @property
    def upper(self) -> Vector: ...
    @property
    def start(self) -> Vector: ...

    def decode(self, vector: Vector) -> Recipe: ...

    def encode(self, recipe: Recipe) -> Vector | None: ...

    def baselines(self) -> Sequence[Baseline]: ...
