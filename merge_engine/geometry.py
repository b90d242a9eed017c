"""Lengths and angles of the vectors that a tensor of each model holds: all of it as one, or each of its rows.

Products of numbers of 16 bits are exact in float32. Blocks of them are added up there by one thread, blocks
in float64; of float32 numbers everything is formed in float64. Sums do not depend on the number of threads.
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

_SUM_ELEMENTS = 2**15  # torch sums so many in one thread,
_BLOCK_ELEMENTS = 2**17  # and what is formed of so many, by all threads, stays in the cache


def vector_count(shape: tuple[int, ...], along: Along) -> int:
    """How many vectors a tensor holds, L."""
    if along == "whole" or not shape:
        return 1
    return math.prod(shape[:-1] if along == "last" else shape[1:])


def of_elements(number_L: Tensor, shape: tuple[int, ...], along: Along, start: int, stop: int) -> Tensor:
    """For each of elements [start, stop) of the flat tensor the number of the vector that it is part of."""
    if start == stop or len(number_L) == 1:
        return number_L[:1].expand(stop - start)
    width = shape[-1] if along == "last" else len(number_L)
    table = number_L[:, None].expand(-1, width) if along == "last" else number_L.expand(shape[0], -1)
    first, last = start // width, -(-stop // width)
    return table[first:last].reshape(-1)[start - first * width : stop - first * width]


def held(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x``, float64, rounded to what ``dtype`` holds; what is beyond its range stays as it is."""
    rounded = x.to(dtype).to(torch.float64)
    return torch.where(rounded.isfinite(), rounded, x)


def angle_cosine(x_N: Tensor, y_N: Tensor, dtype: torch.dtype) -> float:
    """Cosine of the angle between two tensors as read in ``dtype``, formed in float64.

    Zero tensors count as orthogonal to everything.
    """
    xx, yy, xy = [], [], []
    for start in range(0, x_N.numel(), _SUM_ELEMENTS):
        x = read(x_N[start : start + _SUM_ELEMENTS], dtype).double()
        y = read(y_N[start : start + _SUM_ELEMENTS], dtype).double()
        xx.append(float((x * x).sum()))
        yy.append(float((y * y).sum()))
        xy.append(float((x * y).sum()))
    norms = math.sqrt(math.fsum(xx)) * math.sqrt(math.fsum(yy))
    return math.fsum(xy) / norms if norms > 0.0 else 0.0


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
        self._wide = torch.float32 if dtype.itemsize == 2 else torch.float64

    def products(self) -> Tensor:
        """Inner products of the whole tensors, float64 of shape (M, M). Differences are not rounded."""
        products_MM = self._products("whole", self._exact)[0]
        if bool(products_MM.isfinite().all()):
            return products_MM
        return self._products("whole", lambda where: [x.to(torch.float64) for x in self._exact(where)])[0]

    def cosine(self, along: Along, least_norm: float) -> Tensor:
        """Cosine of the angle between the vectors of two models, float64 of shape (L,).

        Vectors are divided by their lengths, but by no less than ``least_norm``; elements and their products
        are rounded to the dtype, as the ecosystem's merges do it. A long tensor is read once and its elements
        are not rounded: over many that makes no difference, unless most are too small for float16.
        """
        if self._is_long(along) and self._dtype != torch.float16:
            products_LMM = self._products(along, self._vectors)
            if bool(products_LMM.isfinite().all()):
                norms_LM = products_LMM.diagonal(dim1=1, dim2=2).sqrt().clamp(min=least_norm)
                lengths_L = held(norms_LM, self._dtype).prod(dim=1)
                return held(products_LMM[:, 0, 1] / lengths_L, self._dtype).clamp(-1.0, 1.0)
        norms = [
            held(norm_L.clamp(min=least_norm), self._dtype).to(self._wide) for norm_L in self._norms(along)
        ]

        def terms(where: slice) -> list[Tensor]:
            lengths = [of_elements(norm_L, self._shape, along, where.start, where.stop) for norm_L in norms]
            vectors = zip(self._vectors(where), lengths, strict=True)
            a_N, b_N = ((vector_N / length).to(self._dtype) for vector_N, length in vectors)
            return [self._product(a_N, b_N)]

        (cosine_L,) = self._sums(along, 1, terms)
        return held(cosine_L, self._dtype).clamp(-1.0, 1.0)

    def mean_cosine(self, along: Along) -> Tensor:
        """The mean over all pairs of models of the cosine of the angle between their vectors, float64 (L,).

        Vectors of length 0 are orthogonal to everything. Steps are rounded to the dtype where it holds them;
        products of elements only where they are few: over a long tensor that makes no difference.
        """
        product = torch.mul if self._is_long(along) else self._product
        products_LMM = self._products(along, self._vectors, product)
        norms_LM = held(products_LMM.diagonal(dim1=1, dim2=2).sqrt(), self._dtype)
        cosines = []
        for i, j in itertools.combinations(range(len(self._sources)), 2):
            norms_L = held(norms_LM[:, i] * norms_LM[:, j], self._dtype)
            cosine_L = held(held(products_LMM[:, i, j], self._dtype) / norms_L, self._dtype)
            cosines.append(torch.where(norms_L > 0.0, cosine_L, 0.0))
        return held(torch.stack(cosines).mean(dim=0), self._dtype)

    def _products(
        self,
        along: Along,
        vectors: Callable[[slice], list[Tensor]],
        product: Callable[[Tensor, Tensor], Tensor] = torch.mul,
    ) -> Tensor:
        """Inner products of the vectors, float64 of shape (L, M, M); ``product`` is that of two elements."""
        count = len(self._sources)
        pairs = list(itertools.combinations_with_replacement(range(count), 2))

        def terms(where: slice) -> list[Tensor]:
            wide = vectors(where)
            return [wide[i] * wide[i] if i == j else product(wide[i], wide[j]) for i, j in pairs]

        products_LMM = torch.empty(vector_count(self._shape, along), count, count, dtype=torch.float64)
        for (i, j), sum_L in zip(pairs, self._sums(along, len(pairs), terms), strict=True):
            products_LMM[:, i, j] = products_LMM[:, j, i] = sum_L
        return products_LMM

    def _norms(self, along: Along) -> list[Tensor]:
        def terms(where: slice) -> list[Tensor]:
            return [vector_N * vector_N for vector_N in self._vectors(where)]

        return [square_L.sqrt() for square_L in self._sums(along, len(self._sources), terms)]

    def _vectors(self, where: slice) -> list[Tensor]:
        """Elements of the vectors as the dtype holds them, in the wide dtype."""
        if self._base_N is None:
            return [read(source_N[where], self._dtype).to(self._wide) for source_N in self._sources]
        base_N = self._base_N[where]
        return [task_vector(x_N[where], base_N, self._dtype).to(self._wide) for x_N in self._sources]

    def _exact(self, where: slice) -> list[Tensor]:
        """Elements of the vectors in the wide dtype. Differences are not rounded."""
        vectors = [read(source_N[where], self._dtype).to(self._wide) for source_N in self._sources]
        if self._base_N is None:
            return vectors
        base_N = read(self._base_N[where], self._dtype).to(self._wide)
        return [vector_N - base_N for vector_N in vectors]

    def _product(self, a_N: Tensor, b_N: Tensor) -> Tensor:
        """Rounded to the dtype, unless it does not hold it; in the wide dtype."""
        product_N = a_N.to(self._wide) * b_N.to(self._wide)
        rounded_N = product_N.to(self._dtype).to(self._wide)
        return torch.where(rounded_N.isfinite(), rounded_N, product_N)

    def _sums(self, along: Along, count: int, terms: Callable[[slice], list[Tensor]]) -> list[Tensor]:
        """The sums over each vector, float64 of shape (L,), of the ``count`` tensors that ``terms`` gives."""
        width = self._width(along)
        sums = [torch.zeros(vector_count(self._shape, along), dtype=torch.float64) for _ in range(count)]
        for where in self._blocks(along, width):
            part = slice(where.start // width, where.stop // width) if along == "last" else slice(None)
            for sum_L, term_N in zip(sums, terms(where), strict=True):
                if along == "whole":
                    sum_L += math.fsum(float(piece_N.sum()) for piece_N in torch.split(term_N, _SUM_ELEMENTS))
                else:
                    sum_L[part] += _sum(term_N.view(-1, width), 0 if along == "first" else 1)
        return sums

    def _is_long(self, along: Along) -> bool:
        return along == "whole" and math.prod(self._shape) > _SUM_ELEMENTS

    def _width(self, along: Along) -> int:
        """Of how many elements the rows are into which blocks are laid out."""
        if along == "whole" or not self._shape:
            return 1
        return self._shape[-1] if along == "last" else vector_count(self._shape, "first")

    def _blocks(self, along: Along, width: int) -> Iterator[slice]:
        """Blocks of whole rows of ``width`` elements that cover the tensor; none of an empty one."""
        elements = math.prod(self._shape)
        step = _BLOCK_ELEMENTS if along == "whole" else max(_SUM_ELEMENTS // max(width, 1), 1) * width
        for start in range(0, elements, max(step, 1)):
            yield slice(start, min(start + step, elements))


def _sum(table: Tensor, axis: int) -> Tensor:
    if table.numel() <= _SUM_ELEMENTS:
        return table.sum(dim=axis).to(torch.float64)
    return torch.from_numpy(table.to(torch.float64).numpy().sum(axis=axis))  # numpy adds in one thread
