"""Choices between elements, in the form that is quick both ways, with the same bits.

Run eagerly, `torch.where` costs as much as thirty multiplications, so masks are zeros and ones made by
in-place comparisons. Compiled, such masks would take five instructions where a blend takes one or two.
"""

from __future__ import annotations

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


def share_of(positive_N: Tensor, weight: Tensor) -> Tensor:
    """``weight`` where ``positive_N``, which is never negative, is not 0."""
    if torch.compiler.is_compiling():
        return torch.where(positive_N > 0.0, weight, 0.0)
    return positive_N.sign() * weight
