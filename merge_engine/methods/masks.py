"""Choices between elements, in the form that is quick both ways, with the same bits.

Run eagerly, `torch.where` costs as much as thirty multiplications, so masks are zeros and ones made by
in-place comparisons. Compiled, such masks would take five instructions where a blend takes one or two.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor


def kept_from(x_N: Tensor, measure_N: Tensor, limit: Tensor) -> Tensor:
    """``x_N`` where ``measure_N`` >= ``limit``, else +0. ``measure_N`` is used up."""
    if torch.compiler.is_compiling():
        return torch.where(measure_N >= limit, x_N, 0.0)
    return (x_N * measure_N.ge_(limit)).add_(0.0)  # -0 becomes +0


def elected_sign(vote_N: Tensor) -> Tensor:
    """1 where ``vote_N`` >= 0, else -1."""
    if torch.compiler.is_compiling():
        return torch.where(vote_N >= 0.0, 1.0, -1.0)
    return vote_N.clone().ge_(0.0).mul_(2.0).sub_(1.0)


def sum_of_positive(measures: Sequence[Tensor], numbers: Sequence[Tensor]) -> Tensor:
    """The sum of those ``numbers`` (scalars, or one for each element) whose measure is above 0."""
    pairs = list(zip(measures, numbers, strict=True))
    if torch.compiler.is_compiling():
        sum_N = torch.where(measures[0] > 0.0, numbers[0], 0.0)
        for measure_N, number in pairs[1:]:
            sum_N = torch.where(measure_N > 0.0, sum_N + number, sum_N)
        return sum_N
    return functools.reduce(torch.add, [measure_N.gt(0.0) * number for measure_N, number in pairs]) + 0.0
