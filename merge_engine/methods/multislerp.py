"""Multi-SLERP: the direction of the weighted mean of unit vectors, with the weighted mean of their lengths.

Goddard, https://goddard.blog/posts/multislerp-wow-what-a-cool-idea. Its tangent vectors at that mean add up
to zero by construction, so that the point it goes to is the mean itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from merge_engine.methods.combination import combination_family
from merge_engine.methods.family import Inputs

_LEAST_TOTAL = 1e-8  # a sum of weights this small does not divide


def multislerp_coefficients(
    products_MM: Tensor, weights: Sequence[float], normalize: bool, eps: float
) -> list[float]:
    """What each of M vectors counts, from their inner products, float64 of shape (M, M).

    ``eps`` is added to lengths that divide. Where the weighted mean of the unit vectors is no longer than it,
    it has no direction: then the plain weighted sum is taken. A single vector is the result.
    """
    if len(weights) == 1:
        return [1.0]
    weights_M = torch.tensor(weights, dtype=torch.float64)
    total = weights_M.sum()
    if normalize and abs(float(total)) > _LEAST_TOTAL:
        weights_M = weights_M / total
    norms_M = products_MM.diagonal().sqrt()
    unit_M = weights_M / (norms_M + eps)
    length = (unit_M @ products_MM @ unit_M).clamp(min=0.0).sqrt()
    if float(length) <= eps:
        return list(map(float, weights_M))
    return list(map(float, unit_M * (weights_M @ norms_M / length)))


def _coefficients(tensor: Inputs) -> list[float]:
    job = tensor.job
    return multislerp_coefficients(
        tensor.products(), job.values("weight"), job.flag("normalize_weights"), job.value("eps")
    )


MULTISLERP = combination_family(_coefficients)
