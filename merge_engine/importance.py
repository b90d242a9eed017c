"""How much each change of a tensor matters, as Arcee Fusion has it.

A row of numbers stands for a distribution, by softmax. What an element matters is its change times the
divergence of its row's two distributions. Steps are rounded to the merge dtype, as the ecosystem's merges do.
Suffixes: R rows, C elements of a row, N = R C.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from merge_engine.geometry import held
from merge_engine.methods.rounding import read, wide_dtype
from merge_engine.methods.task_vectors import task_vector
from merge_engine.order_statistics import quantiles

_BLOCK_ELEMENTS = 2**18
_LEAST_PROBABILITY = 1e-8
_FENCE = 1.5  # Tukey's: how many times the middle half's width above the median an outlier lies


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """``divergence_R``: of each row, float64; ``threshold``: changes from this importance on are outliers."""

    divergence_R: Tensor
    threshold: float


def importance(source_N: Tensor, base_N: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Importance:
    """What is needed to tell which changes from ``base_N`` to ``source_N`` matter."""
    columns = shape[-1] if shape else 1
    elements = math.prod(shape)
    step = max(_BLOCK_ELEMENTS // max(columns, 1), 1) * columns
    blocks = [slice(start, min(start + step, elements)) for start in range(0, elements, max(step, 1))]
    divergence_R = torch.cat(
        [torch.empty(0, dtype=torch.float64)]
        + [
            _divergence(
                read(source_N[where], dtype).view(-1, columns), read(base_N[where], dtype).view(-1, columns)
            )
            for where in blocks
        ]
    )

    def importances() -> Iterator[Tensor]:
        for where in blocks:
            change = task_vector(source_N[where], base_N[where], dtype).abs().view(-1, columns)
            rows = slice(where.start // columns, where.stop // columns)
            yield (change * divergence_R[rows, None].to(dtype)).view(-1)

    if not elements:
        return Importance(divergence_R=divergence_R, threshold=0.0)
    low, middle, high = (
        held(torch.tensor(x, dtype=torch.float64), dtype)
        for x in quantiles(importances, elements, (0.25, 0.5, 0.75), wide_dtype(dtype))
    )
    threshold = held(middle + held(_FENCE * held(high - low, dtype), dtype), dtype)
    return Importance(divergence_R=divergence_R, threshold=float(threshold))


def _divergence(source_RC: Tensor, base_RC: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of each row of the source from the base's, float64 of shape (R,)."""
    p_RC, q_RC = source_RC.softmax(dim=1), base_RC.softmax(dim=1)
    terms_RC = p_RC * ((p_RC + _LEAST_PROBABILITY) / (q_RC + _LEAST_PROBABILITY)).log()
    if source_RC.dtype == torch.float16 and not bool(terms_RC.isfinite().all()):  # probabilities of 0
        return held(_divergence(source_RC.to(torch.float32), base_RC.to(torch.float32)), torch.float16)
    sums = terms_RC.to(torch.float64).numpy().sum(axis=1)  # numpy adds in one thread
    return held(torch.from_numpy(sums), source_RC.dtype)
