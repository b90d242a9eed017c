"""Speed and memory of merging into a resident model, against copying the same bytes in the same run."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from bench.memory import OwnMemoryPeak
from bench.synthetic import Size, read_models, recipe_data
from torch import Tensor

from merge_engine.engine import Engine
from merge_engine.spec.recipe import parse_recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One method: the candidates after the first two, against the time in which `copy_` moves the same bytes.

    ``extra_mib``: the peak of memory above the resident model and the mapped files, most of it preparation.
    """

    method: str
    first_s: float
    candidate_s: float
    copy_s: float
    extra_mib: float

    @property
    def ratio(self) -> float:
        return self.candidate_s / self.copy_s


def measure(method: str, models: Sequence[Path], size: Size, repetitions: int, threads: int) -> Timing:
    """`measure_here` in a new process, whose memory no other method has touched."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure_here, method, models, size, repetitions, threads).result()


def measure_here(method: str, models: Sequence[Path], size: Size, repetitions: int, threads: int) -> Timing:
    """Time a fresh engine's first candidate and, kernels compiled, the next ones; copies in between."""
    torch.set_num_threads(threads)
    resident = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in size.shapes().items()}
    _merge(Engine(compile="always"), method, models, 0, resident)  # kernels are in the cache from here on
    with OwnMemoryPeak() as memory:  # looking at it takes time of its own
        engine = Engine()
        first_s = _timed(lambda: _merge(engine, method, models, 0, resident))
        _merge(engine, method, models, 1, resident)
    used = [_tensors(engine, model) for model in read_models(method, models)]
    candidates, copies = [], []
    for candidate in range(2, repetitions + 2):
        candidates.append(_timed(lambda i=candidate: _merge(engine, method, models, i, resident)))  # type: ignore[misc]
        copies.append(copy_seconds(used, resident))
    return Timing(
        method=method,
        first_s=first_s,
        candidate_s=statistics.median(candidates),
        copy_s=statistics.median(copies),
        extra_mib=memory.above_mib,
    )


def copy_seconds(sources: Sequence[dict[str, Tensor]], resident: dict[str, Tensor]) -> float:
    """Seconds in which `copy_` moves the bytes of a merge: each source read once, the result written once.

    Copying every source to the resident model reads the same bytes and writes as many, so (M + 1) / 2 M of it
    are the bytes of a merge of M sources.
    """

    def copy() -> None:
        for tensors in sources:
            for name, tensor in tensors.items():
                resident[name].view(-1).copy_(tensor)

    return _timed(copy) * (len(sources) + 1) / (2 * len(sources))


def _tensors(engine: Engine, model: Path) -> dict[str, Tensor]:
    from merge_engine.tensor_files import MappedFiles

    files = MappedFiles()
    return {name: files.tensor(info) for name, info in engine.header(str(model)).tensors.items()}


def _merge(
    engine: Engine, method: str, models: Sequence[Path], candidate: int, resident: dict[str, Tensor]
) -> None:
    for _ in engine.stream(parse_recipe(recipe_data(method, models, candidate)), resident):
        pass


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
