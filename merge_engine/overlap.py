"""How far each model's changes overlap with those of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Of one model: how many elements only it changes, and how many it changes with another."""

    unique: int
    shared: int


def overlaps(
    deltas: Sequence[Callable[[slice], Tensor]], elements: int, epsilon: Tensor
) -> tuple[Overlap, ...]:
    """The overlap of each task vector; what is changed has a magnitude above ``epsilon``."""
    changed, unique = [0] * len(deltas), [0] * len(deltas)
    for start in range(0, elements, _BLOCK_ELEMENTS):
        where = slice(start, min(start + _BLOCK_ELEMENTS, elements))
        masks = torch.stack([delta(where).abs() > epsilon for delta in deltas])
        alone_N = masks.sum(dim=0) == 1
        for m, mask_N in enumerate(masks):
            changed[m] += int(mask_N.sum())
            unique[m] += int((mask_N & alone_N).sum())
    return tuple(Overlap(unique=u, shared=c - u) for c, u in zip(changed, unique, strict=True))
