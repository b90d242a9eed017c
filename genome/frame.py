"""What every recipe of a search has in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from genome.search_file import GenomeSpec
from merge_engine.spec import METHODS, InputModel, OutputSlice, Recipe, Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Builds the recipes of one search: method, fixed parameters, dtype and tokenizer are settled."""

    genome: GenomeSpec
    dtype: str

    def recipe(
        self,
        *,
        base_model: str | None,
        models: tuple[InputModel, ...] | None = None,
        slices: tuple[OutputSlice, ...] | None = None,
        parameters: Mapping[str, Value],
    ) -> Recipe:
        """A recipe of the search's own method."""
        return Recipe(
            merge_method=self.genome.merge_method,
            base_model=base_model,
            models=models,
            slices=slices,
            parameters={**parameters, **self._fixed()},
            dtype=self.dtype,
            tokenizer_source=self._tokenizer_source(base_model),
        )

    def whole(
        self,
        merge_method: str,
        models: Mapping[str, Mapping[str, Value]],
        *,
        base_model: str | None = None,
        parameters: Mapping[str, Value] | None = None,
    ) -> Recipe:
        """A recipe of any method over whole models, each with its parameters."""
        return Recipe(
            merge_method=merge_method,
            base_model=base_model,
            models=tuple(InputModel(model=model, parameters=given) for model, given in models.items()),
            parameters=parameters or {},
            dtype=self.dtype,
            tokenizer_source=self._tokenizer_source(base_model),
        )

    def _fixed(self) -> dict[str, Value]:
        fixed: dict[str, Value] = {}
        if self.genome.normalize is not None:
            fixed["normalize"] = self.genome.normalize
        if METHODS[self.genome.merge_method].parameter("int8_mask"):
            fixed["int8_mask"] = True  # as mergekit-evolve writes it; the tensors are the same
        return fixed

    def _tokenizer_source(self, base_model: str | None) -> str | None:
        """``base`` means the search's base, or else its first model: named where the recipe's is another."""
        source, base = self.genome.tokenizer_source, self.genome.base_model
        if source != "base" or base_model == base is not None:
            return source
        return base or self.genome.models[0]
