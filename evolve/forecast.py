"""What a search will need and how fast it will be on this machine, before a worker starts."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from evolve.errors import FleetError
from evolve.machine import CORE, CORE_WITH_MATRIX_UNIT, Gpu, Machine, Speed, gpu_speed
from evolve.options import SearchOptions
from evolve.preflight import Ready
from evolve.sizing import Backend, Duration, ModelSize, Need, Workload, duration, need, parts
from evolve.wording import gigabytes, some
from evolve.worker_plan import Node, plan_share
from fitness.batching import ModelFacts
from fitness.task_size import TaskSize, task_sizes
from genome.slice_layout import LayoutSpec

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}

# Of tasks whose data only loading them would show.
_USUAL_ITEMS = 500
_USUAL_PROMPT_TOKENS = 200
_USUAL_LAYERS = 24
_ANSWERED_SHARE = 0.5  # of the tokens that a generated answer may have


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """``workers``: None on a cluster, whose machines are looked at when it is joined. ``device``: of one
    worker. ``guessed``: items or texts are usual ones, since only loading the tasks would tell.
    """

    need: Need
    least_bytes: int  # of the machine's memory, for each worker
    duration: Duration
    work: Workload
    workers: int | None
    device: str
    guessed: bool
    mapped_bytes: int
    free_bytes: int

    @property
    def per_hour(self) -> float:
        """Candidates of all workers, or of one where their number is not known."""
        return (self.workers or 1) * self.duration.per_hour


def forecast(ready: Ready, options: SearchOptions, machine: Machine) -> Forecast:
    """What can be said before workers start.

    Raises:
        FleetError: so many workers do not fit this machine, or not even one does.
    """
    model = model_size(ready)
    work, guessed = workload(task_sizes(ready.suite), model)
    backend: Backend = "vllm" if options.vllm else "disk" if options.on_disk else "transformers"
    on_gpu = bool(machine.gpus) and options.num_gpus != 0
    gpu_bytes = machine.gpus[0].memory_bytes // options.workers_per_gpu if on_gpu else 0
    memory_bytes = gpu_bytes if on_gpu else machine.free_bytes
    size = partial(
        need, model, work, backend=backend, on_gpu=on_gpu, bits=options.bits, processes=ready.processes
    )
    least = size(memory_bytes=memory_bytes, rows=1)
    workers, threads = None, 1
    if (options.ray_address or os.environ.get("RAY_ADDRESS")) is None:
        workers, threads = _workers(ready, options, machine, least)
        memory_bytes = memory_bytes if on_gpu else memory_bytes // workers
    full = size(memory_bytes=memory_bytes, rows=options.batch_size)
    device, speed = _speed(machine, on_gpu, threads, ready.processes)
    return Forecast(
        need=full,
        least_bytes=least.host_bytes,
        duration=duration(model, work, full.rows, speed, merges=full.merges),
        work=work,
        workers=workers,
        device=device,
        guessed=guessed,
        mapped_bytes=model.source_bytes,
        free_bytes=machine.free_bytes,
    )


def _workers(ready: Ready, options: SearchOptions, machine: Machine, least: Need) -> tuple[int, int]:
    """How many workers this machine gets, and the threads of each."""
    node = Node(
        id="",
        host="this machine",
        cores=machine.cores,
        gpus=len(machine.gpus),
        memory_bytes=machine.free_bytes,
    )
    share = plan_share(
        [node],
        num_workers=options.wanted_workers(ready.processes),
        device=options.device,
        processes_per_worker=ready.processes,
        workers_per_gpu=options.workers_per_gpu,
        worker_bytes=least.host_bytes,
    )
    if least.on_gpu:
        _check_gpu(least, machine.gpus[0], options.workers_per_gpu)
    return min(share.fitting(node), share.limit or sys.maxsize), share.threads


def model_size(ready: Ready) -> ModelSize:
    """From the headers of the models."""
    header = ready.headers[ready.pattern]
    elements = {name: info.elements for name, info in header.tensors.items()}
    layouts = isinstance(ready.search_file.genome, LayoutSpec)
    held = list(ready.headers.values()) if layouts else [header]
    facts = _facts(header.config, sum(elements.values()), DTYPE_BYTES[ready.dtype])
    return ModelSize(
        parameters=sum(elements.values()),
        embeddings=sum(
            info.elements
            for info in header.tensors.values()
            if len(info.shape) == 2 and info.shape[0] == facts.vocab_size
        ),
        largest=max(elements.values()),
        held=sum(info.elements for each in held for info in each.tensors.values()),
        sources=len(ready.headers),
        source_bytes=sum(
            info.end - info.begin for each in ready.headers.values() for info in each.tensors.values()
        ),
        facts=facts,
    )


def candidate_bytes(ready: Ready) -> int:
    """The size of a merged model's weights, as deep as the model whose config it has."""
    header = ready.headers[ready.pattern]
    return sum(info.elements for info in header.tensors.values()) * DTYPE_BYTES[ready.dtype]


def workload(sizes: Sequence[TaskSize], model: ModelSize) -> tuple[Workload, bool]:
    """What a candidate is asked by all tasks together, and whether some of it is guessed."""
    per_token = characters_per_token(model.facts.vocab_size)
    texts = [(size.items or _USUAL_ITEMS) * size.sequences for size in sizes]
    prompts = [
        _USUAL_PROMPT_TOKENS if size.characters is None else size.characters / per_token for size in sizes
    ]
    answers = [_ANSWERED_SHARE * size.answer_tokens for size in sizes]
    total = sum(texts)
    work = Workload(
        texts=total,
        prompt_tokens=_mean(prompts, texts),
        answer_tokens=_mean(answers, texts),
        longest_tokens=math.ceil(max(a + size.answer_tokens for a, size in zip(prompts, sizes, strict=True))),
    )
    return work, any(size.items is None or size.characters is None for size in sizes)


def characters_per_token(vocabulary: int) -> float:
    """Of English text, about: 1 where a token is a character, 3.6 at 32,000 tokens, 4.4 at 128,000."""
    return max(1.0, 0.4 * (math.log2(max(vocabulary, 2)) - 6))


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / max(sum(weights), 1)


def _facts(config: Mapping[str, Any], elements: int, weight_bytes: int) -> ModelFacts:
    """Of a config without the usual keys: a model of two dozen layers."""
    try:
        return ModelFacts.from_config(config, weight_bytes=weight_bytes)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        width = math.isqrt(elements // (12 * _USUAL_LAYERS)) + 1
        return ModelFacts(
            layers=_USUAL_LAYERS, hidden_size=width, kv_size=width, vocab_size=0, weight_bytes=weight_bytes
        )


def _speed(machine: Machine, on_gpu: bool, threads: int, gpus: int) -> tuple[str, Speed]:
    """The device of one worker, by name, and what is assumed of it."""
    if on_gpu:
        name = machine.gpus[0].name
        return name if gpus == 1 else f"{gpus} {name}", gpu_speed(name).times(gpus)
    core = CORE_WITH_MATRIX_UNIT if machine.matrix_unit else CORE
    return some(threads, "core"), core.times(threads)


def _check_gpu(least: Need, gpu: Gpu, workers: int) -> None:
    if least.device_bytes * workers <= gpu.memory_bytes:
        return
    has = gigabytes(gpu.memory_bytes) + ("" if workers == 1 else f" for {workers} of them")
    raise FleetError(
        f"a worker needs about {gigabytes(least.device_bytes)} of a GPU's memory ({parts(least)}), and "
        f"{gpu.name} has {has}: take a larger one, several for each worker (--vllm with "
        "vllm.tensor_parallel_size), a smaller dtype, or --on-disk --load-in-4bit"
    )
