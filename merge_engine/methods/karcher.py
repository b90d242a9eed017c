"""Karcher mean: the point of the sphere nearest to all models in squared angles, with their mean length.

Wang et al. 2026, Functionality-Oriented LLM Merging on the Fisher-Rao Manifold, arXiv 2603.04972.
Its fixed-point iteration is run on the coefficients of the models, which takes their inner products alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from merge_engine.methods.combination import combination_family
from merge_engine.methods.family import Inputs

_LEAST_LENGTH = 1e-7  # of a mean of unit vectors: float64 inner products tell no shorter one from zero


def karcher_coefficients(products_MM: Tensor, max_iter: int, tol: float) -> list[float]:
    """What each of M vectors counts, from their inner products, float64 of shape (M, M).

    Stops after ``max_iter`` steps, or where a step would be shorter than ``tol`` radians. Vectors of length 0
    have no direction: they count in the mean length only. Where directions cancel out, the first is taken.
    """
    norms_M = products_MM.diagonal().sqrt()
    moving = norms_M > 0.0
    count = int(moving.sum())
    if not count:
        return [1.0 / len(norms_M)] * len(norms_M)
    lengths_K = norms_M[moving]
    cosines_KK = (products_MM[moving][:, moving] / torch.outer(lengths_K, lengths_K)).clamp(-1.0, 1.0)
    coefficients_K = _karcher_mean(cosines_KK, max_iter, tol)
    coefficients_M = torch.zeros_like(norms_M)
    coefficients_M[moving] = coefficients_K / lengths_K * norms_M.mean()
    return list(map(float, coefficients_M))


def _karcher_mean(cosines_KK: Tensor, max_iter: int, tol: float) -> Tensor:
    """The mean of K unit vectors, as a sum of them: its coefficients."""
    count = len(cosines_KK)
    mean_K = torch.full((count,), 1.0 / count, dtype=torch.float64)
    length = _length(mean_K, cosines_KK)
    if length < _LEAST_LENGTH:
        return torch.eye(count, dtype=torch.float64)[0]
    mean_K = mean_K / length
    for _ in range(max_iter):
        step_K = _mean_of_logs(mean_K, cosines_KK)
        angle = _length(step_K, cosines_KK)
        if angle < tol or angle == 0.0:
            break
        mean_K = math.cos(angle) * mean_K + math.sin(angle) / angle * step_K  # exponential map
        mean_K = mean_K / _length(mean_K, cosines_KK)
    return mean_K


def _mean_of_logs(mean_K: Tensor, cosines_KK: Tensor) -> Tensor:
    """The mean of the logarithms (a / sin a) (u - cos a mean): ways along the sphere to the unit vectors."""
    cos_K = (cosines_KK @ mean_K).clamp(-1.0, 1.0)
    sin_K = (1.0 - cos_K.square()).sqrt()
    gains_K = torch.where(sin_K > 0.0, cos_K.acos() / sin_K, 1.0) / len(mean_K)
    return gains_K - (gains_K @ cos_K) * mean_K


def _length(coefficients_K: Tensor, cosines_KK: Tensor) -> float:
    return math.sqrt(max(float(coefficients_K @ cosines_KK @ coefficients_K), 0.0))


def _coefficients(tensor: Inputs) -> list[float]:
    job = tensor.job
    return karcher_coefficients(tensor.products(), int(job.value("max_iter")), job.value("tol"))


KARCHER = combination_family(_coefficients)
