"""TIES-Merging: trim, elect signs, merge. Yadav et al. 2023, arXiv 2306.01708, algorithm 1.

Suffixes: N elements, M models.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from merge_engine.magnitudes import Kept
from merge_engine.methods.family import SHORT_ELEMENTS, Call, Family, Inputs
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
    gains_M: Tensor | None,
    normalize: bool,
    factor: Tensor | None,
) -> Tensor:
    """base + lambda * (disjoint mean of the trimmed task vectors).

    Step 1 keeps magnitudes that reach the model's threshold, which is a scalar or one number per element.
    ``gains_M`` multiply what it keeps (rescale, which is no part of the paper's algorithm).
    """
    terms = []
    for m, source_N in enumerate(sources):
        delta_N = task_vector(source_N, base_N, dtype)
        trimmed_N = kept_from(delta_N, delta_N.abs(), thresholds[m])
        if gains_M is not None:
            trimmed_N = rounded(trimmed_N * gains_M[m], dtype)
        terms.append(weighted(trimmed_N, weights_M[m], dtype))
    mixed_N, divisor_N = consensus(terms, weights_M, normalize)
    return add_to_base(base_N, mixed_N, divisor_N, factor, dtype)


def _calls(inputs: Inputs) -> Iterator[Call]:
    job = inputs.job
    weights_M = rounded_weights(job.values("weight"), inputs.dtype)
    densities = job.values("density")
    kept = [inputs.kept(m, density) for m, density in enumerate(densities)]
    gains_M = _gains(inputs, densities) if job.flag("rescale") else None
    rest = (gains_M, job.flag("normalize"), factor_or_none(job.value("lambda")))
    for start, stop in _runs(kept, inputs.elements):
        thresholds = tuple(_thresholds(entry, start, stop, inputs.dtype) for entry in kept)
        yield Call(start=start, stop=stop, arguments=(weights_M, thresholds, *rest))


def _gains(inputs: Inputs, densities: Sequence[float]) -> Tensor | None:
    """What gives each trimmed task vector the L1 norm of the whole one, shape (M,); None where all are 1."""
    gains = [
        1.0 if density >= 1.0 else _gain(*inputs.sums(m, density), inputs.dtype)
        for m, density in enumerate(densities)
    ]
    return None if all(gain == 1.0 for gain in gains) else torch.tensor(gains, dtype=torch.float32)


def _gain(whole: float, kept: float, dtype: torch.dtype) -> float:
    """whole / kept, both sums and their ratio as the merge dtype holds them."""
    if kept < _LEAST_SUM:
        return 1.0
    sums = torch.tensor([whole, kept], dtype=torch.float32)
    if whole <= torch.finfo(dtype).max:  # float16 ends at 65504
        sums = sums.to(dtype)
    return float((sums[0] / sums[1]).to(dtype))


def _runs(kept: Sequence[Kept], elements: int) -> Iterator[tuple[int, int]]:
    """Cut a long tensor where a model's ties end, so that scalars say what is kept, but no short one."""
    if elements < SHORT_ELEMENTS:
        yield 0, elements
    else:
        yield from itertools.pairwise(
            sorted({0, elements, *(min(entry.ties_end, elements) for entry in kept)})
        )


def _thresholds(kept: Kept, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """What magnitudes of elements [start, stop) must reach: past the last tie that is kept, one step more."""
    threshold = torch.tensor(kept.threshold, dtype=dtype)
    if kept.ties_end >= stop:
        return threshold
    above = (threshold.view(_INTEGERS[dtype.itemsize]) + 1).view(dtype)
    if kept.ties_end <= start:
        return above
    ties = kept.ties_end - start
    return torch.cat([threshold.expand(ties), above.expand(stop - kept.ties_end)])


TIES = Family(kernel=ties, calls=_calls)
