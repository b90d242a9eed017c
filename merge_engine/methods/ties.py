"""TIES-Merging: trim, elect signs, merge. Yadav et al. 2023, arXiv 2306.01708, algorithm 1."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from merge_engine.magnitudes import Kept
from merge_engine.methods.family import Call, Family, Inputs
from merge_engine.methods.rounding import rounded
from merge_engine.methods.task_vectors import (
    add_to_base,
    consensus,
    factor_or_none,
    rounded_weights,
    task_vector,
)


def ties(
    sources: Sequence[Tensor],
    base_N: Tensor,
    first: Tensor,
    dtype: torch.dtype,
    weights_M: Tensor,
    thresholds_M: Tensor,
    normalize: bool,
    factor: Tensor | None,
) -> Tensor:
    """base + lambda * (disjoint mean of the trimmed task vectors); step 1 keeps magnitudes >= the threshold."""
    terms = []
    for m, source_N in enumerate(sources):
        delta_N = task_vector(source_N, base_N, dtype)
        trimmed_N = torch.where(delta_N.abs() >= thresholds_M[m], delta_N, 0.0)
        terms.append(rounded(trimmed_N * weights_M[m], dtype))
    mixed_N, divisor_N = consensus(terms, weights_M, normalize)
    return add_to_base(base_N, mixed_N, divisor_N, factor, dtype)


def _calls(inputs: Inputs) -> Iterator[Call]:
    job = inputs.job
    weights_M = rounded_weights(job.values("weight"), inputs.dtype)
    kept = [inputs.kept(m, density) for m, density in enumerate(job.values("density"))]
    rest = (job.flag("normalize"), factor_or_none(job.value("lambda")))
    for start, stop, thresholds in _runs(kept, inputs.elements):
        thresholds_M = torch.tensor(thresholds, dtype=torch.float32)
        yield Call(start=start, stop=stop, arguments=(weights_M, thresholds_M, *rest))


def _runs(kept: Sequence[Kept], elements: int) -> Iterator[tuple[int, int, list[float]]]:
    """Cut the tensor where a model's ties end, so that within a run one threshold says what is kept."""
    cuts = sorted({0, elements, *(min(entry.ties_end, elements) for entry in kept)})
    for start, stop in zip(cuts, cuts[1:], strict=False):
        yield start, stop, [entry.threshold if start < entry.ties_end else _above(entry.threshold) for entry in kept]


def _above(magnitude: float) -> float:
    return float(np.nextafter(np.float32(magnitude), np.float32(math.inf)))


TIES = Family(kernel=ties, calls=_calls)
