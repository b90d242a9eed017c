"""Spherical linear interpolation of two models. Shoemake 1985, Animating Rotation with Quaternion Curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from merge_engine.methods.family import Call, Family, Inputs
from merge_engine.methods.rounding import read

COLLINEAR = (
    0.9995  # above this cosine the arc is so short that the chord is taken, as in the ecosystem's merges
)


def slerp(
    sources: Sequence[Tensor], base_N: Tensor, first: Tensor, dtype: torch.dtype, parts_2: Tensor
) -> Tensor:
    """p_0 base + p_1 x, with the parts of the base and of the other model."""
    (source_N,) = sources
    base_part_N = read(base_N, dtype).to(torch.float32) * parts_2[0]
    return base_part_N + read(source_N, dtype).to(torch.float32) * parts_2[1]


def slerp_parts(t: float, cosine: float) -> tuple[float, float]:
    """sin((1 - t) a) / sin(a) and sin(t a) / sin(a) for the angle a between the tensors (section 3.3)."""
    if abs(cosine) > COLLINEAR:
        return 1.0 - t, t
    angle = math.acos(cosine)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def _calls(inputs: Inputs) -> Iterator[Call]:
    parts_2 = torch.tensor(slerp_parts(inputs.job.value("t"), inputs.cosine()), dtype=torch.float32)
    yield Call(start=0, stop=inputs.elements, arguments=(parts_2,))


SLERP = Family(kernel=slerp, calls=_calls)
