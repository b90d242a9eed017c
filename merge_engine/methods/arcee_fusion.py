"""Arcee Fusion: take over the changes that matter far more than most. Arcee AI 2025, https://arcee.ai

Importance is a change times the divergence of the softmax of its row (`merge_engine.importance`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from merge_engine.methods.family import Call, Family, Group, Inputs
from merge_engine.methods.masks import kept_from
from merge_engine.methods.rounding import read, rounded, wide
from merge_engine.methods.task_vectors import task_vector
from merge_engine.methods.vectors import vector_calls


def arcee_fusion(
    sources: Sequence[Tensor],
    base_N: Tensor,
    first: Tensor,
    dtype: torch.dtype,
    divergence: Tensor,
    threshold: Tensor,
) -> Tensor:
    """base + (x - base) where |x - base| times the row's ``divergence`` reaches ``threshold``.

    Both are scalars or one number for each element.
    """
    (source_N,) = sources
    delta_N = task_vector(source_N, base_N, dtype)
    importance_N = wide(rounded(delta_N.abs() * divergence, dtype))
    kept_N = kept_from(wide(delta_N), importance_N, threshold)
    return wide(read(base_N, dtype)) + kept_N


def _calls(group: Group) -> Iterator[Call]:
    def numbers(tensor: Inputs) -> tuple[Tensor, ...]:
        found = tensor.importance()
        return found.divergence_R, torch.full_like(found.divergence_R, found.threshold)

    return vector_calls(group, "last", numbers)


ARCEE_FUSION = Family(kernel=arcee_fusion, calls=_calls)
