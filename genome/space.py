"""What every search space offers, whatever form the search file gives it: vector <-> recipe."""

from __future__ import annotations

from typing import Protocol

from genome.baselines import Baseline
from genome.box import Kind, Vector
from merge_engine.spec import Recipe


class Space(Protocol):
    """A box of D variables, each point of which is one recipe or is refused.

    ``names``, ``kinds``: what each variable is, D of each. ``lower``, ``upper``, ``start``: float64 of shape
    (D,), read only. An integer takes whole numbers from ``lower`` to ``upper``; a categorical is the number
    of an alternative, 0 to ``upper``, in no order. With ``random_init`` in the search file it is the search
    that starts elsewhere; the space is the same.
    """

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

    def decode(self, vector: Vector) -> Recipe:
        """The recipe at ``vector``, shape (D,). Coordinates of integers and categoricals are rounded.

        Raises:
            VectorError: the vector has another shape or lies outside the bounds.
            RefusedRecipe: this combination of values makes no merge.
        """
        ...

    def encode(self, recipe: Recipe) -> Vector | None:
        """The vector that decodes to exactly this recipe, or None where there is none (or no unique one)."""
        ...

    def baselines(self) -> tuple[Baseline, ...]:
        """What a search has to beat. ``vector`` is the point of the space that is the same merge (up to
        rounding), where there is one.
        """
        ...
