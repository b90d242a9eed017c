"""What every method that works on task vectors shares. Suffixes: N elements, M models.

Each step is rounded to the merge dtype where the ecosystem's merges round it, but for the last.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from merge_engine.methods.masks import elected_sign, sum_of_positive
from merge_engine.methods.rounding import read, rounded, wide, wide_dtype


def task_vector(source_N: Tensor, base_N: Tensor, dtype: torch.dtype) -> Tensor:
    """delta = x - base."""
    return rounded(read(source_N, dtype) - read(base_N, dtype), dtype)


def add_to_base(
    base_N: Tensor, mixed_N: Tensor, divisor: Tensor | None, factor: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """base + lambda * mixed / divisor; the divisor (scalar or one per element) and lambda may be None."""
    mixed_N = rounded(mixed_N, dtype)
    if divisor is not None:
        divisor = divisor + divisor.abs().lt_(1e-8)  # a sum of weights this small does not divide
        mixed_N = rounded(mixed_N / rounded(divisor, dtype), dtype)
    if factor is not None:
        mixed_N = rounded(mixed_N * factor, dtype)
    return wide(read(base_N, dtype)) + mixed_N


def add_terms(
    base_N: Tensor,
    terms: Sequence[Tensor],
    weights_M: Tensor,
    factor: Tensor | None,
    dtype: torch.dtype,
    *,
    elect: bool,
    normalize: bool,
) -> Tensor:
    """base + lambda * what weighted task vectors come to: their sum, over that of the weights to normalize.

    ``elect``: only terms of the elected sign count, and their weights, as in `consensus`.
    """
    if elect:
        mixed_N, divisor = consensus(terms, weights_M, normalize)
    else:
        mixed_N = functools.reduce(torch.add, terms)
        divisor = functools.reduce(torch.add, _each(weights_M)) if normalize else None
    return add_to_base(base_N, mixed_N, divisor, factor, dtype)


def weighted(delta_N: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """w * delta as the merge dtype holds it, in its wide dtype for sums."""
    return wide(rounded(delta_N * weight, dtype))


def consensus(terms: Sequence[Tensor], weights_M: Tensor, normalize: bool) -> tuple[Tensor, Tensor | None]:
    """The disjoint mean of weighted task vectors (TIES, arXiv 2306.01708, algorithm 1, steps 2 and 3).

    The sign of each element is elected by the sum of ``terms`` (zero counts as plus); only terms of that sign
    count. Returns their sum and, with ``normalize``, the sum of their weights.
    """
    sign_N = elected_sign(functools.reduce(torch.add, terms))
    agreeing = [term_N * sign_N for term_N in terms]
    mixed_N = sum_of_positive(agreeing, terms)
    return mixed_N, sum_of_positive(agreeing, _each(weights_M)) if normalize else None


def _each(numbers_M: Tensor) -> list[Tensor]:
    return [numbers_M[m] for m in range(len(numbers_M))]


def rounded_weights(weights: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Weights as the merge dtype holds them, shape (M,), in its wide dtype."""
    return wide(torch.tensor(weights, dtype=wide_dtype(dtype)).to(dtype))


def factor_or_none(value: float, dtype: torch.dtype) -> Tensor | None:
    """A scalar tensor, or None where multiplying changes nothing."""
    return None if value == 1.0 else torch.tensor(value, dtype=wide_dtype(dtype))
