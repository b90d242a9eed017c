"""NuSLERP: spherical interpolation of two models, or of two task vectors. Shoemake 1985, section 3.3.

Angles, sines and sums are rounded to the merge dtype, as the ecosystem's merges do it.
Suffixes: N elements, L vectors of a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from merge_engine.geometry import Along, held
from merge_engine.methods.family import Call, Family, Group, Inputs
from merge_engine.methods.rounding import read, rounded, wide
from merge_engine.methods.task_vectors import task_vector
from merge_engine.methods.vectors import vector_calls

_LEAST_NORM = 1e-7  # a shorter vector counts as one of this length for the angle
_LEAST_SINE = 1e-7  # below, the arc is a line
_LEAST_TOTAL = 1e-6  # weights of a smaller sum count as equal


def nuslerp(
    sources: Sequence[Tensor],
    base_N: Tensor | None,
    first: Tensor,
    dtype: torch.dtype,
    from_first: Tensor,
    from_second: Tensor,
    divisor: Tensor,
) -> Tensor:
    """(p_0 x_0 + p_1 x_1) / d, or the same of task vectors added to the base where there is one.

    p_0, p_1 and d are scalars or one number for each element.
    """
    vectors = [read(x_N, dtype) if base_N is None else task_vector(x_N, base_N, dtype) for x_N in sources]
    parts = [rounded(vectors[0] * from_first, dtype), rounded(vectors[1] * from_second, dtype)]
    mixed_N = rounded(rounded(parts[0] + parts[1], dtype) / divisor, dtype)
    return mixed_N if base_N is None else wide(read(base_N, dtype)) + mixed_N


def share_of_second(weights: Sequence[float]) -> float:
    """The place t on the arc from the first model to the second."""
    total = sum(weights)
    return 0.5 if abs(total) < _LEAST_TOTAL else weights[1] / total


def arc(cosine_L: Tensor, t: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """sin((1 - t) a), sin(t a) and sin(a) for the angles a of these cosines, float64 of shape (L,).

    1 - t, t and 1 where the vectors are parallel: opposite ones too, which no one arc joins.
    """
    angle_L = held(cosine_L.acos(), dtype)
    sine_L = held(angle_L.sin(), dtype)
    line_L = (sine_L.abs() < _LEAST_SINE) | (cosine_L.abs() == 1.0)
    parts = [held(held(share * angle_L, dtype).sin(), dtype) for share in (1.0 - t, t)]
    ends = [torch.tensor(share, dtype=torch.float64) for share in (1.0 - t, t)]
    from_first_L, from_second_L = (
        torch.where(line_L, end, part_L) for end, part_L in zip(ends, parts, strict=True)
    )
    return from_first_L, from_second_L, torch.where(line_L, 1.0, sine_L)


def _calls(group: Group) -> Iterator[Call]:
    job = group.job
    t = share_of_second(job.values("weight"))
    along: Along = "first" if job.flag("nuslerp_row_wise") else "last"
    along = "whole" if job.flag("nuslerp_flatten") else along

    def numbers(tensor: Inputs) -> tuple[Tensor, ...]:
        return arc(tensor.cosine_of_vectors(along, _LEAST_NORM), t, group.dtype)

    return vector_calls(group, along, numbers)


NUSLERP = Family(kernel=nuslerp, calls=_calls)
