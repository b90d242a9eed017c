"""How a vLLM engine is set up, as plain values. No heavy imports: these cross the package border."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

# What the backend decides itself: naming one of these in `engine` would break a promise of the search.
RESERVED = frozenset(
    {
        "model",
        "tokenizer",
        "seed",
        "skip_tokenizer_init",
        "quantization",
        "load_format",
        "max_logprobs",
        "trust_remote_code",
        "worker_extension_cls",
        "distributed_executor_backend",
        "pipeline_parallel_size",
        "data_parallel_size",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """Settings of one engine; None leaves a choice to the backend.

    ``dtype``
        that the engine computes in; None: the merged model's.
    ``max_model_len``
        tokens that prompt and answer may have together; longer prompts lose tokens at their start. None: the
        model's context length.
    ``gpu_memory_utilization``
        share of a GPU that the engine takes for weights and cache. What is left is for the merge, which needs
        some copies of the largest tensor of each source (`fitness.vllm_memory`).
    ``tensor_parallel_size``
        GPUs of one engine, all of one machine; without GPUs, processes.
    ``max_num_seqs``
        sequences that run at the same time.
    ``enforce_eager``
        no CUDA graphs and no compilation; None: only where there is no GPU.
    ``engine``
        further arguments of `vllm.LLM`, passed on as they are.
    """

    dtype: str | None = None
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.8
    tensor_parallel_size: int = 1
    max_num_seqs: int = 256
    enforce_eager: bool | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        taken = sorted(RESERVED & set(self.engine))
        if taken:
            raise ValueError(f"vllm settings that the search decides itself: {', '.join(taken)}")
        doubled = sorted({each.name for each in fields(self)} & set(self.engine))
        if doubled:
            raise ValueError(f"set outside vllm.engine: {', '.join(f'vllm.{name}' for name in doubled)}")
        if not 0 < self.gpu_memory_utilization < 1:
            raise ValueError(
                f"gpu_memory_utilization is {self.gpu_memory_utilization}; it lies between 0 and 1"
            )
