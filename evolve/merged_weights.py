"""A candidate's weights as a stream that any process can run: for engines whose workers merge themselves."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merge_engine.spec.recipe import parse_recipe

if TYPE_CHECKING:
    from torch import Tensor

    from merge_engine.engine import Engine


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


@functools.cache
def _engine(settings: MergeSettings) -> Engine:
    """One for all candidates of a process: it keeps what it has learnt about the sources."""
    from merge_engine.engine import Engine

    return Engine(seed=settings.seed, device=settings.device, allow_crimes=settings.allow_crimes)
