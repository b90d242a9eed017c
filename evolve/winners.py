"""The winners of earlier stages: as models of a later one, and in the recipe that anybody can run.

Recipes name them ``winner:<stage>``, not by their folders, so that a storage path may be moved; where they
lie is said where a model is opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evolve.evaluator import Evaluation, Evaluator, EvaluatorFactory, Facts, WorkerContext
from evolve.records import Split
from genome.stages import WINNER, Stage, map_texts

_PREFIX = "winner-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Winner:
    """What a stage found. ``reference``: as later recipes name its model. ``folder``: where that lies.

    ``recipe`` names the winners before it by their references, too.
    """

    stage: str
    reference: str
    folder: str
    recipe: Mapping[str, Any]

    @property
    def document(self) -> str:
        """Its name among the documents of a merge config."""
        return f"{_PREFIX}{self.stage}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocatedFactory:
    """An `evolve.evaluator.EvaluatorFactory` whose evaluators take recipes that name winners.

    ``folders``: by reference.
    """

    factory: EvaluatorFactory
    folders: Mapping[str, str]

    def __call__(self, context: WorkerContext) -> Evaluator:
        return _LocatedEvaluator(self.factory(context), self.folders)


class _LocatedEvaluator:
    def __init__(self, evaluator: Evaluator, folders: Mapping[str, str]) -> None:
        self._evaluator = evaluator
        self._folders = folders

    def prepare(self) -> Facts:
        return self._evaluator.prepare()

    def set_batch_size(self, batch_size: int) -> None:
        self._evaluator.set_batch_size(batch_size)

    def evaluate(self, recipe: Mapping[str, Any], split: Split) -> Evaluation:
        return self._evaluator.evaluate(renamed(recipe, self._folders), split)


def folders(winners: Sequence[Winner]) -> dict[str, str]:
    """Where the winners lie, by reference."""
    return {winner.reference: winner.folder for winner in winners}


def renamed(data: Any, names: Mapping[str, str]) -> Any:
    """Plain data with the models that ``names`` has replaced, also where they have adapters."""

    def other(reference: str) -> str:
        model, plus, adapter = reference.partition("+")
        return names.get(model, model) + plus + adapter

    return map_texts(data, other)


def references(stage: Stage, inputs: Mapping[str, str]) -> dict[str, str]:
    """How the recipes of ``stage`` name the winners that it needs, by stage.

    ``inputs``: what its journal says that it began with; empty where it has not begun. Journals of before
    names have the folders where the winners lay at the time.
    """
    models = {name.removeprefix("model ").partition("+")[0] for name in inputs if name.startswith("model ")}
    own = _texts(stage.data)
    names = {}
    for needed in stage.needs:
        lay = [model for model in models - own if model.endswith(f"/stages/{needed}/final_model")]
        is_old = lay and WINNER + needed not in models
        names[needed] = lay[0] if is_old else WINNER + needed
    return names


def _texts(data: Any) -> set[str]:
    found: set[str] = set()

    def note(text: str) -> str:
        found.add(text.partition("+")[0])
        return text

    map_texts(data, note)
    return found


def documents(recipe: Mapping[str, Any], winners: Sequence[Winner]) -> list[dict[str, Any]]:
    """The merge config that does everything from the original models on: ``recipe`` last, before it the
    named recipes of the earlier winners that it needs, directly or not.

    ``winners`` in the order of their stages. Where none is needed, the recipe alone.
    """
    known = {winner.reference: winner for winner in winners}
    needed: set[str] = set()

    def named(reference: str) -> str:
        model, plus, adapter = reference.partition("+")
        if model not in known:
            return reference
        needed.add(model)
        return known[model].document + plus + adapter

    found = [dict(map_texts(recipe, named))]
    for winner in reversed(winners):  # a winner needs only those before it
        if winner.reference in needed:
            found.insert(0, {"name": winner.document, **map_texts(winner.recipe, named)})
    return found
