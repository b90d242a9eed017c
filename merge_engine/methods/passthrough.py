"""One model's tensor as it is, or times a factor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from merge_engine.methods.family import Call, Family, Group
from merge_engine.methods.rounding import read


def passthrough(
    sources: Sequence[Tensor], base_N: None, first: Tensor, dtype: torch.dtype, scale: Tensor | None
) -> Tensor:
    """scale * x."""
    (source_N,) = sources
    kept_N = read(source_N, dtype)
    return kept_N if scale is None else kept_N.to(torch.float32) * scale


def _calls(group: Group) -> Iterator[Call]:
    (scale,) = group.job.values("scale")
    yield Call(start=0, stop=group.elements, arguments=(None if scale == 1.0 else torch.tensor(scale),))


PASSTHROUGH = Family(kernel=passthrough, calls=_calls)
