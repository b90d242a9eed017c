"""The winners of earlier stages: as models of a later one, and in the recipe that anybody can run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genome.stages import map_texts

_PREFIX = "winner-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Winner:
    """What a stage found. ``folder``: its exported model, as later recipes name it."""

    stage: str
    folder: str
    recipe: Mapping[str, Any]

    @property
    def document(self) -> str:
        """Its name among the documents of a merge config."""
        return f"{_PREFIX}{self.stage}"


def documents(recipe: Mapping[str, Any], winners: Sequence[Winner]) -> list[dict[str, Any]]:
    """The merge config that does everything from the original models on: ``recipe`` last, before it the
    named recipes of the earlier winners that it needs, directly or not.

    ``winners`` in the order of their stages. Where none is needed, the recipe alone.
    """
    by_folder = {winner.folder: winner for winner in winners}
    needed: dict[str, Winner] = {}

    def named(reference: str) -> str:
        model, plus, adapter = reference.partition("+")
        if model not in by_folder:
            return reference
        needed[model] = by_folder[model]
        return by_folder[model].document + plus + adapter

    found = [dict(map_texts(recipe, named))]
    for winner in reversed(winners):  # a winner needs only those before it
        if winner.folder in needed:
            found.insert(0, {"name": winner.document, **map_texts(winner.recipe, named)})
    return found
