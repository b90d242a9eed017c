"""How many sequences go through the model at once, and which. Pure: the same inputs give the same batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")

# Measured on one CPU core with a 2.7 M-parameter model: 3,200 short items take 2.2 s at 256 rows, 2.0 s at
# 512, 2.15 s at 1024. On GPUs, more rows no longer change the time per token of models worth merging.
MAX_ROWS = 512

# Of the memory offered, what batches may take: the rest is fragmentation and the merge's own work.
_USABLE_SHARE = 0.8
_LOGIT_BYTES = 4 + 4  # a logit in fp32 and its log-probability
_LIVE_ACTIVATIONS = 12  # hidden-size vectors alive at once per token: residual, norm, q, k, v, output, MLP


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What the memory of a forward pass depends on."""

    layers: int
    hidden_size: int
    kv_size: int  # key-value heads x head dimension
    vocab_size: int
    weight_bytes: int  # per element: 2 for bf16, 4 for fp32

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, weight_bytes: int) -> ModelFacts:
        """Reads a ``config.json`` (of a text model, or the ``text_config`` of a composite one).

        Raises KeyError, TypeError or ValueError where that has not what is needed.
        """
        config = config.get("text_config") or config
        hidden = int(config.get("hidden_size") or config["n_embd"])
        heads = int(config.get("num_attention_heads") or config.get("n_head") or 1)
        head_size = int(config.get("head_dim") or hidden // heads)
        return cls(
            layers=int(config.get("num_hidden_layers") or config["n_layer"]),
            hidden_size=hidden,
            kv_size=int(config.get("num_key_value_heads") or heads) * head_size,
            vocab_size=int(config["vocab_size"]),
            weight_bytes=weight_bytes,
        )


def auto_batch_size(facts: ModelFacts, memory_bytes: int, longest_tokens: int, scored_tokens: int = 1) -> int:
    """Rows per forward pass that fit ``memory_bytes``: a power of two between 1 and 512.

    Args:
        memory_bytes: free memory of the device, with the model's weights already in it.
        longest_tokens: the longest sequence, prompt and answer together.
        scored_tokens: positions of one sequence whose logits are needed at the same time.
    """
    per_row = row_bytes(facts, longest_tokens, scored_tokens)
    fitting = int(memory_bytes * _USABLE_SHARE / max(per_row, 1))
    return 1 << (min(max(fitting, 1), MAX_ROWS).bit_length() - 1)


def row_bytes(facts: ModelFacts, longest_tokens: int, scored_tokens: int = 1) -> int:
    """Memory of one row of a forward pass; arguments as in `auto_batch_size`."""
    cache_bytes = 2 * facts.layers * facts.kv_size * facts.weight_bytes  # keys and values, per token
    # The cache may exist twice for a moment, while finished rows are dropped from it.
    per_token = 2 * cache_bytes + _LIVE_ACTIVATIONS * facts.hidden_size * facts.weight_bytes
    return per_token * longest_tokens + scored_tokens * facts.vocab_size * _LOGIT_BYTES


def batches(items: Sequence[Item], rows: int, length: Callable[[Item], int]) -> Iterator[list[int]]:
    """Indices of ``items``, longest first (equal ones in their order), ``rows`` at a time."""
    order = sorted(range(len(items)), key=lambda index: -length(items[index]))
    for start in range(0, len(order), rows):
        yield order[start : start + rows]


def equal_batches(items: Sequence[Item], rows: int, length: Callable[[Item], int]) -> Iterator[list[int]]:
    """As `batches`, with items of one length only in each."""
    lengths = sorted({length(item) for item in items}, reverse=True)
    for each in lengths:
        places = [place for place, item in enumerate(items) if length(item) == each]
        for start in range(0, len(places), rows):
            yield places[start : start + rows]
