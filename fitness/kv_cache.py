"""A key-value cache with room for what will be generated.

transformers' own cache copies all keys and values for every new token; on a small model that is a fifth of
the time of a forward pass. This one writes each token into storage that is there already.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped here
    """Like `DynamicLayer`, with storage for the first call's tokens and ``room`` more.

    Shapes: keys and values (batch, key-value heads, tokens, head size), as views of the storage.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._length = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Appends new keys and values; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._all_keys = self._storage(key_states)
            self._all_values = self._storage(value_states)
        start, self._length = self._length, self._length + key_states.shape[-2]
        self._all_keys[:, :, start : self._length] = key_states
        self._all_values[:, :, start : self._length] = value_states
        self._show()
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keeps the given rows, in the given order."""
        self._all_keys = self._all_keys.index_select(0, beam_idx)
        self._all_values = self._all_values.index_select(0, beam_idx)
        self._show()

    def _storage(self, first: Tensor) -> Tensor:
        batch, heads, tokens, size = first.shape
        return first.new_empty(batch, heads, tokens + self._room, size)

    def _show(self) -> None:
        self.keys = self._all_keys[:, :, : self._length]
        self.values = self._all_values[:, :, : self._length]


def roomy_cache(config: Any, room: int) -> DynamicCache:
    """A cache for a model of this config; layers that keep a window or a state stay transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def attends_everything(config: Any) -> bool:
    """Whether each layer keeps plain keys and values, so that several tokens may follow a cached prefix."""
    layers = DynamicCache(config=config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def left_padded(rows: list[tuple[int, ...]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask (1 = real), both int64, (rows, longest row); short rows start with padding."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def right_padded(rows: list[tuple[int, ...]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """As `left_padded`, with the padding after each row."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([list(row) + [pad_id] * (width - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask
