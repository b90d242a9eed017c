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

from evolve.merged_weights import MergedWeights, MergeSettings, SharedWeights
from fitness.vllm_engine import StoredTensors, VllmEngine
from fitness.vllm_settings import VllmSettings
from merge_engine.engine import Engine
from merge_engine.spec.recipe import parse_recipe

_TOKENS = 64
_CACHE_BYTES = 2**28
_WARM_UP = 3  # kernels are compiled meanwhile


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """On the wall clock, and of all threads' processor time, which other programs hardly change: of this
    process, so None for what others do.
    """

    wall: float
    cpu: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """Medians. ``copy``: the floor, every tensor copied once. ``reload``: vLLM takes tensors that lie in
    memory. ``merge``: a merge into resident tensors. ``swap``: a merge taken by vLLM. ``each``: by an
    engine of two workers, both of which merge everything. ``shared``: which merge half of it each.
    """

    method: str
    gigabytes: float
    copy: Seconds
    reload: Seconds
    merge: Seconds
    swap: Seconds
    each: Seconds
    shared: Seconds


def measure(folder: Path, size: Size, method: str, repetitions: int, threads: int) -> Swap:
    """A merge of two models and their base; each repetition measures everything, one after another."""
    torch.set_num_threads(threads)
    models = make_models(folder, size, 2)
    for model in models:
        _write_tokenizer(model, size.vocabulary)
    resident, pair = _engine(models[0], 1), _engine(models[0], 2)
    merging = Engine(compile="always")
    tensors = {name: tensor.clone() for name, tensor in StoredTensors(models[1])}
    into = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}

    def merged(candidate: int, target: dict[str, Tensor] | None = None) -> Iterable[tuple[str, Tensor]]:
        return merging.stream(parse_recipe(recipe_data(method, models, candidate)), target)

    def merged_there(candidate: int, weights: type[MergedWeights] = MergedWeights) -> MergedWeights:
        settings = MergeSettings(seed=0, device="cpu", allow_crimes=False)
        return weights(settings=settings, recipe=recipe_data(method, models, candidate))

    for engine, weights in ((resident, merged), (pair, merged_there)):
        for _ in range(_WARM_UP):
            engine.load(weights(0))  # sources are prepared, kernels compiled
    rounds = [
        (
            _timed(lambda: [into[name].copy_(tensor) for name, tensor in tensors.items()]),
            _timed(lambda: resident.load(tensors.items())),
            _timed(lambda number=number: list(merged(number, into))),  # type: ignore[misc]
            _timed(lambda number=number: resident.load(merged(number))),  # type: ignore[misc]
            _elsewhere(lambda number=number: pair.load(merged_there(number))),  # type: ignore[misc]
            _elsewhere(lambda number=number: pair.load(merged_there(number, SharedWeights))),  # type: ignore[misc]
        )
        for number in range(1, repetitions + 1)
    ]
    copy, reload, merge, swap, each, shared = map(_median, zip(*rounds, strict=True))
    return Swap(
        method=method,
        gigabytes=sum(tensor.nbytes for tensor in tensors.values()) / 1e9,
        copy=copy,
        reload=reload,
        merge=merge,
        swap=swap,
        each=each,
        shared=shared,
    )


def _engine(model: Path, workers: int) -> VllmEngine:
    return VllmEngine(
        model,
        VllmSettings(max_num_seqs=4, tensor_parallel_size=workers),
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


def _elsewhere(work: Callable[[], object]) -> Seconds:
    """What other processes do."""
    return Seconds(wall=_timed(work).wall)


def _median(times: Sequence[Seconds]) -> Seconds:
    cpu = [each.cpu for each in times if each.cpu is not None]
    return Seconds(
        wall=statistics.median(each.wall for each in times), cpu=statistics.median(cpu) if cpu else None
    )


def table(swap: Swap) -> str:
    """Milliseconds, and how many times the copy."""
    rows = {
        "copy_ of every tensor": swap.copy,
        "vLLM's reload, tensors in memory": swap.reload,
        "merge into resident tensors": swap.merge,
        "merge taken by vLLM": swap.swap,
        "by two workers, each all of it": swap.each,
        "by two workers, each half of it": swap.shared,
    }
    lines = [f"{swap.gigabytes:.2f} GB of bfloat16 ({swap.method} of two models and their base)"]
    lines += [f"{'':<34} {'wall ms':>9} {'x copy':>7} {'cpu ms':>9} {'x copy':>7}"]
    lines += [
        f"{name:<34}{_columns(row.wall, swap.copy.wall)}{_columns(row.cpu, swap.copy.cpu)}"
        for name, row in rows.items()
    ]
    return "\n".join(lines)


def _columns(time_s: float | None, copy_s: float | None) -> str:
    """Milliseconds, and how many times the copy."""
    if time_s is None or copy_s is None:
        return f" {'-':>9} {'-':>7}"
    return f" {1e3 * time_s:9.0f} {time_s / copy_s:7.2f}"
