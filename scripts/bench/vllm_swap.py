"""Giving a resident vLLM engine other weights, against copying their bytes once in the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from bench.synthetic import Size, make_models, recipe_data
from torch import Tensor

from fitness.vllm_engine import StoredTensors, VllmEngine
from fitness.vllm_settings import VllmSettings
from merge_engine.engine import Engine
from merge_engine.spec.recipe import parse_recipe

_METHOD = "task_arithmetic"
_TOKENS = 64
_CACHE_BYTES = 2**28


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """On the wall clock, and of all threads' processor time, which other programs hardly change."""

    wall: float
    cpu: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """Medians. ``copy``: the floor, every tensor copied once. ``reload``: vLLM takes tensors that lie in
    memory. ``merge``: a merge into resident tensors. ``swap``: a merge taken by vLLM.
    """

    gigabytes: float
    copy: Seconds
    reload: Seconds
    merge: Seconds
    swap: Seconds


def measure(folder: Path, size: Size, repetitions: int, threads: int) -> Swap:
    """A merge of two models and their base; each repetition measures everything, one after another."""
    torch.set_num_threads(threads)
    models = make_models(folder, size, 2)
    for model in models:
        _write_tokenizer(model, size.vocabulary)
    resident = _engine(models[0])
    merging = Engine(compile="always")
    tensors = {name: tensor.clone() for name, tensor in StoredTensors(models[1])}
    into = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}

    def merged(candidate: int, target: dict[str, Tensor] | None = None) -> Iterable[tuple[str, Tensor]]:
        return merging.stream(parse_recipe(recipe_data(_METHOD, models, candidate)), target)

    resident.load(merged(0))  # sources are prepared, kernels compiled
    rounds = [
        (
            _timed(lambda: [into[name].copy_(tensor) for name, tensor in tensors.items()]),
            _timed(lambda: resident.load(tensors.items())),
            _timed(lambda number=number: list(merged(number, into))),  # type: ignore[misc]
            _timed(lambda number=number: resident.load(merged(number))),  # type: ignore[misc]
        )
        for number in range(1, repetitions + 1)
    ]
    copy, reload, merge, swap = map(_median, zip(*rounds, strict=True))
    size_bytes = sum(tensor.nbytes for tensor in tensors.values())
    return Swap(gigabytes=size_bytes / 1e9, copy=copy, reload=reload, merge=merge, swap=swap)


def _engine(model: Path) -> VllmEngine:
    return VllmEngine(
        model,
        VllmSettings(max_num_seqs=4),
        dtype="bfloat16",
        longest_tokens=_TOKENS,
        end_ids=frozenset([0]),
        cache_bytes=_CACHE_BYTES,
    )


def _write_tokenizer(model: Path, vocabulary: int) -> None:
    """A word for each row of the embeddings."""
    if (model / "tokenizer.json").exists():
        return
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({f"w{row}": row for row in range(vocabulary)}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="w0").save_pretrained(model)


def _timed(work: Callable[[], object]) -> Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Seconds(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu)


def _median(times: Sequence[Seconds]) -> Seconds:
    return Seconds(
        wall=statistics.median(each.wall for each in times), cpu=statistics.median(each.cpu for each in times)
    )


def table(swap: Swap) -> str:
    """Milliseconds, and how many times the copy."""
    rows = {
        "copy_ of every tensor": swap.copy,
        "vLLM's reload, tensors in memory": swap.reload,
        "merge into resident tensors": swap.merge,
        "merge taken by vLLM": swap.swap,
    }
    lines = [f"{swap.gigabytes:.2f} GB of bfloat16 ({_METHOD} of two models and their base)"]
    lines += [f"{'':<34} {'wall ms':>9} {'x copy':>7} {'cpu ms':>9} {'x copy':>7}"]
    for name, time_ in rows.items():
        wall, cpu = time_.wall / swap.copy.wall, time_.cpu / swap.copy.cpu
        lines.append(f"{name:<34} {1e3 * time_.wall:9.0f} {wall:7.2f} {1e3 * time_.cpu:9.0f} {cpu:7.2f}")
    return "\n".join(lines)
