"""Benchmark test sets are no objective."""

from __future__ import annotations

import pytest

from genome import benchmark_problems, parse_search_file
from merge_engine.spec import dump_yaml


def problems(tasks: list[str], holdout: list[str] | None = None) -> list[str]:
    data = {"genome": {"models": ["a", "b"], "merge_method": "linear"}, "tasks": tasks}
    if holdout is not None:
        data["holdout"] = {"tasks": holdout}
    return [str(problem) for problem in benchmark_problems(parse_search_file(dump_yaml(data)))]


@pytest.mark.parametrize(
    "task", ["mmlu_anatomy", "gsm8k", "arc_easy", "leaderboard_bbh", "piqa", "hellaswag"]
)
def test_a_test_set_is_named_with_what_to_do(task: str) -> None:
    (message,) = problems(["my_task", task])
    assert message.startswith(f"tasks[1].name: '{task}' is a benchmark's test set")
    assert "--i-understand-the-depths-of-the-evils-i-am-unleashing" in message


@pytest.mark.parametrize("task", ["mmlu_train", "arc", "my_mmlu", "mgsm_ja"])
def test_training_items_and_other_names_are_fine(task: str) -> None:
    assert problems([task]) == []


def test_a_benchmark_may_be_held_out() -> None:
    assert problems(["my_task"], holdout=["gsm8k"]) == []
