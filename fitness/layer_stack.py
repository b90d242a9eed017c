"""The list of layers of a model in memory, which can become longer and shorter."""

from __future__ import annotations

import copy
from typing import Any

import torch

from fitness.errors import ModelError

_PLAIN = (bool, int, float, str, type(None))
_PER_LAYER_KEY = "layer"  # lists of the config with this in their name have an entry for each layer


class LayerStack:
    """The layers of a transformers model, all of one kind.

    Layer i of the list always is the same module, which knows its place i (its entry of the key-value cache);
    it is made once. New ones share the first layer's tensors until they are given others.

    Raises:
        ModelError: the model has no plain list of layers, or layers of several kinds: which kind stands where
            is then part of the architecture, and a list of another length has no meaning.
    """

    def __init__(self, model: Any) -> None:
        self._config = model.config
        self.prefix, layers = _find(model)
        parent, _, self._name = self.prefix.removesuffix(".").rpartition(".")
        self._parent = model.get_submodule(parent)
        self._made = list(layers)
        self._lists = _per_layer_lists(self._config, len(layers))
        for layer in self._made[1:]:
            if (difference := _difference(self._made[0], layer)) is not None:
                raise ModelError(_several_kinds(model, difference))

    def resize(self, count: int) -> list[Any]:
        """Make it a list of ``count`` layers, in the model and its config; returns them."""
        while len(self._made) < count:
            self._made.append(self._twin(len(self._made)))
        layers = self._made[:count]
        if len(getattr(self._parent, self._name)) != count:
            setattr(self._parent, self._name, torch.nn.ModuleList(layers))
            self._config.num_hidden_layers = count
            for key, kind in self._lists.items():
                setattr(self._config, key, [kind] * count)
        return layers

    def _twin(self, index: int) -> Any:
        first = self._made[0]
        kept = [self._config, *first.parameters(), *first.buffers()]
        twin = copy.deepcopy(first, {id(value): value for value in kept})
        for module in twin.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
        return twin


def _find(model: Any) -> tuple[str, Any]:
    """The layers and their name with a dot after it (``model.layers.``)."""
    count = getattr(model.config, "num_hidden_layers", None)
    lists = {
        f"{name}.": module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    }
    if not lists:
        raise ModelError(
            f"{type(model).__name__} has no list of {count} layers: they cannot be rearranged in memory; "
            "score it with --on-disk"
        )
    return max(lists.items(), key=lambda item: sum(p.numel() for p in item[1].parameters()))


def _per_layer_lists(config: Any, count: int) -> dict[str, Any]:
    """What each layer has in the config's lists with one entry for each of them."""
    lists = {
        key: value
        for key, value in config.to_dict().items()
        if _PER_LAYER_KEY in key and isinstance(value, list) and len(value) == count
    }
    for key, value in lists.items():
        if any(entry != value[0] for entry in value):
            raise ModelError(_several_kinds(config, f"{key} in the config"))
    return {key: value[0] for key, value in lists.items()}


def _difference(one: Any, other: Any) -> str | None:
    """The first setting in which two layers differ beside their place."""
    for (name, mine), (_, theirs) in zip(one.named_modules(), other.named_modules(), strict=False):
        if type(mine) is not type(theirs):
            return str(name)
        settings, others = _settings(mine), _settings(theirs)
        for key in settings:
            if settings[key] != others.get(key):
                return f"{name}.{key}" if name else key
    return None


def _settings(module: Any) -> dict[str, Any]:
    return {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, _PLAIN) and key not in ("layer_idx", "training")
    }


def _several_kinds(model: Any, difference: str) -> str:
    return (
        f"{type(model).__name__}: its layers are of several kinds ({difference} differs); "
        "only a stack of layers of one kind can be rearranged in memory; score it with --on-disk"
    )
