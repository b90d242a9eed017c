"""One model's tensor as it is, or times a factor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from merge_engine.methods.family import Call, Family, Group
from merge_engine.methods.rounding import read, wide, wide_dtype


def passthrough(
    sources: Sequence[Tensor], base_N: None, first: Tensor, dtype: torch.dtype, scale: Tensor | None
) -> Tensor:
    """scale * x."""
    (source_N,) = sources
    kept_N = read(source_N, dtype)
    return kept_N if scale is None else wide(kept_N) * scale


def _calls(group: Group) -> Iterator[Call]:
    (scale,) = group.job.values("scale")
    factor = None if scale == 1.0 else torch.tensor(scale, dtype=wide_dtype(group.dtype))
    yield Call(start=0, stop=group.elements, arguments=(factor,))


PASSTHROUGH = Family(kernel=passthrough, calls=_calls)
