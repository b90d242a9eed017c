"""Model Breadcrumbs: leave out the largest and the smallest changes.

Davari and Belilovsky 2023, arXiv 2312.06795.

Suffixes: N elements, M models.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from merge_engine.methods.family import Call, Family, Group, Inputs
from merge_engine.methods.rounding import rounded
from merge_engine.methods.task_vectors import (
    add_terms,
    factor_or_none,
    rounded_weights,
    task_vector,
    weighted,
)
from merge_engine.methods.trimming import l1_gain, runs


def _between(x_N: Tensor, low: Tensor, high: Tensor) -> Tensor:
    r"""``x_N`` where low <= \|x\| < high, else 0."""
    size_N = x_N.abs()
    if torch.compiler.is_compiling():
        return torch.where((size_N >= low) & ~(size_N >= high), x_N, 0.0)
    too_large_N = size_N.clone().ge_(high)
    return (x_N * size_N.ge_(low).sub_(too_large_N)).add_(0.0)


def breadcrumbs(
    sources: Sequence[Tensor],
    base_N: Tensor,
    first: Tensor,
    dtype: torch.dtype,
    weights_M: Tensor,
    lows: Sequence[Tensor],
    highs: Sequence[Tensor],
    gains: Sequence[Tensor] | None,
    elect: bool,
    normalize: bool,
    factor: Tensor | None,
) -> Tensor:
    """base + lambda * sum_m w_m * gain_m * mask_m * delta_m: masks leave out outliers and small changes.

    The gain multiplies what is kept (rescale, which is no part of the paper). Thresholds and gains are
    scalars or one number for each element. ``elect``: only terms of the elected sign count (TIES, algorithm
    1, steps 2 and 3).
    """
    terms = []
    for m, source_N in enumerate(sources):
        kept_N = _between(task_vector(source_N, base_N, dtype), lows[m], highs[m])
        if gains is not None:
            kept_N = rounded(kept_N * gains[m], dtype)
        terms.append(weighted(kept_N, weights_M[m], dtype))
    return add_terms(base_N, terms, weights_M, factor, dtype, elect=elect, normalize=normalize)


def band(elements: int, density: float, gamma: float) -> tuple[int, int]:
    """How many of the largest are left out, and the rank up to which the others are kept.

    ``density`` of the elements are kept, below the largest ``gamma`` of them; where fewer than that lie
    below, fewer of the largest are left out.
    """
    kept = int(density * elements)
    left_out = min(int(gamma * elements), elements - kept)
    return left_out, left_out + kept


def _calls(group: Group, *, elect: bool) -> Iterator[Call]:
    job = group.job
    weights_M = rounded_weights(job.values("weight"), group.dtype)
    bands = list(zip(job.values("density"), job.values("gamma"), strict=True))
    lows, highs = [], []
    for m, (density, gamma) in enumerate(bands):
        counts = [band(tensor.elements, density, gamma) for tensor in group.tensors]
        highs.append([tensor.largest(m, n) for tensor, (n, _) in zip(group.tensors, counts, strict=True)])
        lows.append([tensor.largest(m, n) for tensor, (_, n) in zip(group.tensors, counts, strict=True)])
    gains = _gains(group, bands) if job.flag("rescale") else None
    rest = (gains, elect, job.flag("normalize"), factor_or_none(job.value("lambda"), group.dtype))
    for start, stop, thresholds in runs(group, [*lows, *highs], group.dtype):
        split = thresholds[: len(bands)], thresholds[len(bands) :]
        yield Call(start=start, stop=stop, arguments=(weights_M, *split, *rest))


def _gains(group: Group, bands: Sequence[tuple[float, float]]) -> tuple[Tensor, ...]:
    """What gives each thinned task vector the L1 norm of the whole one."""
    return tuple(
        group.spread([_gain(tensor, m, density, gamma) for tensor in group.tensors])
        for m, (density, gamma) in enumerate(bands)
    )


def _gain(tensor: Inputs, source: int, density: float, gamma: float) -> float:
    left_out, up_to = band(tensor.elements, density, gamma)
    if up_to - left_out == tensor.elements:
        return 1.0
    total, outer = tensor.sum_of_largest(source, up_to)
    return l1_gain(total, outer - tensor.sum_of_largest(source, left_out)[1], tensor.dtype)


BREADCRUMBS = Family(kernel=breadcrumbs, calls=functools.partial(_calls, elect=False))
BREADCRUMBS_TIES = Family(kernel=breadcrumbs, calls=functools.partial(_calls, elect=True))
