"""What every candidate needs again of the sources: magnitude counts, uniforms, angles; found once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from merge_engine.counting import Counter, Differences
from merge_engine.geometry import Along, Geometry, angle_cosine
from merge_engine.importance import Importance, importance
from merge_engine.magnitudes import Kept, MagnitudeIndex
from merge_engine.methods.random_field import field_key, field_N
from merge_engine.methods.rounding import MODERATE_BIN, MODERATE_PARAMETER
from merge_engine.methods.sce import variance
from merge_engine.overlap import Overlap, overlaps
from merge_engine.plan import TensorJob, TensorRef
from merge_engine.row_ranks import RowRanks, row_length
from merge_engine.selection import Selection, SelectionIndex
from merge_engine.source_tensors import SourceTensors
from merge_engine.tensor_files import MERGE_DTYPES

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Preparation:
    """Everything that was learnt about source models. ``once``: for one merge, so little is asked twice."""

    def __init__(self, seed: int, sources: SourceTensors, counter: Counter, *, once: bool = False) -> None:
        self.seed = seed
        self._once = once
        self._counter = counter
        self.sources = sources
        self._moderate: dict[TensorRef, bool] = {}
        self._uniforms: dict[TensorRef, Tensor] = {}
        self._magnitudes: dict[tuple[TensorRef, TensorRef, torch.dtype], MagnitudeIndex] = {}
        self._ranks: dict[tuple[TensorRef, TensorRef, torch.dtype], RowRanks] = {}
        self._reached: dict[tuple[TensorRef, TensorRef, torch.dtype], Tensor] = {}
        self._selections: dict[tuple[tuple[TensorRef, ...], TensorRef, torch.dtype], SelectionIndex] = {}
        self._overlaps: dict[
            tuple[tuple[TensorRef, ...], TensorRef, torch.dtype, float], tuple[Overlap, ...]
        ] = {}
        self._cosines: dict[tuple[TensorRef, TensorRef, torch.dtype], float] = {}
        self._geometry: dict[tuple[object, ...], Tensor] = {}
        self._importances: dict[tuple[TensorRef, TensorRef, torch.dtype], Importance] = {}

    def is_moderate(self, ref: TensorRef) -> bool:
        """Whether the magnitudes of a stored tensor are all below `MODERATE_BIN`'s; NaN's are not."""
        return _found(
            self._moderate, ref, lambda: self._counter.largest(self.sources.tensor(ref)) < MODERATE_BIN
        )

    def field_key(self, ref: TensorRef, block: int) -> tuple[int, int]:
        """What fixes the uniforms of a tensor in a block of `FIELD_ELEMENTS`, wherever the model lies."""
        return field_key(self.seed, self.sources.fingerprint(ref.model), ref.name, block)

    def uniforms(self, ref: TensorRef) -> Tensor:
        """The field of uniforms of a tensor of one block, fp32 of its length: not to be written to.

        They take twice the memory of a bfloat16 tensor: for short tensors.
        """

        def find() -> Tensor:
            key_2 = torch.tensor(self.field_key(ref, 0), dtype=torch.int32)
            return field_N(torch.tensor(0, dtype=torch.int32), self.sources.tensor(ref).numel(), key_2)

        return _found(self._uniforms, ref, find)

    def magnitudes(self, source: TensorRef, base: TensorRef, dtype: torch.dtype) -> MagnitudeIndex:
        """The counts of source - base as formed in ``dtype``."""
        return _found(
            self._magnitudes,
            (source, base, dtype),
            lambda: MagnitudeIndex(self._delta(source, base, dtype), self._counter, once=self._once),
        )

    def ranks(
        self, source: TensorRef, base: TensorRef, dtype: torch.dtype, shape: tuple[int, ...]
    ) -> RowRanks:
        """The ranks of source - base as formed in ``dtype``."""
        return _found(
            self._ranks,
            (source, base, dtype),
            lambda: RowRanks(self._run_of(source, base, dtype), math.prod(shape), row_length(shape)),
        )

    def reached(
        self, source: TensorRef, base: TensorRef, dtype: torch.dtype, shape: tuple[int, ...]
    ) -> Tensor:
        """How many thresholds of its row each element of source - base reaches, uint8: for short tensors."""
        return _found(
            self._reached,
            (source, base, dtype),
            lambda: self.ranks(source, base, dtype, shape).reached(
                self._delta(source, base, dtype)(slice(None))
            ),
        )

    def selections(
        self, sources: tuple[TensorRef, ...], base: TensorRef, dtype: torch.dtype
    ) -> SelectionIndex:
        """Counts of the variances of source - base over the sources, as formed in ``dtype``."""
        return _found(
            self._selections,
            (sources, base, dtype),
            lambda: SelectionIndex(
                [self._delta(source, base, dtype) for source in sources],
                lambda deltas: variance(deltas, dtype),
                self._elements(base),
                self._counter,
            ),
        )

    def overlaps(
        self, sources: tuple[TensorRef, ...], base: TensorRef, dtype: torch.dtype, epsilon: float
    ) -> tuple[Overlap, ...]:
        """How the changes of source - base by more than ``epsilon``, as held in ``dtype``, overlap."""
        return _found(
            self._overlaps,
            (sources, base, dtype, epsilon),
            lambda: overlaps(
                [self._delta(source, base, dtype) for source in sources],
                self._elements(base),
                torch.tensor(epsilon, dtype=dtype),
            ),
        )

    def importance(
        self, source: TensorRef, base: TensorRef, dtype: torch.dtype, shape: tuple[int, ...]
    ) -> Importance:
        """How much the changes of source - base as formed in ``dtype`` matter."""
        tensor = self.sources.tensor
        return _found(
            self._importances,
            (source, base, dtype),
            lambda: importance(tensor(source), tensor(base), shape, dtype),
        )

    def cosine(self, source: TensorRef, base: TensorRef, dtype: torch.dtype) -> float:
        """Cosine of the angle between two tensors, as read in ``dtype``."""
        tensor = self.sources.tensor
        return _found(
            self._cosines, (source, base, dtype), lambda: angle_cosine(tensor(source), tensor(base), dtype)
        )

    def task_vector(self, source: TensorRef, base: TensorRef, dtype: torch.dtype, where: slice) -> Tensor:
        """Elements of source - base as formed in ``dtype``."""
        return self._delta(source, base, dtype)(where)

    def geometry(
        self, job: TensorJob, what: tuple[object, ...], find: Callable[[Geometry], Tensor]
    ) -> Tensor:
        """What ``find`` gives of the sources of ``job``, or of their task vectors, named ``what``."""
        key = (*what, job.sources, job.base, job.dtype)
        if key not in self._geometry:
            assert job.dtype is not None
            stored = [self.sources.tensor(source) for source in job.sources]
            base_N = None if job.base is None else self.sources.tensor(job.base)
            self._geometry[key] = find(Geometry(stored, base_N, job.shape, MERGE_DTYPES[job.dtype]))
        return self._geometry[key]

    def _delta(self, source: TensorRef, base: TensorRef, dtype: torch.dtype) -> Differences:
        """source - base as formed in ``dtype``. It holds no tensor: adapters make new ones."""
        tensor = self.sources.tensor
        return Differences(
            x=lambda where: tensor(source)[where],
            base=lambda where: tensor(base)[where],
            dtype=dtype,
            elements=self._elements(source),
        )

    def _run_of(self, source: TensorRef, base: TensorRef, dtype: torch.dtype) -> Callable[[int, int], Tensor]:
        """`_delta` of elements [start, stop)."""
        delta = self._delta(source, base, dtype)
        return lambda start, stop: delta(slice(start, stop))

    def _elements(self, ref: TensorRef) -> int:
        return self.sources.tensor(ref).numel()


def _found(known: dict[_Key, _Value], key: _Key, find: Callable[[], _Value]) -> _Value:
    """What is known for ``key``: found now if it has not been."""
    if key not in known:
        known[key] = find()
    return known[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInputs:
    """`merge_engine.methods.family.Inputs` of one job."""

    job: TensorJob
    preparation: Preparation

    @property
    def dtype(self) -> torch.dtype:
        assert self.job.dtype is not None
        return MERGE_DTYPES[self.job.dtype]

    @property
    def elements(self) -> int:
        return math.prod(self.job.shape)

    @property
    def can_compile(self) -> bool:
        """Whether compiled kernels give the bits of eager ones: not for numbers beyond all use."""
        refs = self.job.sources if self.job.base is None else (*self.job.sources, self.job.base)
        levels = (*self.job.per_source, self.job.shared)
        small = all(abs(value) <= MODERATE_PARAMETER for level in levels for value in level.values())
        return small and all(map(self.preparation.is_moderate, refs))

    def kept(self, source: int, density: float) -> Kept:
        if density >= 1.0 or not self.elements:
            return Kept(threshold=0.0, ties_end=self.elements)
        return self._magnitudes(source).kept(self._count(density))

    def sums(self, source: int, density: float) -> tuple[float, float]:
        return self._magnitudes(source).sums(self._count(density))

    def largest(self, source: int, count: int) -> Kept:
        return self._magnitudes(source).kept(count)

    def sum_of_largest(self, source: int, count: int) -> tuple[float, float]:
        return self._magnitudes(source).sums(count)

    def ranks(self, source: int) -> RowRanks:
        assert self.job.base is not None
        return self.preparation.ranks(self.job.sources[source], self.job.base, self.dtype, self.job.shape)

    def reached(self, source: int) -> Tensor:
        assert self.job.base is not None
        return self.preparation.reached(self.job.sources[source], self.job.base, self.dtype, self.job.shape)

    def selection(self, share: float) -> Selection:
        assert self.job.base is not None
        return self.preparation.selections(self.job.sources, self.job.base, self.dtype).select(share)

    def overlaps(self, epsilon: float) -> tuple[Overlap, ...]:
        assert self.job.base is not None
        return self.preparation.overlaps(self.job.sources, self.job.base, self.dtype, epsilon)

    def key(self, source: int, block: int) -> tuple[int, int]:
        return self.preparation.field_key(self.job.sources[source], block)

    def uniforms(self, source: int) -> Tensor:
        return self.preparation.uniforms(self.job.sources[source])

    def _count(self, density: float) -> int:
        return max(1, int(density * self.elements))

    def _magnitudes(self, source: int) -> MagnitudeIndex:
        assert self.job.base is not None
        return self.preparation.magnitudes(self.job.sources[source], self.job.base, self.dtype)

    def cosine(self) -> float:
        (source,) = self.job.sources
        assert self.job.base is not None
        return self.preparation.cosine(source, self.job.base, self.dtype)

    def products(self) -> Tensor:
        return self.preparation.geometry(self.job, ("products",), lambda found: found.products())

    def cosine_of_vectors(self, along: Along, least_norm: float) -> Tensor:
        what = ("cosine", along, least_norm)
        return self.preparation.geometry(self.job, what, lambda found: found.cosine(along, least_norm))

    def task_vectors(self, where: slice) -> list[Tensor]:
        base = self.job.base
        assert base is not None
        return [self.preparation.task_vector(source, base, self.dtype, where) for source in self.job.sources]

    def importance(self) -> Importance:
        (source,) = self.job.sources
        assert self.job.base is not None
        return self.preparation.importance(source, self.job.base, self.dtype, self.job.shape)

    def mean_cosine(self, along: Along) -> Tensor:
        what = ("mean cosine", along)
        return self.preparation.geometry(self.job, what, lambda found: found.mean_cosine(along))
