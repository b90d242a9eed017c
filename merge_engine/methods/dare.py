"""DARE: drop task vector elements at random, rescale the rest. Yu et al. 2023, arXiv 2311.03099, section 3.2.

Which elements stay is fixed by one field of uniforms per (seed, source model, tensor): element i stays where
u_i >= 1 - density, so that a smaller density keeps a subset of what a larger one keeps.

``rescale`` divides by the density, as the paper does. mergekit 0.1.5 multiplies by the ratio of the L1 norms
before and after dropping instead, as for TIES: equal in expectation, but not the same for a given mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from merge_engine.methods.family import Argument, Call, Family, Inputs
from merge_engine.methods.masks import kept_from
from merge_engine.methods.random_field import FIELD_ELEMENTS, field_N
from merge_engine.methods.rounding import rounded
from merge_engine.methods.task_vectors import (
    add_to_base,
    consensus,
    factor_or_none,
    rounded_weights,
    task_vector,
    weighted,
)


def _terms(
    sources: Sequence[Tensor],
    base_N: Tensor,
    first: Tensor,
    dtype: torch.dtype,
    weights_M: Tensor,
    keys_M2: Tensor,
    limits_M: Tensor,
    gains_M: Tensor,
) -> list[Tensor]:
    """Weighted task vectors after dropping: w_m * gain_m * mask_m * delta_m (section 3.2: gain 1/density)."""
    terms = []
    for m, source_N in enumerate(sources):
        field = field_N(first, source_N.numel(), keys_M2[m])
        delta_N = kept_from(task_vector(source_N, base_N, dtype), field, limits_M[m])
        terms.append(weighted(rounded(delta_N * gains_M[m], dtype), weights_M[m], dtype))
    return terms


def dare_linear(
    sources: Sequence[Tensor],
    base_N: Tensor,
    first: Tensor,
    dtype: torch.dtype,
    weights_M: Tensor,
    keys_M2: Tensor,
    limits_M: Tensor,
    gains_M: Tensor,
    normalize: bool,
    factor: Tensor | None,
) -> Tensor:
    """base + lambda * sum_m of the terms, divided by the sum of the weights with ``normalize``."""
    terms = _terms(sources, base_N, first, dtype, weights_M, keys_M2, limits_M, gains_M)
    mixed_N = terms[0]
    for term_N in terms[1:]:
        mixed_N = mixed_N + term_N
    return add_to_base(base_N, mixed_N, weights_M.sum() if normalize else None, factor, dtype)


def dare_ties(
    sources: Sequence[Tensor],
    base_N: Tensor,
    first: Tensor,
    dtype: torch.dtype,
    weights_M: Tensor,
    keys_M2: Tensor,
    limits_M: Tensor,
    gains_M: Tensor,
    normalize: bool,
    factor: Tensor | None,
) -> Tensor:
    """As `dare_linear`, but only terms of the elected sign count (TIES, algorithm 1, steps 2 and 3)."""
    terms = _terms(sources, base_N, first, dtype, weights_M, keys_M2, limits_M, gains_M)
    mixed_N, divisor_N = consensus(terms, weights_M, normalize)
    return add_to_base(base_N, mixed_N, divisor_N, factor, dtype)


def _calls(inputs: Inputs) -> Iterator[Call]:
    job = inputs.job
    densities = job.values("density")
    gains = [1.0 / density if job.flag("rescale") else 1.0 for density in densities]
    rest: tuple[Argument, ...] = (
        torch.tensor([1.0 - density for density in densities], dtype=torch.float32),
        torch.tensor(gains, dtype=torch.float32),
        job.flag("normalize"),
        factor_or_none(job.value("lambda")),
    )
    weights_M = rounded_weights(job.values("weight"), inputs.dtype)
    for block, start in enumerate(range(0, inputs.elements, FIELD_ELEMENTS)):
        keys_M2 = torch.tensor([inputs.key(m, block) for m in range(len(densities))], dtype=torch.int32)
        stop = min(start + FIELD_ELEMENTS, inputs.elements)
        yield Call(start=start, stop=stop, arguments=(weights_M, keys_M2, *rest))


DARE_LINEAR = Family(kernel=dare_linear, calls=_calls)
DARE_TIES = Family(kernel=dare_ties, calls=_calls)
