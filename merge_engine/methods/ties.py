"""TIES-Merging: trim, elect signs, merge. Yadav et al. 2023, arXiv 2306.01708, algorithm 1.

Suffixes: N elements, M models.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from merge_engine.magnitudes import Kept
from merge_engine.methods.family import Call, Family, Group
from merge_engine.methods.masks import kept_from
from merge_engine.methods.rounding import rounded
from merge_engine.methods.task_vectors import (
    add_to_base,
    consensus,
    factor_or_none,
    rounded_weights,
    task_vector,
    weighted,
)

_LEAST_SUM = 1e-7  # task vectors of less are not rescaled; as mergekit 0.1.5 behaves
_INTEGERS = {2: torch.int16, 4: torch.int32}


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
        trimmed_N = kept_from(delta_N, delta_N.abs(), thresholds[m])
        if gains is not None:
            trimmed_N = rounded(trimmed_N * gains[m], dtype)
        terms.append(weighted(trimmed_N, weights_M[m], dtype))
    mixed_N, divisor_N = consensus(terms, weights_M, normalize)
    return add_to_base(base_N, mixed_N, divisor_N, factor, dtype)


def _calls(group: Group) -> Iterator[Call]:
    job = group.job
    weights_M = rounded_weights(job.values("weight"), group.dtype)
    densities = job.values("density")
    kept = [[tensor.kept(m, density) for tensor in group.tensors] for m, density in enumerate(densities)]
    gains = _gains(group, densities) if job.flag("rescale") else None
    rest = (gains, job.flag("normalize"), factor_or_none(job.value("lambda")))
    if group.is_short:
        thresholds = tuple(_threshold_of_each(group, entries) for entries in kept)
        yield Call(start=0, stop=group.elements, arguments=(weights_M, thresholds, *rest))
        return
    whole = [entry for (entry,) in kept]
    steps = [_steps([entry], group.dtype) for entry in whole]
    for start, stop in _runs(whole, group.elements):
        thresholds = tuple(
            (threshold if start < entry.ties_end else above)[0]
            for entry, (threshold, above) in zip(whole, steps, strict=True)
        )
        yield Call(start=start, stop=stop, arguments=(weights_M, thresholds, *rest))


def _gains(group: Group, densities: Sequence[float]) -> tuple[Tensor, ...] | None:
    """What gives each trimmed task vector the L1 norm of the whole one; None where all are 1."""
    gains = [
        [1.0 if density >= 1.0 else _gain(*tensor.sums(m, density), group.dtype) for tensor in group.tensors]
        for m, density in enumerate(densities)
    ]
    return None if all(gain == 1.0 for row in gains for gain in row) else tuple(map(group.spread, gains))


def _gain(whole: float, kept: float, dtype: torch.dtype) -> float:
    """whole / kept, both sums and their ratio as the merge dtype holds them."""
    if kept < _LEAST_SUM:
        return 1.0
    sums = torch.tensor([whole, kept], dtype=torch.float32)
    if whole <= torch.finfo(dtype).max:  # float16 ends at 65504
        sums = sums.to(dtype)
    return float((sums[0] / sums[1]).to(dtype))


def _runs(kept: Sequence[Kept], elements: int) -> Iterator[tuple[int, int]]:
    """Cut a long tensor where a model's ties end, so that scalars say what is kept."""
    yield from itertools.pairwise(sorted({0, elements, *(min(entry.ties_end, elements) for entry in kept)}))


def _threshold_of_each(group: Group, kept: Sequence[Kept]) -> Tensor:
    """What the magnitude of each element of a group must reach, shape (N,)."""
    thresholds_N = torch.empty(group.elements, dtype=group.dtype)
    steps = zip(*(step.tolist() for step in _steps(kept, group.dtype)), strict=True)
    parts = torch.split(thresholds_N, group.lengths)
    for part_N, entry, (threshold, above) in zip(parts, kept, steps, strict=True):
        part_N.fill_(above)
        part_N[: entry.ties_end] = threshold
    return thresholds_N


def _steps(kept: Sequence[Kept], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The thresholds of tensors and, one step of the dtype higher, those past the last tie that is kept."""
    thresholds = torch.tensor([entry.threshold for entry in kept], dtype=dtype)
    return thresholds, (thresholds.view(_INTEGERS[dtype.itemsize]) + 1).view(dtype)


TIES = Family(kernel=ties, calls=_calls)
