"""TIES-Merging: trim, elect signs, merge. Yadav et al. 2023, arXiv 2306.01708, algorithm 1.

Suffixes: N elements, M models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from merge_engine.methods.family import Call, Family, Group
from merge_engine.methods.masks import kept_from
from merge_engine.methods.rounding import rounded, wide
from merge_engine.methods.task_vectors import (
    add_terms,
    factor_or_none,
    rounded_weights,
    task_vector,
)
from merge_engine.methods.trimming import l1_gain, runs


def ties(
    sources: Sequence[Tensor],
    base_N: Tensor,
    first: Tensor,
    dtype: torch.dtype,
    weights_M: Tensor,
    thresholds: Sequence[Tensor],
    gains: Sequence[Tensor] | None,
    normalize: bool,
    factor: Tensor | None,
) -> Tensor:
    """base + lambda * (disjoint mean of the trimmed task vectors).

    Step 1 keeps magnitudes that reach the model's threshold; its gain multiplies what is kept (rescale, which
    is no part of the paper's algorithm). Thresholds and gains are scalars or one number for each element.
    """
    terms = []
    for m, source_N in enumerate(sources):
        delta_N = task_vector(source_N, base_N, dtype)
        scaled_N = delta_N if gains is None else rounded(delta_N * gains[m], dtype)
        kept_N = kept_from(scaled_N * weights_M[m], delta_N.abs(), thresholds[m])
        terms.append(wide(rounded(kept_N, dtype)))
    return add_terms(base_N, terms, weights_M, factor, dtype, elect=True, normalize=normalize)


def _calls(group: Group) -> Iterator[Call]:
    job = group.job
    weights_M = rounded_weights(job.values("weight"), group.dtype)
    densities = job.values("density")
    kept = [[tensor.kept(m, density) for tensor in group.tensors] for m, density in enumerate(densities)]
    gains = _gains(group, densities) if job.flag("rescale") else None
    rest = (gains, job.flag("normalize"), factor_or_none(job.value("lambda"), group.dtype))
    for start, stop, thresholds in runs(group, kept, group.dtype):
        yield Call(start=start, stop=stop, arguments=(weights_M, thresholds, *rest))


def _gains(group: Group, densities: Sequence[float]) -> tuple[Tensor, ...] | None:
    """What gives each trimmed task vector the L1 norm of the whole one; None where all are 1."""
    gains = [
        [
            1.0 if density >= 1.0 else l1_gain(*tensor.sums(m, density), group.dtype)
            for tensor in group.tensors
        ]
        for m, density in enumerate(densities)
    ]
    return None if all(gain == 1.0 for row in gains for gain in row) else tuple(map(group.spread, gains))


TIES = Family(kernel=ties, calls=_calls)
