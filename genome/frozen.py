"""A search file as plain data with every default written out, and what differs between two of them."""

from __future__ import annotations

from collections.abc import Iterator

from genome.search_file import Genome, HoldoutShare, HoldoutTasks, SearchFile, TaskEntry
from genome.slice_layout import LayoutSpec, layout_data
from genome.template import Template
from genome.vllm_spec import vllm_data


def frozen_search_file(search_file: SearchFile) -> dict[str, object]:
    """Plain data for YAML; parsing it gives ``search_file`` again, whatever the defaults will be by then."""
    optimizer, budget = search_file.optimizer, search_file.budget
    return {
        **_genome_data(search_file.genome),
        "tasks": _tasks_data(search_file.tasks),
        "holdout": _holdout_data(search_file),
        "optimizer": {
            "name": optimizer.name,
            "popsize": optimizer.popsize,
            "sigma0": optimizer.sigma0,
            "restarts": optimizer.restarts,
        },
        "scheduler": search_file.scheduler,
        "budget": {"candidates": budget.candidates, "hours": budget.hours},
        "limit": search_file.limit,
        "num_fewshot": search_file.num_fewshot,
        "shuffle": search_file.shuffle,
        "random_init": search_file.random_init,
        "apply_chat_template": search_file.apply_chat_template,
        "fewshot_as_multiturn": search_file.fewshot_as_multiturn,
        "initial": list(search_file.initial),
        "vllm": vllm_data(search_file.vllm),
    }


def _genome_data(genome: Genome) -> dict[str, object]:
    match genome:
        case Template():
            return {"template": dict(genome.data)}
        case LayoutSpec():
            return {"layout": layout_data(genome)}
    data = {
        "models": list(genome.models),
        "merge_method": genome.merge_method,
        "base_model": genome.base_model,
        "tokenizer_source": genome.tokenizer_source,
        "layer_granularity": genome.layer_granularity,
        "normalize": genome.normalize,
        "allow_negative_weights": genome.allow_negative_weights,
        "smooth": genome.smooth,
        "filters": list(genome.filters),
        "bounds": {name: list(ends) for name, ends in genome.bounds.items()},
        "dtype": genome.dtype,
    }
    return {"genome": data}


def _tasks_data(tasks: tuple[TaskEntry, ...]) -> list[dict[str, object]]:
    return [{"name": task.name, "weight": task.weight, "metric": task.metric} for task in tasks]


def _holdout_data(search_file: SearchFile) -> dict[str, object] | None:
    match search_file.holdout:
        case HoldoutShare(share=share):
            return {"share": share}
        case HoldoutTasks(tasks=tasks):
            return {"tasks": _tasks_data(tasks)}
        case None:
            return None


def diff_search_files(old: SearchFile, new: SearchFile) -> list[str]:
    """Every difference as a line such as ``genome.models[1]: 'a' -> 'b'``; empty where the two are equal."""
    before, after = dict(_leaves(frozen_search_file(old))), dict(_leaves(frozen_search_file(new)))
    return [
        f"{path}: {_shown(before.get(path))} -> {_shown(after.get(path))}"
        for path in dict.fromkeys([*before, *after])
        if before.get(path) != after.get(path)
    ]


def _leaves(data: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every plain value with its path of keys."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _leaves(value, f"{path}.{key}" if path else key)
    elif isinstance(data, list):
        for i, value in enumerate(data):
            yield from _leaves(value, f"{path}[{i}]")
    else:
        yield path, data


def _shown(value: object) -> str:
    return "none" if value is None else repr(value)
