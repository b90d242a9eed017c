"""NearSwap: take over what is close to the base. alchemonaut 2024,
https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from merge_engine.methods.family import Call, Family, Group
from merge_engine.methods.rounding import read, rounded, wide, wide_dtype

_LEAST_DISTANCE = 1e-8  # a smaller one counts as this; float16 does not hold its inverse


def nearswap(
    sources: Sequence[Tensor], base_N: Tensor, first: Tensor, dtype: torch.dtype, t: Tensor
) -> Tensor:
    """(1 - w) base + w x with w = t / |base - x|, but from 0 to 1: all of x where it is nearer than t."""
    (source_N,) = sources
    source_N, base_N = read(source_N, dtype), read(base_N, dtype)
    distance_N = wide(rounded(base_N - source_N, dtype).abs())
    nearness_N = wide(rounded(1.0 / distance_N.clamp(min=_LEAST_DISTANCE), dtype))
    nearness_N = nearness_N.clamp(max=1.0 / _LEAST_DISTANCE)
    share_N = rounded((nearness_N * t).clamp(0.0, 1.0), dtype)
    kept_N = rounded(rounded(1.0 - share_N, dtype) * base_N, dtype)
    return wide(kept_N) + wide(rounded(share_N * source_N, dtype))


def _calls(group: Group) -> Iterator[Call]:
    t = torch.tensor(group.job.value("t"), dtype=wide_dtype(group.dtype))
    yield Call(start=0, stop=group.elements, arguments=(t,))


NEARSWAP = Family(kernel=nearswap, calls=_calls)
