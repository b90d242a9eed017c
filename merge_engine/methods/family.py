"""What a merge method gives the engine: a kernel, and the calls that merge one tensor with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from merge_engine.magnitudes import Kept
from merge_engine.plan import TensorJob

SHORT_ELEMENTS = (
    2**16
)  # a shorter tensor is merged in one piece, and never compiled: calls would cost more than work

Argument: TypeAlias = "Tensor | Sequence[Tensor] | bool | None"

# kernel(sources, base_N, first, dtype, *arguments) -> merged_N
#   sources    M tensors of shape (N,), any float dtype; base_N likewise, or None where the method has no base
#   first      int32 scalar: the place of element 0 in the whole tensor
#   dtype      the merge dtype
#   merged_N   fp32 or of the merge dtype; the caller rounds
Kernel: TypeAlias = Callable[..., Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One run of a kernel, over elements [start, stop). Tensors in ``arguments`` are small and on the CPU."""

    start: int
    stop: int
    arguments: tuple[Argument, ...]


class Inputs(Protocol):
    """What is known about the inputs of one job. All of it is the same for every candidate, and kept."""

    @property
    def job(self) -> TensorJob: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def elements(self) -> int: ...

    def kept(self, source: int, density: float) -> Kept:
        """Which elements of that source's task vector are among its ``density`` largest."""

    def sums(self, source: int, density: float) -> tuple[float, float]:
        """The sum of the magnitudes of that source's task vector: of all, and of its ``density`` largest."""

    def key(self, source: int, block: int) -> tuple[int, int]:
        """Two signed 32-bit numbers that fix the uniforms of that source in a block of the tensor."""

    def cosine(self) -> float:
        """Cosine of the angle between the base and the only source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A merge method: ``calls`` turns a job's parameters into runs of ``kernel`` that cover the tensor."""

    kernel: Kernel
    calls: Callable[[Inputs], Iterable[Call]]
