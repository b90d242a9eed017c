"""Merges scored by one vLLM engine, in a process of its own: `python -m tests.fitness.vllm_candidates JSON`.

Writes JSON to a file: for each candidate what the engine answered, item by item, or why it could not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from evolve.merged_weights import MergedWeights, MergeSettings, SharedWeights
from fitness.backend import Backend
from fitness.requests import Request
from fitness.suite import SuiteSpec, TaskSpec
from fitness.suite_tasks import SuiteTasks
from fitness.vllm_backend import VllmBackend
from fitness.vllm_settings import VllmSettings

if TYPE_CHECKING:
    from torch import Tensor

TORN = "model.norm.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class TornWeights(SharedWeights):
    """The worker that has to merge `TORN` cannot."""

    def made(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in SharedWeights.made(self, names):
            if name == TORN:
                raise RuntimeError(f"{name} broke")
            yield name, tensor


WEIGHTS = {"each": MergedWeights, "shared": SharedWeights, "torn": TornWeights}


def merged(recipe: dict[str, Any], *, how: str = "each") -> MergedWeights:
    """A merge; ``how``, of `WEIGHTS`: what several workers of an engine do with it."""
    settings = MergeSettings(seed=0, device="cpu", allow_crimes=False)
    return WEIGHTS[how](settings=settings, recipe=recipe)


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


def scores(backend: Backend, weights: MergedWeights) -> Scores:
    """What a backend of either kind says to a merge."""
    with mock.patch.object(SuiteTasks, "report", autospec=True, side_effect=SuiteTasks.report) as report:
        backend.load(weights)
        items = [list(task.items) for task in backend.score("search").tasks]
    tasks, split, responses = report.call_args.args
    answers = [answer if isinstance(answer, str) else list(astuple(answer)) for answer in responses]
    return Scores(items=items, answers=answers, requests=tasks.requests(split))


def main(
    out: str,
    demo: str,
    limit: int,
    dtype: str,
    tensor_parallel_size: int,
    candidates: Sequence[tuple[str, dict[str, Any]]],
) -> None:
    settings = VllmSettings(max_num_seqs=64, tensor_parallel_size=tensor_parallel_size)
    backend = VllmBackend(Path(demo) / "base", demo_suite(Path(demo), limit), settings, dtype=dtype)
    found: list[Any] = []
    for how, recipe in candidates:
        try:
            result = scores(backend, merged(recipe, how=how))
            found.append({"items": result.items, "answers": result.answers})
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
