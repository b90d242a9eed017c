"""DARE: drop task vector elements at random, rescale the rest. Yu et al. 2023, arXiv 2311.03099.

Which elements stay is fixed by one field of uniforms per (seed, content of the model, tensor): element i
stays where u_i >= 1 - density, so that a smaller density keeps a subset of what a larger one keeps.

``rescale`` divides by the density, as the paper does. mergekit 0.1.5 multiplies by the ratio of the L1 norms
before and after dropping instead, as for TIES: equal in expectation, but not the same for a given mask.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from merge_engine.methods.family import Argument, Call, Family, Group
from merge_engine.methods.masks import kept_from
from merge_engine.methods.random_field import FIELD_ELEMENTS, field_N, limit
from merge_engine.methods.rounding import rounded, wide, wide_dtype
from merge_engine.methods.task_vectors import (
    add_terms,
    factor_or_none,
    rounded_weights,
    task_vector,
)


def dare(
    sources: Sequence[Tensor],
    base_N: Tensor,
    first: Tensor,
    dtype: torch.dtype,
    weights_M: Tensor,
    fields: Sequence[Tensor],
    limits_M: Tensor,
    gains_M: Tensor,
    elect: bool,
    normalize: bool,
    factor: Tensor | None,
) -> Tensor:
    """base + lambda * sum_m of the terms w_m * gain_m * mask_m * delta_m (gain 1/density).

    ``fields``: for each model the key of its field, int32 of shape (2,), or the uniforms, fp32 of shape (N,),
    which are used up. ``elect``: only terms of the elected sign count (TIES, algorithm 1, steps 2 and 3).
    """
    terms = []
    for m, source_N in enumerate(sources):
        uniforms_N = _uniforms(fields[m], first, source_N.numel())
        scaled_N = rounded(task_vector(source_N, base_N, dtype) * gains_M[m], dtype)
        kept_N = kept_from(scaled_N * weights_M[m], uniforms_N, limits_M[m])
        terms.append(wide(rounded(kept_N, dtype)))
    return add_terms(base_N, terms, weights_M, factor, dtype, elect=elect, normalize=normalize)


def _uniforms(field: Tensor, first: Tensor, count: int) -> Tensor:
    return field if field.is_floating_point() else field_N(first, count, field)


def _calls(group: Group, *, elect: bool) -> Iterator[Call]:
    job = group.job
    densities = job.values("density")
    gains = [1.0 / density if job.flag("rescale") and density > 0.0 else 1.0 for density in densities]
    rest: tuple[Argument, ...] = (
        torch.tensor([limit(1.0 - density) for density in densities], dtype=torch.float32),
        torch.tensor(gains, dtype=wide_dtype(group.dtype)),
        elect,
        job.flag("normalize"),
        factor_or_none(job.value("lambda"), group.dtype),
    )
    weights_M = rounded_weights(job.values("weight"), group.dtype)
    for start, stop, fields in _fields(group, len(densities)):
        yield Call(start=start, stop=stop, arguments=(weights_M, fields, *rest))


def _fields(group: Group, models: int) -> Iterator[tuple[int, int, tuple[Tensor, ...]]]:
    """Runs of elements with the fields of each model there: kept uniforms where short, otherwise keys."""
    if group.is_short:
        uniforms = (torch.cat([tensor.uniforms(m) for tensor in group.tensors]) for m in range(models))
        yield 0, group.elements, tuple(uniforms)
        return
    (tensor,) = group.tensors
    for block, start in enumerate(range(0, group.elements, FIELD_ELEMENTS)):
        keys = (torch.tensor(tensor.key(m, block), dtype=torch.int32) for m in range(models))
        yield start, min(start + FIELD_ELEMENTS, group.elements), tuple(keys)


DARE_LINEAR = Family(kernel=dare, calls=functools.partial(_calls, elect=False))
DARE_TIES = Family(kernel=dare, calls=functools.partial(_calls, elect=True))
