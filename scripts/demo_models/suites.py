"""Writes the demo's lm-eval tasks: for each skill one to search on and one that only the report looks at."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .tasks import TASKS, Item, Share, Task, draw_items
from .vocabulary import EOS

HELDOUT_DRAW = 2  # counted up whenever the courses change, so that nothing was chosen by these items


def write_suites(folder: Path, *, heldout_items: int, seed: int) -> None:
    """Task files and their items below `folder`; files that are right already are not touched.

    lm-eval looks for data files from the current directory, so the task files name them by absolute path.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        for share, count in _shares(task.search_items, heldout_items):
            name = task.name if share == "search" else f"{task.name}_{share}"
            items = draw_items(task, share, count, seed + (share == "heldout") * HELDOUT_DRAW)
            data = folder / f"{name}.jsonl"
            write_text(data, "".join(json.dumps(_row(item)) + "\n" for item in items))
            declaration = yaml.safe_dump(_declaration(task, name, data), sort_keys=False)
            write_text(folder / f"{name}.yaml", declaration)


def write_text(path: Path, text: str) -> None:
    """The whole file or nothing of it; nothing at all if it holds `text` already."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _shares(search_items: int, heldout_items: int) -> Iterator[tuple[Share, int]]:
    yield "search", search_items
    yield "heldout", heldout_items


def _row(item: Item) -> dict[str, Any]:
    return {"prompt": item.prompt, "answer": item.answer, "choices": list(item.choices)}


def _declaration(task: Task, name: str, data: Path) -> dict[str, Any]:
    common = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": task.output_type,
        "doc_to_text": "{{prompt}}",
        "num_fewshot": 0,
        "metadata": {"version": 1.0},
    }
    if task.output_type == "multiple_choice":
        metric = "acc"
        common |= {"doc_to_choice": "{{choices}}", "doc_to_target": "{{choices.index(answer)}}"}
    else:
        metric = "exact_match"
        generation = {"until": [EOS], "do_sample": False, "max_gen_toks": 10}
        common |= {"doc_to_target": "{{answer}}", "generation_kwargs": generation}
    return common | {"metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}]}
