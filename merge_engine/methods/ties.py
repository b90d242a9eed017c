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
from merge_engine.methods.task_vectors import (
    add_to_base,
    consensus,
    factor_or_none,
    rounded_weights,
    task_vector,
    weighted,
)

_INTEGERS = {2: torch.int16, 4: torch.int32}


def ties(
    sources: Sequence[Tensor],
    base_N: Tensor,
    first: Tensor,
    dtype: torch.dtype,
    weights_M: Tensor,
    thresholds: Sequence[Tensor],
    normalize: bool,
    factor: Tensor | None,
) -> Tensor:
    """base + lambda * (disjoint mean of the trimmed task vectors).

    Step 1 keeps magnitudes that reach the model's threshold, which is a scalar or one number per element.
    """
    terms = []
    for m, source_N in enumerate(sources):
        delta_N = task_vector(source_N, base_N, dtype)
        trimmed_N = kept_from(delta_N, delta_N.abs(), thresholds[m])
        terms.append(weighted(trimmed_N, weights_M[m], dtype))
    mixed_N, divisor_N = consensus(terms, weights_M, normalize)
    return add_to_base(base_N, mixed_N, divisor_N, factor, dtype)


def _calls(inputs: Inputs) -> Iterator[Call]:
    job = inputs.job
    weights_M = rounded_weights(job.values("weight"), inputs.dtype)
    kept = [inputs.kept(m, density) for m, density in enumerate(job.values("density"))]
    rest = (job.flag("normalize"), factor_or_none(job.value("lambda")))
    for start, stop in _runs(kept, inputs.elements):
        thresholds = tuple(_thresholds(entry, start, stop, inputs.dtype) for entry in kept)
        yield Call(start=start, stop=stop, arguments=(weights_M, thresholds, *rest))


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
