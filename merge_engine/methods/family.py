"""What a merge method gives the engine: a kernel, and the calls that merge one tensor with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from merge_engine.geometry import Along
from merge_engine.importance import Importance
from merge_engine.magnitudes import Kept
from merge_engine.methods.rounding import wide_dtype
from merge_engine.overlap import Overlap
from merge_engine.plan import TensorJob
from merge_engine.row_ranks import RowRanks
from merge_engine.selection import Selection

SHORT_ELEMENTS = 2**16  # a shorter tensor is merged together with its neighbours, and never compiled
GROUP_ELEMENTS = 2**17  # how many elements neighbours may have together: temporaries stay in a core's cache

Argument: TypeAlias = "Tensor | Sequence[Tensor] | bool | None"

# kernel(sources, base_N, first, dtype, *arguments) -> merged_N
#   sources    M tensors of shape (N,), any float dtype; base_N likewise, or None where the method has no base
#   first      int32 scalar: the place of element 0 in the whole tensor
#   dtype      the merge dtype
#   merged_N   fp32 or of the merge dtype; the caller rounds
Kernel: TypeAlias = Callable[..., Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One run of a kernel, over elements [start, stop). Arguments of all runs over a group are of one form.

    Tensors in ``arguments`` are on the CPU; only those of a short group, or of a call of at most
    `GROUP_ELEMENTS`, may have one number for each element. ``compiles``: false for such a part of a tensor.
    """

    start: int
    stop: int
    arguments: tuple[Argument, ...]
    compiles: bool = True


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

    def largest(self, source: int, count: int) -> Kept:
        """Which elements are the ``count`` largest of that source's task vector."""

    def sum_of_largest(self, source: int, count: int) -> tuple[float, float]:
        """The sum of the magnitudes of that source's task vector: of all, and of its ``count`` largest."""

    def ranks(self, source: int) -> RowRanks:
        """How large the elements of that source's task vector are among their rows."""

    def reached(self, source: int) -> Tensor:
        """How many thresholds of its row each element reaches, uint8 of shape (N,), for a short tensor."""

    def selection(self, share: float) -> Selection:
        """On which ``share`` of the elements the sources differ most, and how far each has moved there."""

    def overlaps(self, epsilon: float) -> tuple[Overlap, ...]:
        """For each source, how many elements it changes by more than ``epsilon``, alone and with others."""

    def key(self, source: int, block: int) -> tuple[int, int]:
        """Two signed 32-bit numbers that fix the uniforms of that source in a block of the tensor."""

    def uniforms(self, source: int) -> Tensor:
        """The uniforms of that source, fp32 of shape (N,), for a short tensor. Not to be written to."""

    def cosine(self) -> float:
        """Cosine of the angle between the base and the only source."""

    def products(self) -> Tensor:
        """Inner products of the sources, of their task vectors where there is a base, float64 (M, M)."""

    def cosine_of_vectors(self, along: Along, least_norm: float) -> Tensor:
        """`merge_engine.geometry.Geometry.cosine` of the sources, or of their task vectors."""

    def mean_cosine(self, along: Along) -> Tensor:
        """`merge_engine.geometry.Geometry.mean_cosine` of the sources, or of their task vectors."""

    def task_vectors(self, where: slice) -> list[Tensor]:
        """Elements of each source's task vector, as the merge dtype holds them. Read anew at each call."""

    def importance(self) -> Importance:
        """How much the changes from the base to the only source matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Tensors that are merged as one flat tensor, laid end to end: one of any length, or several short ones.

    Their parameters are the same; what follows from them and the tensors (thresholds, angles) need not be.
    """

    tensors: Sequence[Inputs]

    @property
    def job(self) -> TensorJob:
        """One of the jobs, for the parameters."""
        return self.tensors[0].job

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors[0].dtype

    @property
    def lengths(self) -> list[int]:
        return [tensor.elements for tensor in self.tensors]

    @property
    def elements(self) -> int:
        return sum(self.lengths)

    @property
    def is_short(self) -> bool:
        """Whether arguments may have one number for each element."""
        return max(self.lengths) < SHORT_ELEMENTS

    def spread(self, numbers: Sequence[float], dtype: torch.dtype | None = None) -> Tensor:
        """One number for each tensor: a scalar for a single tensor, else one for each element.

        ``dtype`` None: what the steps of the merge are computed in.
        """
        dtype = dtype or wide_dtype(self.dtype)
        if len(numbers) == 1:
            return torch.tensor(numbers[0], dtype=dtype)
        return torch.cat(
            [torch.full((n,), x, dtype=dtype) for n, x in zip(self.lengths, numbers, strict=True)]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A merge method: ``calls`` turns a group's parameters into runs of ``kernel`` that cover it."""

    kernel: Kernel
    calls: Callable[[Group], Iterable[Call]]
