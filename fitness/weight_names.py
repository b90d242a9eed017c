"""Checkpoint names <-> the tensors of a transformers model in memory."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fitness.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

# Old checkpoints carry these; transformers computes them from the config.
_COMPUTED = (r"rotary_emb\.inv_freq$", r"(masked_bias|attn\.bias)$")
_SHOWN_NAMES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightNames:
    """``tensors``: storage by checkpoint name. ``keys``: by checkpoint name too, all names that it has in the
    model's state. ``twins``: tied names -> the name that has the storage.
    """

    tensors: Mapping[str, Tensor]
    keys: Mapping[str, tuple[str, ...]]
    twins: Mapping[str, str]
    ignored: tuple[str, ...]  # patterns of names that a stream may bring and the model does not take

    def is_ignored(self, name: str) -> bool:
        """Whether a checkpoint may have this name though the model has no such tensor."""
        return any(re.search(pattern, name) for pattern in self.ignored)


def match_names(model: Any, checkpoint_names: Collection[str] | None) -> WeightNames:
    """Finds the tensor in memory for each checkpoint name.

    Args:
        model: a transformers model.
        checkpoint_names: None takes the model's own names.

    Raises:
        ModelError: a name on either side has no counterpart, as where transformers fuses experts in memory.
    """
    state: dict[str, Tensor] = model.state_dict()
    own = {_strip(name, model.base_model_prefix): name for name in state}
    ignored = (*_COMPUTED, *(model._keys_to_ignore_on_load_unexpected or ()))
    tensors: dict[str, Tensor] = {}
    twins: dict[str, str] = {}
    by_storage: dict[tuple[int, tuple[int, ...]], str] = {}
    unknown = []
    for name in sorted(state if checkpoint_names is None else checkpoint_names):
        tensor = state.get(own.get(_strip(name, model.base_model_prefix), name))
        if tensor is None:
            unknown += [] if any(re.search(pattern, name) for pattern in ignored) else [name]
            continue
        first = by_storage.setdefault((tensor.data_ptr(), tuple(tensor.shape)), name)
        if first == name:
            tensors[name] = tensor
        else:
            twins[name] = first
    reached = set(by_storage)
    unfed = [
        name for name, tensor in state.items() if (tensor.data_ptr(), tuple(tensor.shape)) not in reached
    ]
    if unknown or unfed:
        raise ModelError(_mismatch(type(model).__name__, unknown, unfed))
    keys: dict[str, list[str]] = {name: [] for name in tensors}
    # A tied tensor's other name may come in a stream even where this checkpoint leaves it out.
    for name, tensor in state.items():
        first = by_storage[tensor.data_ptr(), tuple(tensor.shape)]
        keys[first].append(name)
        if name not in tensors and _strip(name, model.base_model_prefix) != _strip(
            first, model.base_model_prefix
        ):
            twins.setdefault(name, first)
    return WeightNames(
        tensors=tensors,
        keys={name: tuple(own) for name, own in keys.items()},
        twins=twins,
        ignored=ignored,
    )


def _strip(name: str, prefix: str) -> str:
    """Base models are saved without their prefix (GPT-2's ``h.0...`` for ``transformer.h.0...``)."""
    return name.removeprefix(f"{prefix}.") if prefix else name


def _mismatch(model: str, unknown: Iterable[str], unfed: Iterable[str]) -> str:
    what = "cannot be merged in memory, where its weights have other names than in its checkpoint"
    lines = [f"{model} {what} (fused experts, for example); score it with --on-disk:"]
    lines += [f"  in the checkpoint only: {_shown(unknown)}"] if unknown else []
    lines += [f"  in memory only: {_shown(unfed)}"] if unfed else []
    return "\n".join(lines)


def _shown(names: Iterable[str]) -> str:
    listed = list(names)
    rest = len(listed) - _SHOWN_NAMES
    return ", ".join(listed[:_SHOWN_NAMES]) + (f" and {rest} more" if rest > 0 else "")
