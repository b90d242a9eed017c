"""Spherical linear interpolation of two models. Shoemake 1985, Animating Rotation with Quaternion Curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from merge_engine.methods.family import Call, Family, Group
from merge_engine.methods.rounding import read, wide

COLLINEAR = (
    0.9995  # above this cosine the arc is so short that the chord is taken, as in the ecosystem's merges
)


def slerp(
    sources: Sequence[Tensor],
    base_N: Tensor,
    first: Tensor,
    dtype: torch.dtype,
    base_part: Tensor,
    source_part: Tensor,
) -> Tensor:
    """p_0 base + p_1 x, with the parts of base and source, scalars or one for each element."""
    (source_N,) = sources
    from_base_N = wide(read(base_N, dtype)) * base_part
    return from_base_N + wide(read(source_N, dtype)) * source_part


def slerp_parts(t: float, cosine: float) -> tuple[float, float]:
    """sin((1 - t) a) / sin(a) and sin(t a) / sin(a) for the angle a between the tensors (section 3.3)."""
    if abs(cosine) > COLLINEAR:
        return 1.0 - t, t
    angle = math.acos(cosine)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def _calls(group: Group) -> Iterator[Call]:
    parts = [slerp_parts(group.job.value("t"), tensor.cosine()) for tensor in group.tensors]
    base_part, source_part = (group.spread(numbers) for numbers in zip(*parts, strict=True))
    yield Call(start=0, stop=group.elements, arguments=(base_part, source_part))


SLERP = Family(kernel=slerp, calls=_calls)
