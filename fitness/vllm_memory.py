"""Whether an engine fits its memory, and the merges beside it: asked before it is built."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fitness.batching import ModelFacts
from fitness.errors import ModelError
from fitness.vllm_settings import VllmSettings
from fitness.vllm_worker import Shapes

_GIB = 2**30
_PROCESS_BYTES = _GIB  # of a worker of an engine, with nothing in it
_BLOCK_TOKENS = 128  # vLLM's on a CPU, the largest that it uses by default
# While weights come in, of the largest tensor: itself, what vLLM fuses it into with another, that repacked.
_SWAP_TENSORS = 4
_SHARE_TENSORS = 2  # and what one of several workers has made at most before the others get it
_CACHE_SETTING = "kv_cache_memory_bytes"  # of vLLM, as is the variable, which goes before it
_CACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What each worker of an engine needs: bytes, all but ``sequences``.

    ``merge``: of merging a candidate. ``sequence``: keys and values of the longest. ``sequences``: at a time.
    """

    weights: int
    swap: int
    merge: int
    sequence: int
    sequences: int

    @classmethod
    def of(
        cls,
        shapes: Shapes,
        config: Mapping[str, Any],
        settings: VllmSettings,
        *,
        weight_bytes: int,
        longest_tokens: int,
        merge_bytes: int,
    ) -> Need:
        """For a model of these tensors and ``config.json``."""
        workers = settings.tensor_parallel_size
        sizes = [math.prod(shape) * weight_bytes for shape in shapes.values()]
        facts = ModelFacts.from_config(config, weight_bytes=weight_bytes)
        tokens = -(-(longest_tokens + 1) // _BLOCK_TOKENS) * _BLOCK_TOKENS
        in_flight = _SWAP_TENSORS + (_SHARE_TENSORS if workers > 1 else 0)
        cache = 2 * facts.layers * facts.kv_size * facts.weight_bytes * tokens
        return cls(
            weights=sum(sizes) // workers,
            swap=in_flight * max(sizes, default=0),
            merge=merge_bytes,
            sequence=-(-cache // workers),
            sequences=settings.max_num_seqs,
        )


def cache_bytes(need: Need, settings: VllmSettings, memory_bytes: int | None) -> int | None:
    """What keys and values may take; None leaves it to vLLM, which fills its share of a GPU.

    ``memory_bytes``: what engine and merges may take of the GPU, None for all of it; without a GPU as in
    `cpu_cache_bytes`. Raises `ModelError`.
    """
    import torch

    if not torch.cuda.is_available():
        return cpu_cache_bytes(need, settings, memory_bytes)
    total_bytes = torch.cuda.get_device_properties(0).total_memory
    check_gpu(need, settings, total_bytes, total_bytes if memory_bytes is None else memory_bytes)
    return None


def cpu_cache_bytes(need: Need, settings: VllmSettings, memory_bytes: int | None) -> int:
    """Keys and values of each worker: of all sequences at a time, or what is left of ``memory_bytes``.

    Raises:
        ModelError: what is left is too little for one sequence, or for the cache that is asked for.
    """
    workers = settings.tensor_parallel_size
    asked, name = _asked_cache(settings)
    wanted = need.sequence * (need.sequences + 1) if asked is None else asked
    if memory_bytes is None:
        return wanted
    left = memory_bytes // workers - _PROCESS_BYTES - need.weights - need.swap - need.merge
    least = 2 * need.sequence if asked is None else asked  # vLLM keeps one block for itself
    if left < least:
        parts = {
            "weights": need.weights,
            "taking and merging new ones": need.swap + need.merge,
            "vLLM itself": _PROCESS_BYTES,
            f"keys and values ({name})" if name else "keys and values of one sequence": least,
        }
        remedies = [f"a smaller {name}"] if name else ["a smaller vllm.max_model_len"]
        raise _too_large(parts, memory_bytes // workers, [*remedies, "fewer workers (--num-workers)"])
    return min(wanted, left)


def check_gpu(need: Need, settings: VllmSettings, total_bytes: int, own_bytes: int) -> None:
    """Of a GPU of ``total_bytes``, ``own_bytes`` are this worker's: less where workers share it.

    Raises:
        ModelError: the engine's share of a GPU cannot hold it, or the rest cannot hold a merge.
    """
    share = settings.gpu_memory_utilization
    engine = {"weights": need.weights, "keys and values of one sequence": 2 * need.sequence}
    merge = {"taking and merging new weights": need.swap + need.merge, "vLLM itself": _PROCESS_BYTES}
    if sum({**engine, **merge}.values()) > own_bytes:
        remedies = ["a larger vllm.tensor_parallel_size", "a smaller vllm.max_model_len"]
        raise _too_large({**engine, **merge}, own_bytes, remedies)
    for parts, room, change in (
        (engine, int(share * total_bytes), "larger"),
        (merge, own_bytes - int(share * total_bytes), "smaller"),
    ):
        if sum(parts.values()) > room:
            remedy = f"a {change} vllm.gpu_memory_utilization (it is {share:g} of {_gib(total_bytes)})"
            raise _too_large(parts, room, [remedy, "a larger vllm.tensor_parallel_size"])


def _asked_cache(settings: VllmSettings) -> tuple[int | None, str]:
    if space := os.environ.get(_CACHE_VARIABLE):
        return int(space) * _GIB, _CACHE_VARIABLE
    if (given := settings.engine.get(_CACHE_SETTING)) is not None:
        return int(given), f"vllm.engine.{_CACHE_SETTING}"
    return None, ""


def _too_large(parts: Mapping[str, int], room_bytes: int, remedies: list[str]) -> ModelError:
    needs = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())
    return ModelError(
        f"a vLLM engine and its merges do not fit: {needs}; there are {_gib(room_bytes)} for each worker of "
        f"an engine. Use {', or '.join(remedies)}"
    )


def _gib(size: int) -> str:
    return f"{size / _GIB:.3g} GiB"
