"""Speed and memory of merging into a resident model, against copying the same bytes in the same run."""

from __future__ import annotations

import json
import math
import multiprocessing
import shutil
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from bench.memory import OwnMemoryPeak
from safetensors.torch import save_file
from torch import Tensor

from merge_engine.engine import Engine
from merge_engine.spec.recipe import Recipe, parse_recipe

METHODS = ("linear", "task_arithmetic", "ties", "dare_ties")
_HIDDEN, _INTERMEDIATE, _HEADS, _KV_HEADS, _HEAD, _VOCABULARY = 896, 4864, 14, 2, 64, 151_936


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One method: the candidates after the first, against the time in which `copy_` moves the same bytes.

    ``extra_mib``: the peak of memory above the resident model and the mapped files; most of it preparation
    (of the first candidate), the compiler's included.
    """

    method: str
    first_s: float
    candidate_s: float
    copy_s: float
    extra_mib: float

    @property
    def ratio(self) -> float:
        return self.candidate_s / self.copy_s


def model_config(layers: int) -> dict[str, object]:
    """A Qwen2-like configuration of about 0.14 + 0.015 * ``layers`` billion parameters."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": _HIDDEN,
        "intermediate_size": _INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "vocab_size": _VOCABULARY,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of that model."""
    queries, keys = _HEADS * _HEAD, _KV_HEADS * _HEAD
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (queries, _HIDDEN),
        "self_attn.k_proj.weight": (keys, _HIDDEN),
        "self_attn.v_proj.weight": (keys, _HIDDEN),
        "self_attn.o_proj.weight": (_HIDDEN, queries),
        "mlp.gate_proj.weight": (_INTERMEDIATE, _HIDDEN),
        "mlp.up_proj.weight": (_INTERMEDIATE, _HIDDEN),
        "mlp.down_proj.weight": (_HIDDEN, _INTERMEDIATE),
        "input_layernorm.weight": (_HIDDEN,),
        "post_attention_layernorm.weight": (_HIDDEN,),
    }
    named = {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}
    return {"model.embed_tokens.weight": (_VOCABULARY, _HIDDEN), **named, "model.norm.weight": (_HIDDEN,)}


def make_models(folder: Path, layers: int, sources: int) -> list[Path]:
    """A random base and ``sources`` models near it, as bfloat16 model folders; made once."""
    names = ["base", *(f"source{i}" for i in range(sources))]
    for seed, name in enumerate(names):
        if not (folder / name / "config.json").exists():
            print(f"making {folder / name}", flush=True)
            _make_model(folder / name, layers, seed)
    return [folder / name for name in names]


def _make_model(path: Path, layers: int, seed: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    base = torch.Generator().manual_seed(0)
    own = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes(layers).items():
        weight = torch.randn(shape, generator=base).mul_(0.02)
        if seed:
            weight += torch.randn(shape, generator=own).mul_(0.002)
        tensors[name] = weight.to(torch.bfloat16)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(model_config(layers)))


def recipe(method: str, models: list[Path], candidate: int) -> Recipe:
    """One candidate of a search: weights and densities change from candidate to candidate."""
    base, *sources = models
    entries = [
        {"model": str(path), "parameters": _parameters(method, 0.3 + 0.01 * ((7 * i + 3 * candidate) % 20))}
        for i, path in enumerate(sources)
    ]
    data = {"merge_method": method, "dtype": "bfloat16", "models": entries}
    return parse_recipe(data if method == "linear" else {**data, "base_model": str(base)})


def _parameters(method: str, value: float) -> dict[str, float]:
    return {"weight": value, "density": value + 0.2} if method in ("ties", "dare_ties") else {"weight": value}


def measure(method: str, models: list[Path], layers: int, repetitions: int, threads: int) -> Timing:
    """`measure_here` in a new process, whose memory no other method has touched."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure_here, method, models, layers, repetitions, threads).result()


def measure_here(method: str, models: list[Path], layers: int, repetitions: int, threads: int) -> Timing:
    """Time a fresh engine's first candidate and the next ones; copies are timed in between."""
    torch.set_num_threads(threads)
    resident = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes(layers).items()}
    scratch = torch.zeros(max(tensor.numel() for tensor in resident.values()), dtype=torch.bfloat16)
    used = len(models) - (method == "linear")
    candidates, copies = [], []
    with OwnMemoryPeak() as memory:
        engine = Engine()
        first_s = _timed(lambda: _merge(engine, recipe(method, models, 0), resident))
        for repetition in range(1, repetitions + 1):
            job = recipe(method, models, repetition)
            candidates.append(_timed(lambda job=job: _merge(engine, job, resident)))
            copies.append(copy_seconds(resident, scratch, used))
    return Timing(
        method=method,
        first_s=first_s,
        candidate_s=statistics.median(candidates),
        copy_s=statistics.median(copies),
        extra_mib=memory.above_mib,
    )


def copy_seconds(resident: dict[str, Tensor], scratch: Tensor, inputs: int) -> float:
    """Seconds in which `copy_` moves as many bytes as ``inputs`` reads and one write of the model.

    ``scratch`` has room for the largest tensor, and was written to before.

    A copy reads and writes each byte once, so (inputs + 1) / 2 copies of the model are those bytes.
    """
    once = _timed(lambda: [scratch[: tensor.numel()].copy_(tensor.view(-1)) for tensor in resident.values()])
    return once * (inputs + 1) / 2


def parameters(layers: int) -> int:
    """How many parameters the model has."""
    return sum(map(math.prod, shapes(layers).values()))


def table(timings: list[Timing], parameters: int, threads: int) -> str:
    """The result as a Markdown table."""
    lines = [
        f"{parameters / 1e9:.2f} B parameters, bf16, {threads} thread(s); copy: `copy_` of the same bytes",
        "",
        "| method | first (s) | candidate (s) | copy (s) | candidate / copy | memory above model (MiB) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for t in timings:
        times = f"{t.first_s:.1f} | {t.candidate_s:.3f} | {t.copy_s:.3f}"
        lines.append(f"| {t.method} | {times} | {t.ratio:.2f} | {t.extra_mib:.0f} |")
    return "\n".join(lines)


def _merge(engine: Engine, job: Recipe, resident: dict[str, Tensor]) -> None:
    for _ in engine.stream(job, resident):
        pass


def _timed(work: object) -> float:
    start = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - start
