"""Weighted mean of models. Wortsman et al. 2022, Model Soups, arXiv 2203.05482.

Suffixes: N elements, M models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from merge_engine.methods.family import Call, Family, Group
from merge_engine.methods.rounding import read, wide, wide_dtype


def linear(
    sources: Sequence[Tensor],
    base_N: None,
    first: Tensor,
    dtype: torch.dtype,
    weights_M: Tensor,
    total: Tensor | None,
) -> Tensor:
    """sum_m w_m x_m, divided by ``total`` where it is given."""
    merged_N = wide(read(sources[0], dtype)) * weights_M[0]
    for m, source_N in enumerate(sources[1:], start=1):
        merged_N = merged_N + wide(read(source_N, dtype)) * weights_M[m]
    return merged_N if total is None else merged_N / total


def _calls(group: Group) -> Iterator[Call]:
    weights_M = torch.tensor(group.job.values("weight"), dtype=wide_dtype(group.dtype))
    total = weights_M.sum() if group.job.flag("normalize") else None
    yield Call(start=0, stop=group.elements, arguments=(weights_M, total))


LINEAR = Family(kernel=linear, calls=_calls)
