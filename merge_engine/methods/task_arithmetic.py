"""Base plus weighted task vectors. Ilharco et al. 2022, Editing Models with Task Arithmetic, arXiv 2212.04089

Suffixes: N elements, M models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from merge_engine.methods.family import Call, Family, Group
from merge_engine.methods.task_vectors import (
    add_to_base,
    factor_or_none,
    rounded_weights,
    task_vector,
    weighted,
)


def task_arithmetic(
    sources: Sequence[Tensor],
    base_N: Tensor,
    first: Tensor,
    dtype: torch.dtype,
    weights_M: Tensor,
    divisor: Tensor | None,
    factor: Tensor | None,
) -> Tensor:
    """base + lambda * sum_m w_m (x_m - base), the sum divided by ``divisor`` if there is one."""
    mixed_N = weighted(task_vector(sources[0], base_N, dtype), weights_M[0], dtype)
    for m, source_N in enumerate(sources[1:], start=1):
        mixed_N = mixed_N + weighted(task_vector(source_N, base_N, dtype), weights_M[m], dtype)
    return add_to_base(base_N, mixed_N, divisor, factor, dtype)


def _calls(group: Group) -> Iterator[Call]:
    job = group.job
    weights_M = rounded_weights(job.values("weight"), group.dtype)
    divisor = weights_M.sum() if job.flag("normalize") else None
    arguments = (weights_M, divisor, factor_or_none(job.value("lambda"), group.dtype))
    yield Call(start=0, stop=group.elements, arguments=arguments)


TASK_ARITHMETIC = Family(kernel=task_arithmetic, calls=_calls)
