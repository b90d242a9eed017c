"""How much memory a worker needs and how long a candidate takes, by arithmetic on the models' sizes.

For before anything heavy starts; once workers have scored their first candidate, what they measured counts.
How near it comes: docs/log.md. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from evolve.machine import Speed
from evolve.wording import gigabytes
from fitness.batching import MAX_ROWS, ModelFacts, row_bytes

Backend = Literal["transformers", "vllm", "disk"]

# Python with torch, transformers and lm-eval in it, its tasks, and what the allocator keeps for later.
_PROGRAM_BYTES: dict[Backend, int] = {
    "transformers": 700_000_000,
    "disk": 700_000_000,
    "vllm": 1_600_000_000,
}
_GPU_PROGRAM_BYTES = 1_500_000_000  # libraries of a GPU, in the machine's memory; not measured
_ENGINE_DRIVER_BYTES = 600_000_000  # of an engine with several processes: that which asks them,
_ENGINE_PROCESS_BYTES = 700_000_000  # and each of them
_CONTEXT_BYTES = 500_000_000  # of a process on a GPU, in the GPU's memory; not measured
_PREPARED_SHARE = 0.04  # of the source models: counts of magnitudes and the like, 0 to 3.6 % measured
_MERGE_PIECE_ELEMENTS = 2**24  # that a GPU merges at a time, in fp32


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """A candidate and what it is merged from.

    ``parameters``: elements of all of its tensors, ``embeddings`` of those with a row for each token,
    ``largest`` of the largest. ``held``: elements that a worker keeps, more than ``parameters`` where paths
    through several models' layers are searched. ``sources``: how many models are merged; ``source_bytes``:
    all of their files.
    """

    parameters: int
    embeddings: int
    largest: int
    held: int
    sources: int
    source_bytes: int
    facts: ModelFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a candidate is asked: so many texts, with tokens on average. ``longest_tokens``: of one text."""

    texts: int
    prompt_tokens: float
    answer_tokens: float
    longest_tokens: int

    @property
    def tokens(self) -> float:
        """Of one text, on average."""
        return self.prompt_tokens + self.answer_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Memory of one worker, part by part. Without a GPU all of it is the machine's; with one only programs
    and what is prepared are, and all else is of each of its GPUs. Source files are mapped, and shared by all
    workers of a machine. ``merges``: how often it merges each candidate.
    """

    programs_bytes: int
    weights_bytes: int
    prepared_bytes: int
    merge_bytes: int
    row_bytes: int
    rows: int
    merges: int
    on_gpu: bool

    @property
    def batch_bytes(self) -> int:
        return self.rows * self.row_bytes

    @property
    def device_bytes(self) -> int:
        """Where the model is."""
        own = self.weights_bytes + self.merge_bytes + self.batch_bytes
        return own + (_CONTEXT_BYTES if self.on_gpu else self.programs_bytes + self.prepared_bytes)

    @property
    def least_device_bytes(self) -> int:
        """With one text at a time."""
        return self.device_bytes - self.batch_bytes + self.row_bytes

    @property
    def host_bytes(self) -> int:
        """In the machine's memory."""
        return self.programs_bytes + self.prepared_bytes if self.on_gpu else self.device_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration:
    """Seconds of one candidate."""

    merge_s: float
    prompts_s: float
    answers_s: float

    @property
    def total_s(self) -> float:
        return self.merge_s + self.prompts_s + self.answers_s

    @property
    def per_hour(self) -> float:
        """Candidates that one worker gets through."""
        return 3600 / self.total_s


def need(
    model: ModelSize,
    work: Workload,
    *,
    backend: Backend,
    on_gpu: bool,
    memory_bytes: int,
    rows: int | None = None,
    bits: int | None = None,
    processes: int = 1,
) -> Need:
    """What one worker needs.

    Args:
        memory_bytes: that it may have; batches take what the rest leaves of it.
        rows: texts at a time; None: what fits, at most 512 (of vLLM: 256).
        bits: of weights that are quantised while they are scored.
        processes: of an engine with tensor parallelism, 1 for all else. Each has its part of the weights,
            keys and values; GPUs share a merge as well, without them each merges everything.
    """
    weight_bytes = model.facts.weight_bytes
    per_row = row_bytes(model.facts, work.longest_tokens)
    if backend == "vllm":  # keys and values are there once
        per_row = 2 * model.facts.layers * model.facts.kv_size * weight_bytes * work.longest_tokens
    parts, merges = (processes, 1) if on_gpu else (1, processes)
    per_row = -(-per_row // parts)
    smallest = Need(
        programs_bytes=_programs_bytes(backend, on_gpu, processes),
        weights_bytes=-(-_weights_bytes(model, backend, bits) // parts),
        prepared_bytes=merges * round(_PREPARED_SHARE * model.source_bytes),
        merge_bytes=merges * _merge_bytes(model, backend, on_gpu),
        row_bytes=per_row,
        rows=1,
        merges=merges,
        on_gpu=on_gpu,
    )
    if rows is None:
        left_bytes = memory_bytes - smallest.least_device_bytes + per_row
        most = 256 if backend == "vllm" else MAX_ROWS
        rows = 1 << (min(max(left_bytes // max(per_row, 1), 1), most, max(work.texts, 1)).bit_length() - 1)
    return replace(smallest, rows=rows)


def duration(model: ModelSize, work: Workload, rows: int, speed: Speed, *, merges: int = 1) -> Duration:
    """How long a candidate takes one worker; a fifth to two times as long is as near as this can come.

    A product of weights and ``rows`` texts takes the time to read the weights and that to multiply them.
    Prompts are multiplied with everything but the embeddings, of which rows are looked up; the head is asked
    once for each text. Attention to earlier tokens comes on top.
    """
    facts = model.facts
    head = facts.vocab_size * facts.hidden_size
    body = model.parameters - model.embeddings
    attention = 4 * facts.layers * facts.hidden_size  # for each pair of tokens
    prompts = 2 * work.texts * (work.prompt_tokens * body + head)
    prompts += work.texts * attention * work.prompt_tokens**2 / 2
    answers = 2 * work.texts * work.answer_tokens * (body + head)
    steps = math.ceil(work.texts / rows) * work.answer_tokens
    cache = 2 * facts.layers * facts.kv_size * facts.weight_bytes * work.prompt_tokens
    read = steps * model.parameters * facts.weight_bytes + work.texts * work.answer_tokens * cache
    return Duration(
        merge_s=merges * model.source_bytes / speed.merge_bytes_per_s,
        prompts_s=prompts / speed.flops_per_s,
        answers_s=answers / speed.flops_per_s + read / speed.weights_bytes_per_s,
    )


def parts(need: Need) -> str:
    """What the memory where the model is goes to, for people."""
    found = {
        "weights": need.weights_bytes,
        "programs": 0 if need.on_gpu else need.programs_bytes,
        "what is known of the sources": 0 if need.on_gpu else need.prepared_bytes,
        "merging": need.merge_bytes,
        f"batches of {need.rows}": need.batch_bytes,
    }
    return ", ".join(f"{gigabytes(size)} {name}" for name, size in found.items() if size >= 1e6)


def _programs_bytes(backend: Backend, on_gpu: bool, processes: int) -> int:
    libraries_bytes = _GPU_PROGRAM_BYTES if on_gpu else 0
    if processes == 1:
        return _PROGRAM_BYTES[backend] + libraries_bytes
    return _ENGINE_DRIVER_BYTES + processes * (_ENGINE_PROCESS_BYTES + libraries_bytes)


def _weights_bytes(model: ModelSize, backend: Backend, bits: int | None) -> int:
    """What is resident. Quantised are all but embeddings (and fused experts, which nobody counts here)."""
    elements = model.parameters if backend == "disk" else model.held
    if bits is None:
        return elements * model.facts.weight_bytes
    return model.embeddings * model.facts.weight_bytes + (elements - model.embeddings) * bits // 8


def _merge_bytes(model: ModelSize, backend: Backend, on_gpu: bool) -> int:
    """Memory of a merge beside weights that it is written into."""
    weight_bytes = model.facts.weight_bytes
    new = model.largest * weight_bytes  # a tensor that the engine, or a file, is given
    if on_gpu:
        piece = min(model.largest, _MERGE_PIECE_ELEMENTS)
        return piece * (model.sources * weight_bytes + 4 * (model.sources + 1)) + (
            new if backend == "vllm" else 0
        )
    if backend == "disk":
        return (2 * model.sources + 2) * new
    return 2 * new if backend == "vllm" else 0
