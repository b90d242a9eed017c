"""Model Stock: between the base and the mean of the models, as far as their angles say.

Jang et al. 2024, Model Stock, arXiv 2403.19522.
Suffixes: N elements, L vectors of a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from merge_engine.geometry import Along, held
from merge_engine.methods.family import Call, Family, Group, Inputs
from merge_engine.methods.rounding import read, rounded, wide
from merge_engine.methods.vectors import vector_calls


def model_stock(
    sources: Sequence[Tensor],
    base_N: Tensor,
    first: Tensor,
    dtype: torch.dtype,
    share: Tensor,
    rest: Tensor,
) -> Tensor:
    """t * (mean of the models) + (1 - t) * base; t and 1 - t: scalars or one per element."""
    sum_N = read(sources[0], dtype)
    for source_N in sources[1:]:
        sum_N = rounded(sum_N + read(source_N, dtype), dtype)
    mean_N = rounded(sum_N / len(sources), dtype)
    from_models_N = wide(rounded(mean_N * share, dtype))
    return from_models_N + wide(rounded(read(base_N, dtype) * rest, dtype))


def stock_shares(cosine_L: Tensor, models: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """t = k c / (1 + (k - 1) c) and 1 - t for k models with task vectors of mean cosine c.

    Where the task vectors balance out (the divisor is 0), their mean is the base: then t is 0.
    """
    divisor_L = held(1.0 + held((models - 1) * cosine_L, dtype), dtype)
    share_L = held(held(models * cosine_L, dtype) / divisor_L, dtype)
    share_L = torch.where(divisor_L == 0.0, 0.0, share_L)
    return share_L, held(1.0 - share_L, dtype)


def _calls(group: Group) -> Iterator[Call]:
    along: Along = "last" if group.job.flag("filter_wise") else "whole"

    def numbers(tensor: Inputs) -> tuple[Tensor, ...]:
        return stock_shares(tensor.mean_cosine(along), len(group.job.sources), group.dtype)

    return vector_calls(group, along, numbers)


MODEL_STOCK = Family(kernel=model_stock, calls=_calls)
