"""Blending two of three or more models: in each group of layers the genes choose the pair.

As in `mergekit-evolve`: each model has a gene, the two models with the largest genes are blended, and how
far to go from one to the other is the softmax of their two genes. With filters, a pair is chosen by the sum
of a model's genes (a slice has one pair of models), and each filter has a blend of its own. A template cannot
say this: there, what is chosen and what is blended are different variables.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from genome.baselines import Baseline, PlainMerges
from genome.box import Box, Variable, Vector
from genome.expand import fixed_parameters, tokenizer_source
from genome.search_file import GenomeSpec
from genome.searched import PREFERENCE
from merge_engine.spec import METHODS, Filtered, InputModel, OutputSlice, Recipe, SliceSource, Value


class PairSpace(Box):
    """See `genome.space.Space`. A vector is a grid of genes, shape (groups, filters, models)."""

    def __init__(self, genome: GenomeSpec, num_layers: int, dtype: str) -> None:
        """``dtype``: of the models, where ``genome`` names none."""
        step = genome.layer_granularity or num_layers
        self._genome = genome
        self._groups = [(start, min(start + step, num_layers)) for start in range(0, num_layers, step)]
        self._filters: tuple[str | None, ...] = (*genome.filters, None)
        self._dtype = genome.dtype or dtype
        super().__init__(self._variables())

    def decode(self, vector: Vector) -> Recipe:
        """The first model of a pair, in the order of the search file, is the base: ``t`` = 0 is that model.
        Of equal genes the models listed first are taken.
        """
        shape = len(self._groups), len(self._filters), len(self._genome.models)
        grid = self.settled(vector).reshape(shape)
        if len(self._groups) == 1:
            first, second, blend = self._blend(grid[0])
            models = (InputModel(model=first), InputModel(model=second))
            return self._recipe(first, {"t": blend}, models=models)
        slices = tuple(self._slice(layers, genes) for layers, genes in zip(self._groups, grid, strict=True))
        return self._recipe(self._genome.base_model, {}, slices=slices)

    def encode(self, recipe: Recipe) -> None:
        """None: many genes give the same recipe."""

    def baselines(self) -> tuple[Baseline, ...]:
        """The sources, the base if it is none of them, their mean, task arithmetic; none is a point."""
        models, base = self._genome.models, self._genome.base_model
        plain = PlainMerges(
            pattern=self._recipe(base, {}),
            models=models,
            base_model=base,
            tokenizer_source=self._genome.tokenizer_source,
        )
        recipes = {f"source:{model}": plain.as_it_is(model) for model in models}
        if base is not None and base not in models:
            recipes["base"] = plain.as_it_is(base)
        recipes["uniform"] = plain.mean()
        if base is not None:
            recipes["task_arithmetic"] = plain.task_arithmetic(base)
        return tuple(Baseline(name=name, recipe=recipe, vector=None) for name, recipe in recipes.items())

    def _variables(self) -> list[Variable]:
        low, high = self._genome.bounds[PREFERENCE.name]
        return [
            Variable(
                name=f"{PREFERENCE.name} of {model}{self._place(layers)}{self._part(part)}",
                kind="real",
                low=low,
                high=high,
                start=(low + high) / 2,
            )
            for layers in self._groups
            for part in self._filters
            for model in self._genome.models
        ]

    def _place(self, layers: tuple[int, int]) -> str:
        start, end = layers
        if len(self._groups) == 1:
            return ""
        return f", layers {start}-{end - 1}" if end - start > 1 else f", layer {start}"

    def _part(self, part: str | None) -> str:
        return "" if len(self._filters) == 1 else f", {part or 'rest'}"

    def _recipe(
        self,
        base: str | None,
        parameters: dict[str, Value],
        *,
        models: tuple[InputModel, ...] | None = None,
        slices: tuple[OutputSlice, ...] | None = None,
    ) -> Recipe:
        fixed = fixed_parameters(self._genome, METHODS[self._genome.merge_method])
        return Recipe(
            merge_method=self._genome.merge_method,
            base_model=base,
            models=models,
            slices=slices,
            parameters={**parameters, **fixed},
            dtype=self._dtype,
            tokenizer_source=tokenizer_source(self._genome, base),
        )

    def _slice(self, layers: tuple[int, int], genes: NDArray[np.float64]) -> OutputSlice:
        first, second, blend = self._blend(genes)
        sources = tuple(SliceSource(model=model, layer_range=layers) for model in (first, second))
        return OutputSlice(sources=sources, base_model=first, parameters={"t": blend})

    def _blend(self, genes: NDArray[np.float64]) -> tuple[str, str, Value]:
        """The pair of models for genes of shape (filters, models), and the value of ``t``."""
        ranked = np.argsort(-genes.sum(axis=0), kind="stable")
        first, second = sorted(ranked[:2].tolist())
        blends = [1.0 / (1.0 + math.exp(a - b)) for a, b in genes[:, [first, second]].tolist()]
        value: Value = blends[0]
        if len(self._filters) > 1:
            parts = zip(self._filters, blends, strict=True)
            value = tuple(Filtered(filter=part, value=blend) for part, blend in parts)
        return self._genome.models[first], self._genome.models[second], value
