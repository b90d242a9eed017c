"""Blending two of three or more models: in each group of layers the genes choose the pair.

As in `mergekit-evolve`: each model has a gene, the two models with the largest genes are blended, and how
far to go from one to the other is the softmax of their two genes. With filters, a pair is chosen by the sum
of a model's genes (a slice has one pair of models), and each filter has a blend of its own.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from genome.direct import filtered_value
from genome.frame import Frame
from genome.layout import Layout
from merge_engine.spec import InputModel, OutputSlice, Recipe, SliceSource, Value


class PairForm:
    """Writes a grid of genes, shape (groups, filters, models), into a recipe; there is no way back.

    The first model of a pair, in the order of the search file, is the base: ``t`` = 0 is that model. Of
    equal genes the models listed first are taken.
    """

    base_model = None  # each merge has its own

    def __init__(self, frame: Frame, layout: Layout) -> None:
        self._frame = frame
        self._layout = layout
        self._models = frame.genome.models

    def write(self, grid: NDArray[np.float64]) -> Recipe:
        """The recipe with these genes."""
        if not self._layout.sliced:
            first, second, blend = self._blend(grid[0])
            return self._frame.recipe(
                base_model=first,
                models=(InputModel(model=first), InputModel(model=second)),
                parameters={"t": blend},
            )
        slices = tuple(
            self._slice(layers, genes) for layers, genes in zip(self._layout.groups, grid, strict=True)
        )
        return self._frame.recipe(base_model=self._frame.genome.base_model, slices=slices, parameters={})

    def read(self, recipe: Recipe) -> None:
        """None: many genes give the same recipe."""

    def _slice(self, layers: tuple[int, int], genes: NDArray[np.float64]) -> OutputSlice:
        first, second, blend = self._blend(genes)
        sources = tuple(SliceSource(model=model, layer_range=layers) for model in (first, second))
        return OutputSlice(sources=sources, base_model=first, parameters={"t": blend})

    def _blend(self, genes: NDArray[np.float64]) -> tuple[str, str, Value]:
        """The pair of models for genes of shape (filters, models), and the value of ``t``."""
        ranked = np.argsort(-genes.sum(axis=0), kind="stable")
        first, second = sorted(ranked[:2].tolist())
        blends = [1.0 / (1.0 + math.exp(a - b)) for a, b in genes[:, [first, second]].tolist()]
        return self._models[first], self._models[second], filtered_value(self._layout.filters, blends)
