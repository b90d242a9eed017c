"""Sums of models with coefficients that follow from the angles between them.

Suffixes: N elements, M models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from merge_engine.methods.family import Call, Family, Group, Inputs
from merge_engine.methods.rounding import read


def combination(
    sources: Sequence[Tensor],
    base_N: Tensor | None,
    first: Tensor,
    dtype: torch.dtype,
    coefficients: Sequence[Tensor],
) -> Tensor:
    """sum_m c_m x_m, or base + sum_m c_m (x_m - base) where there is a base.

    Coefficients are scalars or one number for each element. Only the result is rounded to the merge dtype: it
    is formed in fp32, or for a merge in fp32 in float64, so that what cancels out leaves no rounding errors.
    """
    wide = sum_dtype(dtype)
    vectors = [read(source_N, dtype).to(wide) for source_N in sources]
    start_N = None if base_N is None else read(base_N, dtype).to(wide)
    if start_N is not None:
        vectors = [vector_N - start_N for vector_N in vectors]
    mixed_N = vectors[0] * coefficients[0]
    for m, vector_N in enumerate(vectors[1:], start=1):
        mixed_N = mixed_N + vector_N * coefficients[m]
    return mixed_N if start_N is None else start_N + mixed_N


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums of numbers of the merge dtype are formed in."""
    return torch.float32 if dtype.itemsize == 2 else torch.float64


def combination_family(coefficients: Callable[[Inputs], Sequence[float]]) -> Family:
    """The method that gives each model the coefficient that ``coefficients`` finds for a tensor."""

    def calls(group: Group) -> Iterator[Call]:
        of_tensors = [coefficients(tensor) for tensor in group.tensors]
        wide = sum_dtype(group.dtype)
        spread = tuple(group.spread(numbers, wide) for numbers in zip(*of_tensors, strict=True))
        compiles = wide == torch.float32
        yield Call(start=0, stop=group.elements, arguments=(spread,), compiles=compiles)

    return Family(kernel=combination, calls=calls)
