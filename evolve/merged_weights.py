"""A candidate's weights as a stream that any process can run: for engines whose workers merge themselves."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fitness.vllm_sharing import Outline
from merge_engine.spec.recipe import parse_recipe

if TYPE_CHECKING:
    from torch import Tensor

    from merge_engine.engine import Engine
    from merge_engine.plan_types import TensorJob


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeSettings:
    """What a process needs to know to merge; see `merge_engine.engine.Engine`."""

    seed: int
    device: str
    allow_crimes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedWeights:
    """The result of ``recipe`` (plain data), merged where and when it is iterated over; picklable."""

    settings: MergeSettings
    recipe: Mapping[str, Any]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return _engine(self.settings).stream(parse_recipe(self.recipe))

    def _jobs(self) -> Sequence[TensorJob]:
        return _engine(self.settings).plan(parse_recipe(self.recipe)).jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedWeights(MergedWeights):
    """The same for workers that send each other what they have merged: `fitness.vllm_sharing.Divisible`.

    Each merges the same tensors of all candidates, so that what it learns about the sources serves it again.
    """

    def outlines(self) -> Sequence[Outline]:
        """Of every tensor. Raises `PlanError`."""
        dtype = _engine(self.settings).result_dtype
        return [Outline(name=job.name, shape=job.shape, dtype=dtype(job)) for job in self._jobs()]

    def made(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Those tensors alone."""
        wanted = frozenset(names)
        yield from _engine(self.settings).stream_jobs([job for job in self._jobs() if job.name in wanted])


@functools.cache
def _engine(settings: MergeSettings) -> Engine:
    """One for all candidates of a process: it keeps what it has learnt about the sources."""
    from merge_engine.engine import Engine

    return Engine(seed=settings.seed, device=settings.device, allow_crimes=settings.allow_crimes)
