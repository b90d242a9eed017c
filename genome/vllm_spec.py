"""The ``vllm`` part of a search file: how the engines that score candidates are set up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from merge_engine.spec import DTYPES
from merge_engine.spec.reading import Fields, flag, integer, one_of, real, shown

_SHARE = real(low=0, high=1, low_open=True, high_open=True)
_COUNT = integer(low=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSpec:
    """See `fitness.vllm_settings.VllmSettings`; ``dtype`` None: that of the merged model."""

    dtype: str | None = None
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.8
    tensor_parallel_size: int = 1
    max_num_seqs: int = 256
    enforce_eager: bool | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)


def read_vllm(fields: Fields) -> VllmSpec:
    """The settings; what is wrong is reported by ``fields`` and leaves stand-ins."""
    default = VllmSpec()
    engine = fields.raw("engine")
    if engine is not None and not isinstance(engine, dict):
        fields.refuse("engine", f"expected arguments of vllm.LLM by name, found {shown(engine)}")
    spec = VllmSpec(
        dtype=fields.get("dtype", one_of(*DTYPES), None),
        max_model_len=fields.get("max_model_len", _COUNT, None),
        gpu_memory_utilization=fields.get("gpu_memory_utilization", _SHARE, default.gpu_memory_utilization),
        tensor_parallel_size=fields.get("tensor_parallel_size", _COUNT, default.tensor_parallel_size),
        max_num_seqs=fields.get("max_num_seqs", _COUNT, default.max_num_seqs),
        enforce_eager=fields.get("enforce_eager", flag, None),
        engine=engine if isinstance(engine, dict) else {},
    )
    fields.finish()
    return spec


def vllm_data(spec: VllmSpec) -> dict[str, object]:
    """The plain data that `read_vllm` reads back to the same."""
    return {
        "dtype": spec.dtype,
        "max_model_len": spec.max_model_len,
        "gpu_memory_utilization": spec.gpu_memory_utilization,
        "tensor_parallel_size": spec.tensor_parallel_size,
        "max_num_seqs": spec.max_num_seqs,
        "enforce_eager": spec.enforce_eager,
        "engine": dict(spec.engine),
    }
