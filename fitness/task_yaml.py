"""Reads lm-eval task files as plain data, without running any code they name. No heavy imports."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

# lm-eval's own defaults for a task without a metric_list (docs/new_task_guide.md).
_DEFAULT_METRICS = {
    "loglikelihood": ("perplexity", "acc"),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
    "multiple_choice": ("acc", "acc_norm"),
    "generate_until": ("exact_match",),
}
_NAME_LINE = re.compile(r"^['\"]?(task|group|tag)['\"]?[ \t]*:[ \t]*(.*)$", re.MULTILINE)
_TAG_LIST = re.compile(r"^['\"]?tag['\"]?[ \t]*:[ \t]*\n((?:[ \t]*-[^\n]*\n?)+)", re.MULTILINE)


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one if PyYAML has it


class _TolerantLoader(_SafeLoader):  # type: ignore[misc]  # chosen at run time
    """The safe loader; a ``!function module.name`` tag becomes the text ``module.name``."""


def _tag_text(loader: yaml.SafeLoader, _suffix: str, node: yaml.Node) -> str:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ""


_TolerantLoader.add_multi_constructor("!", _tag_text)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskText:
    """What a task file says of itself; ``metrics`` is None where only running the task could tell."""

    name: str
    metrics: tuple[str, ...] | None
    filters: tuple[str, ...]
    children: tuple[str, ...]  # of a group: its tasks by name; empty for a task


def names_in(text: str) -> Iterator[str]:
    """The task, group and tag names that a task file declares, from its lines alone."""
    for match in _NAME_LINE.finditer(text):
        if match[1] == "tag" or not match[2].startswith("["):  # a list of tasks is what a group refers to
            yield from _plain_names(match[2])
    for match in _TAG_LIST.finditer(text):
        for line in match[1].splitlines():
            yield from _plain_names(line.strip()[1:])


def _plain_names(value: str) -> Iterator[str]:
    for part in value.split(" #")[0].strip().strip("[]").split(","):
        if name := part.strip().strip("'\""):
            yield name


def read_task(path: Path) -> TaskText:
    """Reads one task or group file and what it includes.

    Raises:
        ValueError: the file, or one that it includes, cannot be read or is no mapping.
    """
    config = read_config(path)
    children = config.get("task")
    if isinstance(children, list):
        name = str(config.get("group", ""))
        return TaskText(name=name, metrics=None, filters=(), children=tuple(_child_names(children)))
    return TaskText(name=str(children), metrics=_metrics(config), filters=_filters(config), children=())


def read_config(path: Path) -> dict[str, Any]:
    """All keys of a task file and what it includes, as plain data. Raises as `read_task`."""
    return _merged(path, seen=())


def _merged(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise ValueError(f"{path}: includes itself")
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_TolerantLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: not a mapping")
    included = config.pop("include", [])
    merged: dict[str, Any] = {}
    for name in [included] if isinstance(included, str) else included:
        merged |= _merged(path.parent / name, (*seen, path))
    return merged | config


def _child_names(children: list[Any]) -> Iterator[str]:
    for child in children:
        name = child.get("task") if isinstance(child, dict) else child
        if isinstance(name, str):
            yield name


def _metrics(config: dict[str, Any]) -> tuple[str, ...] | None:
    if "class" in config or config.get("process_results") is not None:
        return None
    listed = config.get("metric_list")
    if listed is None:
        return _DEFAULT_METRICS.get(config.get("output_type", "generate_until"))
    if not isinstance(listed, list) or any(not isinstance(entry, dict) for entry in listed):
        return None
    if any(entry.get("hf_evaluate") for entry in listed):  # one such metric may give several values
        return None
    return tuple(str(entry.get("metric", "")).rpartition(".")[2] for entry in listed)


def _filters(config: dict[str, Any]) -> tuple[str, ...]:
    listed = config.get("filter_list")
    if not isinstance(listed, list):
        return ("none",)
    return tuple(str(entry["name"]) for entry in listed if isinstance(entry, dict) and "name" in entry)
