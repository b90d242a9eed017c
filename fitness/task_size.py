"""How much a task asks of a model, as far as its file tells: for an estimate. Imports nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fitness.suite import SuiteSpec, TaskSpec
from fitness.task_index import TaskIndex
from fitness.task_yaml import read_config

_DEFAULT_ANSWER_TOKENS = 256  # lm-eval's own limit for a generated answer
_USUAL_CHOICES = 4
_LOOKED_AT_BYTES = 2**22  # of a data file: what follows is taken to be like it


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSize:
    """``items`` and ``characters`` (of an item's texts) are None where only loading the data would tell.

    ``sequences``: texts that a model sees for one item. ``answer_tokens``: at most so many are generated.
    """

    items: int | None
    characters: float | None
    sequences: int
    answer_tokens: int


def task_sizes(suite: SuiteSpec) -> tuple[TaskSize, ...]:
    """Of each search task, on the items that a search looks at."""
    index = TaskIndex(suite.search_paths)
    return tuple(_limited(_size(task, index, suite), suite) for task in suite.tasks)


def _size(task: TaskSpec, index: TaskIndex, suite: SuiteSpec) -> TaskSize:
    try:
        path = index.find(task.name)
        config: Mapping[str, Any] = {} if path is None else read_config(path)
    except ValueError:
        config = {}
    generates = config.get("output_type", "generate_until") == "generate_until"
    settings = config.get("generation_kwargs") or {}
    rows = list(_rows(config)) if config.get("dataset_path") == "json" else []
    lengths = [sum(len(value) for value in row.values() if isinstance(value, str)) for row in rows]
    shots = suite.num_fewshot or config.get("num_fewshot") or 0
    return TaskSize(
        items=_count(config, len(rows)) if rows else None,
        characters=(1 + shots) * sum(lengths) / len(rows) if rows else None,
        sequences=_choices(rows) if config.get("output_type") == "multiple_choice" else 1,
        answer_tokens=int(settings.get("max_gen_toks", _DEFAULT_ANSWER_TOKENS)) if generates else 0,
    )


def _limited(size: TaskSize, suite: SuiteSpec) -> TaskSize:
    items, limit = size.items, suite.limit
    if items is not None and isinstance(suite.holdout, float):
        items = round(items * (1 - suite.holdout))
    if limit is not None and limit >= 1:
        items = int(limit) if items is None else min(items, int(limit))
    elif limit is not None and items is not None:
        items = max(1, round(items * limit))
    return replace(size, items=items)


def _file(config: Mapping[str, Any]) -> Path | None:
    """The local JSON lines of the split that is scored."""
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    split = config.get("test_split") or config.get("validation_split")
    named = files.get(split) if isinstance(files, Mapping) else files
    path = Path(named) if isinstance(named, str) else None
    return path if path is not None and path.is_file() else None


def _rows(config: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    path = _file(config)
    if path is None:
        return
    with path.open("rb") as file:
        for line in file.read(_LOOKED_AT_BYTES).splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # no JSON lines, or the end of what is looked at
                return
            if isinstance(row, dict):
                yield row


def _count(config: Mapping[str, Any], rows: int) -> int:
    path = _file(config)
    size = 0 if path is None else path.stat().st_size
    return rows if size <= _LOOKED_AT_BYTES else round(rows * size / _LOOKED_AT_BYTES)


def _choices(rows: Iterable[Mapping[str, Any]]) -> int:
    for row in rows:
        for value in row.values():
            if isinstance(value, list) and value:
                return len(value)
    return _USUAL_CHOICES
