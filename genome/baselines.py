"""What a search has to beat, scored beside its first candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from genome.box import Vector
from merge_engine.spec import InputModel, Recipe, Value


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Baseline:
    """One merge to compare with; ``vector``, shape (D,), is it as a point of the space, where it is one.

    The names: ``source:<model>``, ``base``, ``uniform`` or ``start``, ``task_arithmetic``.
    """

    name: str
    recipe: Recipe
    vector: Vector | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainMerges:
    """Recipes over whole models that owe nothing to the search but its surroundings.

    ``pattern``: any recipe of the search, for dtype and tokenizer; ``tokenizer_source`` and ``base_model``:
    as the search file has them.
    """

    pattern: Recipe
    models: Sequence[str]
    base_model: str | None
    tokenizer_source: str | None

    def as_it_is(self, model: str) -> Recipe:
        """One model, unchanged."""
        return self._whole("passthrough", {model: {}})

    def mean(self) -> Recipe:
        """The plain mean of the models."""
        share: dict[str, Value] = {"weight": 1.0 / len(self.models)}
        return self._whole("linear", dict.fromkeys(self.models, share), parameters={"normalize": True})

    def task_arithmetic(self, base: str) -> Recipe:
        """The base plus the sum of all task vectors, each with weight 1."""
        ones: dict[str, Mapping[str, Value]] = {model: {"weight": 1.0} for model in self.models}
        return self._whole(
            "task_arithmetic",
            {base: {}} | {model: given for model, given in ones.items() if model != base},
            base_model=base,
            parameters={"normalize": False, "lambda": 1.0},
        )

    def _whole(
        self,
        merge_method: str,
        models: Mapping[str, Mapping[str, Value]],
        *,
        base_model: str | None = None,
        parameters: Mapping[str, Value] | None = None,
    ) -> Recipe:
        return replace(
            self.pattern,
            merge_method=merge_method,
            base_model=base_model,
            models=tuple(InputModel(model=model, parameters=given) for model, given in models.items()),
            slices=None,
            modules=None,
            parameters=parameters or {},
            tokenizer_source=self._tokenizer_source(base_model),
        )

    def _tokenizer_source(self, base_model: str | None) -> str | None:
        """``base`` means the search's base, or else its first model: named where the recipe's is another."""
        if self.tokenizer_source != "base" or base_model == self.base_model is not None:
            return self.tokenizer_source
        return self.base_model or self.models[0]
