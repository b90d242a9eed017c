"""How the workers of one engine share the making of weights: each makes some tensors, and sends them round.

All of them divide the same list in the same way, so that nobody has to tell anybody who makes what.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """A tensor that is going to be made."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@runtime_checkable
class Divisible(Protocol):
    """Weights of which any process can make any part."""

    def outlines(self) -> Sequence[Outline]:
        """All tensors, in the order in which they are made; the same in every process."""

    def made(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """The tensors of these names, new ones, in the order of `outlines`."""


class Group(Protocol):
    """The workers of an engine: what is used of vLLM's `get_tp_group()`. ``cpu_group`` is one of torch."""

    @property
    def rank_in_group(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def cpu_group(self) -> Any: ...

    def broadcast(self, input_: Tensor, src: int = 0) -> Tensor:
        """Fill ``input_`` everywhere with what worker ``src`` has there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A tensor, and the worker that makes it."""

    outline: Outline
    owner: int


def divided(outlines: Sequence[Outline], workers: int) -> list[list[Task]]:
    """Rounds of neighbouring tensors, each divided among the workers by bytes.

    In a round each worker makes about as much as the largest tensor has: what it holds until it is sent.
    """
    room_bytes = workers * max((outline.bytes for outline in outlines), default=0)
    rounds: list[list[Outline]] = []
    left = -1
    for outline in outlines:
        if outline.bytes > left:
            rounds.append([])
            left = room_bytes
        rounds[-1].append(outline)
        left -= outline.bytes
    return [_assigned(each, workers) for each in rounds]


def _assigned(outlines: Sequence[Outline], workers: int) -> list[Task]:
    """The largest first, each to whoever has least."""
    loads = [0] * workers
    owners: dict[str, int] = {}
    for outline in sorted(outlines, key=lambda outline: -outline.bytes):
        owner = loads.index(min(loads))
        loads[owner] += outline.bytes
        owners[outline.name] = owner
    return [Task(outline=outline, owner=owners[outline.name]) for outline in outlines]


def shared(weights: Divisible, group: Group) -> Iterator[tuple[str, Tensor]]:
    """All of ``weights`` in order, in every worker of ``group``, which all run this to its end.

    An error of one worker ends it in all of them after the same number of messages: there with the error,
    elsewhere with a shorter stream.
    """
    rank = group.rank_in_group
    outlines = _if_all_can(weights.outlines, group)
    if outlines is None:
        return
    rounds = divided(outlines, group.world_size)
    mine = [task.outline.name for round_ in rounds for task in round_ if task.owner == rank]
    making = weights.made(mine)
    for round_ in rounds:
        count = sum(task.owner == rank for task in round_)
        held = _if_all_can(lambda count=count: dict(itertools.islice(making, count)), group)  # type: ignore[misc]
        if held is None:
            return
        for task in round_:
            yield task.outline.name, _sent(task, held, group)


def _sent(task: Task, held: dict[str, Tensor], group: Group) -> Tensor:
    """The tensor of a task, whoever made it; it is held no longer."""
    import torch

    if task.owner == group.rank_in_group:
        tensor = held.pop(task.outline.name)
    else:
        tensor = torch.empty(task.outline.shape, dtype=task.outline.dtype, device=group.device)
    if tensor.numel():
        group.broadcast(tensor, src=task.owner)
    return tensor


def _if_all_can(work: Callable[[], _Result], group: Group) -> _Result | None:
    """What ``work`` gives; None if it failed in another worker. Its own error is raised once all know."""
    import torch.distributed

    error: Exception | None = None
    result: _Result | None = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    failed = torch.tensor(int(error is not None), device="cpu")
    torch.distributed.all_reduce(failed, op=torch.distributed.ReduceOp.MAX, group=group.cpu_group)
    if error is not None:
        raise error
    return None if failed else result
