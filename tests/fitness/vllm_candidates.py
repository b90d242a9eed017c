"""Merges scored by one vLLM engine, in a process of its own: `python -m tests.fitness.vllm_candidates JSON`.

Writes JSON to a file: for each recipe what the engine answered, item by item, or why it could not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from evolve.merged_weights import MergedWeights, MergeSettings
from fitness.backend import Backend
from fitness.requests import Request
from fitness.suite import SuiteSpec, TaskSpec
from fitness.suite_tasks import SuiteTasks
from fitness.vllm_backend import VllmBackend
from fitness.vllm_settings import VllmSettings

MERGING = MergeSettings(seed=0, device="cpu", allow_crimes=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """``items``: each task's outcomes. ``answers``: to each of ``requests`` a text, or a log-probability and
    whether it is the greedy answer.
    """

    items: list[list[Any]]
    answers: list[Any]
    requests: list[Request]


def demo_suite(demo: Path, limit: int) -> SuiteSpec:
    """The demo's three skills, ``limit`` items of each."""
    named = (("demo_arithmetic", "exact_match"), ("demo_text", "exact_match"), ("demo_choice", "acc"))
    tasks = tuple(TaskSpec(name=name, metric=f"{metric},none") for name, metric in named)
    return SuiteSpec(tasks=tasks, limit=limit, search_paths=(str(demo / "tasks"),))


def scores(backend: Backend, recipe: dict[str, Any]) -> Scores:
    """What a backend of either kind says to a merge."""
    with mock.patch.object(SuiteTasks, "report", autospec=True, side_effect=SuiteTasks.report) as report:
        backend.load(MergedWeights(settings=MERGING, recipe=recipe))
        items = [list(task.items) for task in backend.score("search").tasks]
    tasks, split, responses = report.call_args.args
    answers = [answer if isinstance(answer, str) else list(astuple(answer)) for answer in responses]
    return Scores(items=items, answers=answers, requests=tasks.requests(split))


def main(
    out: str, demo: str, limit: int, dtype: str, tensor_parallel_size: int, recipes: Sequence[dict[str, Any]]
) -> None:
    settings = VllmSettings(max_num_seqs=64, tensor_parallel_size=tensor_parallel_size)
    backend = VllmBackend(Path(demo) / "base", demo_suite(Path(demo), limit), settings, dtype=dtype)
    found: list[Any] = []
    for recipe in recipes:
        try:
            result = scores(backend, recipe)
            found.append({"items": result.items, "answers": result.answers})
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
