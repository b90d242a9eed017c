"""The tasks that a search file names: which they are, whether they are there, and the suite they make."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from evolve.options import SearchOptions
from fitness.suite import DEFAULT_METRIC, SuiteSpec, TaskSpec
from fitness.task_index import check_suite
from genome.search_file import HoldoutShare, HoldoutTasks, SearchFile, TaskEntry
from merge_engine.checkpoint_header import CheckpointHeader
from merge_engine.errors import Problem


def task_problems(data: object, options: SearchOptions) -> Iterator[Problem]:
    """What is wrong with the tasks of a search file (plain data), even if the rest is wrong, too."""
    named = _named_tasks(data)
    if not named:
        return
    places = {task.name: where for where, task in reversed(named)}
    tasks = tuple(task for _, task in named)
    for problem in check_suite(SuiteSpec(tasks=tasks, search_paths=options.task_search_paths)):
        folder = problem.task in options.task_search_paths
        where = "--task-search-path" if folder else places.get(problem.task, "tasks")
        yield Problem(where, f"{problem.task!r}: {problem.what}", problem.remedy)


def chat_template_problems(
    search_file: SearchFile, headers: Mapping[str, CheckpointHeader]
) -> Iterator[Problem]:
    """Whether chat templates are asked for where the merged model's tokenizer has none."""
    genome = search_file.genome
    header = headers.get(genome.pattern)
    if search_file.apply_chat_template and header is not None and not has_chat_template(header.folder):
        yield Problem(
            "apply_chat_template",
            f"the tokenizer of {header.folder} has no chat template",
            "set it to false, or leave it out: then templates are applied where there is one",
        )


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer of a model folder has a chat template, in a file of its own or in its config."""
    if any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("chat_template"))


def suite_spec(search_file: SearchFile, options: SearchOptions) -> SuiteSpec:
    """The search file's tasks as the fitness room reads them."""
    holdout: float | tuple[TaskSpec, ...] | None = None
    if isinstance(search_file.holdout, HoldoutShare):
        holdout = search_file.holdout.share
    elif isinstance(search_file.holdout, HoldoutTasks):
        holdout = tuple(_task_spec(task) for task in search_file.holdout.tasks)
    return SuiteSpec(
        tasks=tuple(_task_spec(task) for task in search_file.tasks),
        holdout=holdout,
        limit=search_file.limit,
        num_fewshot=search_file.num_fewshot,
        shuffle=search_file.shuffle,
        apply_chat_template=search_file.apply_chat_template,
        fewshot_as_multiturn=search_file.fewshot_as_multiturn,
        search_paths=options.task_search_paths,
        seed=options.seed,
    )


def _task_spec(task: TaskEntry) -> TaskSpec:
    return TaskSpec(name=task.name, metric=task.metric, weight=task.weight)


def _named_tasks(data: object) -> list[tuple[str, TaskSpec]]:
    """The tasks that a search file names, with their paths of keys."""
    top = _mapping(data)
    entries = [*_entries(top, "tasks", ""), *_entries(_mapping(top.get("holdout")), "tasks", "holdout.")]
    return [(where, spec) for where, task in entries for spec in _spec_if_sound(task)]


def _mapping(data: object) -> Mapping[str, object]:
    return data if isinstance(data, dict) else {}


def _entries(data: Mapping[str, object], key: str, prefix: str) -> list[tuple[str, object]]:
    entries = data.get(key)
    return [
        (f"{prefix}{key}[{i}]", entry) for i, entry in enumerate(entries if isinstance(entries, list) else [])
    ]


def _spec_if_sound(task: object) -> Iterator[TaskSpec]:
    """The task, unless the parser refuses its entry anyhow."""
    entry = {"name": task} if isinstance(task, str) else task
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return
    with contextlib.suppress(ValueError, AttributeError):
        yield TaskSpec(name=entry["name"], metric=entry.get("metric", DEFAULT_METRIC))
