"""What a model's config says about its layers, and the config of a model of other layers: no table of models.

Keys are found by their words: ``num_hidden_layers``, ``decoder_layers``, ``vision_config.depth``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_MAIN_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_COUNT_KEY = re.compile(r"(^|_)(layers?|depths?|blocks?|groups)(_|$)")
_EACH_LAYER_KEY = re.compile(r"layer|pattern|heads|multipliers|block_type")
_INDEX_KEY = re.compile(r"layers?(_|$)|layer_id")
_EXTRA_KEY = "num_nextn_predict_layers"
_TEXT_NODES = ("text_config", "language_config", "llm_config", "text_model_config", "thinker_config")
_SIDES = {
    "encoder": "encoder",
    "decoder": "decoder",
    "text": "text",
    "language": "text",
    "llm": "text",
    "vision": "vision",
    "visual": "vision",
    "image": "vision",
    "audio": "audio",
    "speech": "audio",
}
_MAX_DEPTH = 8  # of configs within configs
_LONGEST = 40  # characters of a value in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a layer of the result comes from: layer ``index`` of the model of which this is the config."""

    config: Mapping[str, Any]
    index: int


def layer_counts(config: Mapping[str, Any]) -> frozenset[int]:
    """Every number that the config, or a config within it, gives for layers."""
    stated = [
        len(value) if isinstance(value, list) else value
        for _, node in _nodes(config)
        for key, value in node.items()
        if _COUNT_KEY.search(str(key))
    ]
    return frozenset(value for value in stated if _is_count(value))


def main_count(config: Mapping[str, Any]) -> int | None:
    """The number of layers of the language model; None where the config does not say.

    Raises `ValueError` where what stands there is no such number, or no config.
    """
    for key in _TEXT_NODES:
        if not isinstance(config.get(key), dict | None):
            raise ValueError(f"{key} is {shown(config[key])}: allowed is an object")
    for node in (*_text_nodes(config), config):
        for key in _MAIN_KEYS:
            value: Any = node.get(key)
            if _is_count(value):
                return int(value)
            if value is not None and value != 0:
                raise ValueError(f"{key} is {shown(value)}: allowed is a whole number of layers")
        if node is not config:
            return None  # a text config that is silent means a default, not what stands beside it
    return None


def num_extra_layers(config: Mapping[str, Any]) -> int:
    """Layers beyond the count that predict further tokens (DeepSeek-V3, GLM-4.5)."""
    for node in (*_text_nodes(config), config):
        if _is_count(node.get(_EXTRA_KEY)):
            return int(node[_EXTRA_KEY])
    return 0


def shown(value: object) -> str:
    """A value of a config, for messages: as JSON has it, if that is short."""
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def with_layers(
    config: Mapping[str, Any], path: Sequence[str], old_count: int, origins: Sequence[Origin], *, main: bool
) -> dict[str, Any]:
    """The config of a model in which one stack is made of other layers.

    The stack at ``path`` (``("model", "layers")``), once of ``old_count`` layers, has the layers ``origins``:
    that changes counts, lists with one entry for each layer, and lists of layer numbers.
    ``main``: the stack is the one that keys without a word for a part of the model speak of.
    """
    entries = list(_count_entries(config, path, old_count, main))
    nodes = dict.fromkeys(where for where, _ in entries) or {_home(config): None}
    changed = dict(config)
    for where in nodes:
        node = dict(_at(config, where))
        keys = [key for place, key in entries if place == where] or [_MAIN_KEYS[0]]
        node |= dict.fromkeys(keys, len(origins))
        node |= _lists(node, where, old_count, origins)
        changed = _replaced(changed, where, node)
    return changed


def _count_entries(
    config: Mapping[str, Any], path: Sequence[str], old_count: int, main: bool
) -> Iterator[tuple[tuple[str, ...], str]]:
    """The keys that hold the count of that stack: where they stand, and their names."""
    sides = _sides(path)
    for where, node in _nodes(config):
        keys = [str(key) for key, value in node.items() if _is_count(value) and value == old_count]
        keys = [key for key in keys if _COUNT_KEY.search(key) and key != _EXTRA_KEY]
        usual = [key for key in keys if key in _MAIN_KEYS]
        for key in keys:
            named = _sides((*where, key))
            of_main = main and named <= {"text"} and (key in usual or not usual)
            if of_main or named & sides or (not named and "encoder" in sides and key in usual):
                yield where, key


def _lists(
    node: Mapping[str, Any], where: tuple[str, ...], old_count: int, origins: Sequence[Origin]
) -> dict[str, Any]:
    """Lists (or texts) of one entry for each layer, and lists of layer numbers."""
    changed: dict[str, Any] = {}
    for key, value in node.items():
        sources = [_at(origin.config, where).get(key) for origin in origins]
        if _EACH_LAYER_KEY.search(key) and isinstance(value, list | str) and len(value) == old_count:
            each = [
                source[origin.index]
                for source, origin in zip(sources, origins, strict=True)
                if isinstance(source, type(value)) and origin.index < len(source)
            ]
            if len(each) == len(origins):
                changed[key] = "".join(each) if isinstance(value, str) else each
        elif _INDEX_KEY.search(key) and isinstance(value, list) and _are_indices(value, old_count):
            changed[key] = [
                i
                for i, (source, origin) in enumerate(zip(sources, origins, strict=True))
                if isinstance(source, list) and origin.index in source
            ]
    return changed


def _are_indices(value: list[Any], count: int) -> bool:
    return bool(value) and all(type(entry) is int and 0 <= entry < count for entry in value)


def _nodes(config: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """The config and every config within it, with the keys that lead there."""
    pending: list[tuple[tuple[str, ...], Mapping[str, Any]]] = [((), config)]
    while pending:
        where, node = pending.pop(0)
        yield where, node
        if len(where) < _MAX_DEPTH:
            inner = [(str(key), value) for key, value in node.items() if isinstance(value, dict)]
            pending += [((*where, key), value) for key, value in inner if "config" in key or not where]


def _text_nodes(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for _, node in _nodes(config):
        for key in _TEXT_NODES:
            if isinstance(node.get(key), dict) and not any(name in node[key] for name in _TEXT_NODES):
                yield node[key]


def _home(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Where a count is written that the config did not give."""
    return next(((key,) for key in _TEXT_NODES if isinstance(config.get(key), dict)), ())


def _at(config: Mapping[str, Any], where: Sequence[str]) -> Mapping[str, Any]:
    for key in where:
        inner = config.get(key)
        config = inner if isinstance(inner, dict) else {}
    return config


def _replaced(config: Mapping[str, Any], where: Sequence[str], node: Mapping[str, Any]) -> dict[str, Any]:
    if not where:
        return dict(node)
    return {**config, where[0]: _replaced(config.get(where[0], {}), where[1:], node)}


def _sides(words: Sequence[str]) -> set[str]:
    found = {part for word in words for part in re.split(r"[_.]", word)}
    return {_SIDES[part] for part in found if part in _SIDES}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
