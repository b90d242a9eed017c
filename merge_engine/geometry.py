"""Lengths and angles of the vectors that a tensor of each model holds: all of it as one, or each of its rows.

Sums are formed in float64 by numpy, which adds in one thread: they do not depend on the number of threads.
Suffixes: M models, N elements, L vectors of each tensor: 1 (the whole), its rows, or its columns.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from merge_engine.methods.rounding import read
from merge_engine.methods.task_vectors import task_vector

# What one vector is: the whole tensor, a run along the last dimension, or one along the first.
Along: TypeAlias = Literal["whole", "last", "first"]

_BLOCK_ELEMENTS = 2**15  # what is formed of them stays in a core's cache


def vector_count(shape: tuple[int, ...], along: Along) -> int:
    """How many vectors a tensor holds, L."""
    if along == "whole" or not shape:
        return 1
    return math.prod(shape[:-1] if along == "last" else shape[1:])


def vector_of(shape: tuple[int, ...], along: Along, start: int, stop: int) -> Tensor:
    """Which vector elements [start, stop) of the flat tensor are part of, int64."""
    place_N = torch.arange(start, stop)
    if along == "whole" or not shape:
        return torch.zeros_like(place_N)
    return place_N // shape[-1] if along == "last" else place_N % vector_count(shape, "first")


def held(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x``, float64, rounded to what ``dtype`` holds; what is beyond its range stays as it is."""
    rounded = x.to(dtype).to(torch.float64)
    return torch.where(rounded.isfinite(), rounded, x)


class Geometry:
    """A tensor of each of M models, or their differences from a base: task vectors.

    ``sources``: M flat tensors; ``base_N``: one more, or None; ``shape``: of all of them. They are read in
    ``dtype``.
    """

    def __init__(
        self, sources: Sequence[Tensor], base_N: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        self._sources = sources
        self._base_N = base_N
        self._shape = shape
        self._dtype = dtype

    def products(self) -> Tensor:
        """Inner products of the whole tensors, float64 of shape (M, M). Differences are not rounded."""
        count = len(self._sources)
        pairs = list(itertools.combinations_with_replacement(range(count), 2))

        def terms(where: slice) -> list[Tensor]:
            wide = self._exact(where)
            return [wide[i] * wide[j] for i, j in pairs]

        products_MM = torch.empty(count, count, dtype=torch.float64)
        for (i, j), sum_1 in zip(pairs, self._sums("whole", len(pairs), terms), strict=True):
            products_MM[i, j] = products_MM[j, i] = sum_1[0]
        return products_MM

    def cosine(self, along: Along, least_norm: float) -> Tensor:
        """Cosine of the angle between the vectors of two models, float64 of shape (L,).

        Vectors are divided by their lengths, but by no less than ``least_norm``; elements and their products
        are rounded to the dtype, as the ecosystem's merges do it.
        """
        norms = [held(norm_L.clamp(min=least_norm), self._dtype) for norm_L in self._norms(along)]

        def terms(where: slice) -> list[Tensor]:
            place_N = vector_of(self._shape, along, where.start, where.stop)
            vectors = zip(self._vectors(where), norms, strict=True)
            a_N, b_N = ((vector_N / norm_L[place_N]).to(self._dtype) for vector_N, norm_L in vectors)
            return [a_N * b_N]

        (cosine_L,) = self._sums(along, 1, terms)
        return held(cosine_L, self._dtype).clamp(-1.0, 1.0)

    def mean_cosine(self, along: Along) -> Tensor:
        """The mean over all pairs of models of the cosine of the angle between their vectors, float64 (L,).

        Vectors of length 0 are orthogonal to everything. Steps are rounded to the dtype where it holds them.
        """
        norms = [held(norm_L, self._dtype) for norm_L in self._norms(along)]
        pairs = list(itertools.combinations(range(len(self._sources)), 2))

        def terms(where: slice) -> list[Tensor]:
            vectors = self._vectors(where)
            return [_product(vectors[i], vectors[j]) for i, j in pairs]

        cosines = []
        for (i, j), product_L in zip(pairs, self._sums(along, len(pairs), terms), strict=True):
            norms_L = held(norms[i] * norms[j], self._dtype)
            cosine_L = held(held(product_L, self._dtype) / norms_L, self._dtype)
            cosines.append(torch.where(norms_L > 0.0, cosine_L, 0.0))
        return held(torch.stack(cosines).mean(dim=0), self._dtype)

    def _norms(self, along: Along) -> list[Tensor]:
        def terms(where: slice) -> list[Tensor]:
            return [vector_N.to(torch.float64).square() for vector_N in self._vectors(where)]

        return [square_L.sqrt() for square_L in self._sums(along, len(self._sources), terms)]

    def _vectors(self, where: slice) -> list[Tensor]:
        """Elements of the vectors as the dtype holds them."""
        if self._base_N is None:
            return [read(source_N[where], self._dtype) for source_N in self._sources]
        return [task_vector(source_N[where], self._base_N[where], self._dtype) for source_N in self._sources]

    def _exact(self, where: slice) -> list[Tensor]:
        """Elements of the vectors, float64."""
        wide = [read(source_N[where], self._dtype).to(torch.float64) for source_N in self._sources]
        if self._base_N is None:
            return wide
        base_N = read(self._base_N[where], self._dtype).to(torch.float64)
        return [source_N - base_N for source_N in wide]

    def _sums(self, along: Along, count: int, terms: Callable[[slice], list[Tensor]]) -> list[Tensor]:
        """The sums over each vector, float64 of shape (L,), of the ``count`` tensors that ``terms`` gives."""
        vectors = vector_count(self._shape, along)
        width = self._width(along)
        sums = [torch.zeros(vectors, dtype=torch.float64) for _ in range(count)]
        for where in self._blocks(width):
            part = slice(where.start // width, where.stop // width) if along == "last" else slice(None)
            for sum_L, term_N in zip(sums, terms(where), strict=True):
                table = term_N.to(torch.float64).view((1, -1) if along == "whole" else (-1, width)).numpy()
                sum_L[part] += torch.from_numpy(table.sum(axis=0 if along == "first" else 1))
        return sums

    def _width(self, along: Along) -> int:
        """Of how many elements the rows are into which blocks are laid out."""
        if along == "whole" or not self._shape:
            return 1
        return self._shape[-1] if along == "last" else vector_count(self._shape, "first")

    def _blocks(self, width: int) -> Iterator[slice]:
        """Blocks of whole rows of ``width`` elements that cover the tensor; none of an empty one."""
        elements = math.prod(self._shape)
        step = max(_BLOCK_ELEMENTS // max(width, 1), 1) * width
        for start in range(0, elements, max(step, 1)):
            yield slice(start, min(start + step, elements))


def _product(a_N: Tensor, b_N: Tensor) -> Tensor:
    """Rounded as the dtype holds it; where float16 does not, in float32."""
    product_N = a_N * b_N
    if product_N.dtype == torch.float16 and not bool(product_N.isfinite().all()):
        return a_N.to(torch.float32) * b_N.to(torch.float32)
    return product_N
