"""The search file as the storage path keeps it: what a search is fixed to, with every default written out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from evolve.storage import StoragePath, write_atomically
from genome.errors import SearchFileError
from genome.frozen import diff_search_files, frozen_search_file
from genome.parse import parse_search_file
from genome.search_file import Budget, SearchFile
from genome.stages import Stage, read_stages
from merge_engine.errors import RecipeError
from merge_engine.spec import dump_yaml, load_yaml


def keep_search_file(storage: StoragePath, search_file: SearchFile, max_fevals: int) -> None:
    """Keep the input of an ordinary search. What may change between two starts is the budget.

    Raises:
        SearchChangedError: something else has changed.
    """
    _keep(storage, frozen_search_file(_with_budget(search_file, max_fevals)), frozenset())


def keep_stages(
    storage: StoragePath, stages: Mapping[str, tuple[SearchFile, int]], closed: frozenset[str]
) -> None:
    """Keep the input of a search in stages: of each its search file and how many candidates it may score.

    The budget of a stage may change, too, unless it is ``closed``: what comes after it has begun.

    Raises:
        SearchChangedError: something else has changed.
    """
    frozen = [
        {"name": name, **frozen_search_file(_with_budget(search_file, max_fevals))}
        for name, (search_file, max_fevals) in stages.items()
    ]
    _keep(storage, {"stages": frozen}, closed)


def kept_searches(storage: StoragePath) -> dict[str, SearchFile]:
    """The searches in a kept search file by the names of their stages; an ordinary one has the name "".
    Empty where none is kept, or somebody has changed it.
    """
    try:
        return _searches(storage.search_file.read_text(encoding="utf-8"))
    except (OSError, SearchFileError, RecipeError):
        return {}


def kept_stages(storage: StoragePath) -> tuple[Stage, ...]:
    """The stages of a kept search file; none of an ordinary search, and where `kept_searches` has nothing."""
    try:
        return read_stages(load_yaml(storage.search_file.read_text(encoding="utf-8")))
    except (OSError, SearchFileError, RecipeError):
        return ()


def _searches(text: str) -> dict[str, SearchFile]:
    stages = read_stages(load_yaml(text))
    if not stages:
        return {"": parse_search_file(text)}
    return {stage.name: parse_search_file(dump_yaml(stage.data)) for stage in stages}


def _keep(storage: StoragePath, data: Mapping[str, Any], closed: frozenset[str]) -> None:
    kept = dump_yaml(data)
    storage.freeze(kept, lambda old, new: _differences(old, new, closed))
    write_atomically(storage.search_file, kept)


def _with_budget(search_file: SearchFile, max_fevals: int) -> SearchFile:
    return replace(search_file, budget=Budget(candidates=max_fevals, hours=search_file.budget.hours))


def _differences(kept: str, new: str, closed: frozenset[str]) -> list[str]:
    """What differs between two kept search files but for the budgets of searches that may go on."""
    before, now = _searches(kept), _searches(new)
    if list(before) != list(now):
        return [f"stages: {', '.join(before) or 'none'} -> {', '.join(now) or 'none'}"]
    found = []
    for name, search_file in now.items():
        old = before[name]
        old = old if name in closed else replace(old, budget=search_file.budget)
        place = f"stage {name}: " if name else ""
        found += [f"{place}{line}" for line in diff_search_files(old, search_file)]
    return found
