"""Workers of an engine without vLLM: processes that torch alone joins, which share the making of weights."""

from __future__ import annotations

import multiprocessing
import sys
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitness.vllm_sharing import Outline
from fitness.vllm_worker import Arrived, StreamLoader

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WORKERS = 3
SIZES = (40, 7, 0, 12, 12, 3, 30, 1, 25, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbered:
    """Tensors that say which they are. ``broken``: the one whose making fails; ``lost``: the worker that
    cannot even say what there is.
    """

    broken: str | None = None
    lost: int | None = None

    def outlines(self) -> Sequence[Outline]:
        import torch
        import torch.distributed

        if torch.distributed.get_rank() == self.lost:
            raise FileNotFoundError("no such model here")
        return [Outline(name=f"t{i}", shape=(size,), dtype=torch.bfloat16) for i, size in enumerate(SIZES)]

    def made(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        for outline in self.outlines():
            if outline.name in names:
                if outline.name == self.broken:
                    raise RuntimeError(f"{outline.name} broke")
                yield outline.name, _content(outline)


def _content(outline: Outline) -> Tensor:
    import torch

    return torch.full(outline.shape, float(outline.name[1:]), dtype=outline.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """What one worker took of a stream, as plain values, and what it said of it."""

    tensors: list[tuple[str, list[float]]]
    arrived: Arrived


class _Worker(StreamLoader):
    """``patience``: how many tensors it takes before its loader fails; None for all."""

    def __init__(self, patience: int | None = None) -> None:
        self.taken: list[tuple[str, list[float]]] = []
        self._patience = patience

    def reload_weights(self, weights_iterator: Iterable[tuple[str, Tensor]], **_: object) -> None:
        for name, tensor in weights_iterator:
            if len(self.taken) == self._patience:
                raise MemoryError("no room for it")
            self.taken.append((name, tensor.tolist()))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """As vLLM's `get_tp_group()` gives it."""

    rank_in_group: int
    world_size: int
    device: torch.device
    cpu_group: Any

    def broadcast(self, input_: Tensor, src: int = 0) -> Tensor:
        import torch.distributed

        torch.distributed.broadcast(input_, src=src, group=self.cpu_group)
        return input_


def _work(rank: int, meeting: str, cases: Sequence[Case], answers: Any) -> None:
    import torch
    import torch.distributed

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORKERS)
    group = _Group(
        rank_in_group=rank,
        world_size=WORKERS,
        device=torch.device("cpu"),
        cpu_group=torch.distributed.group.WORLD,
    )
    vllm = types.ModuleType("vllm.distributed")
    vllm.get_tp_group = lambda: group  # type: ignore[attr-defined]
    sys.modules |= {"vllm": types.ModuleType("vllm"), "vllm.distributed": vllm}
    shapes = {f"t{i}": (size,) for i, size in enumerate(SIZES)}
    took = []
    for case in cases:
        worker = _Worker(case.patience if rank == case.impatient else None)
        arrived = worker.run_weight_stream(case.weights, shapes, pads=False)
        took.append(Took(tensors=worker.taken, arrived=arrived))
    answers.put((rank, took))
    torch.distributed.destroy_process_group()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A stream that all workers take, one after another; ``impatient``: the worker whose loader fails."""

    weights: Numbered = Numbered()
    impatient: int | None = None
    patience: int | None = None


def taken(folder: Path, cases: Sequence[Case]) -> list[list[Took]]:
    """For each case what each worker took. Raises `TimeoutError` if they wait for each other for ever."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    meeting = f"file://{folder / 'meeting'}"
    processes = [
        context.Process(target=_work, args=(rank, meeting, cases, answers), daemon=True)
        for rank in range(WORKERS)
    ]
    _each(processes, lambda process: process.start())
    try:
        found = dict(answers.get(timeout=120) for _ in processes)
    finally:
        _each(processes, lambda process: process.kill() if process.is_alive() else None)
        _each(processes, lambda process: process.join())
    return [list(took) for took in zip(*(found[rank] for rank in range(WORKERS)), strict=True)]


def _each(processes: Iterable[Any], action: Callable[[Any], object]) -> None:
    for process in processes:
        action(process)
