"""Task and metric names are checked from YAML text, quickly and without lm-eval."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fitness.suite import SuiteSpec, TaskSpec
from fitness.task_index import check_suite, only_search_paths
from fitness.task_yaml import names_in, read_task


def told(suite: SuiteSpec) -> list[str]:
    return [str(problem) for problem in check_suite(suite)]


def test_good_suites_have_no_problems(make_suite: Callable[..., Any]) -> None:
    suite = make_suite(
        "tiny_pick", ("tiny_pick", "acc_norm,none"), ("tiny_say", "exact_match,whole"), "tiny_all"
    )
    assert told(suite) == []
    assert only_search_paths(suite)


def test_an_unknown_task_gets_close_matches(make_suite: Callable[..., Any]) -> None:
    [problem] = told(make_suite("tiny_pik", "tiny_pick"))
    assert "task 'tiny_pik': no such task" in problem
    assert "did you mean tiny_pick" in problem


def test_an_unknown_metric_gets_the_known_ones(make_suite: Callable[..., Any]) -> None:
    [problem] = told(make_suite("tiny_say"))
    assert "has no metric 'acc,none' (it has exact_match,whole, exact_match,first-letter)" in problem


def test_a_task_cannot_be_searched_and_held_out(make_suite: Callable[..., Any]) -> None:
    [problem] = told(make_suite("tiny_pick", holdout=(TaskSpec(name="tiny_pick"),)))
    assert "both a search task and a held-out task" in problem


def test_a_search_path_must_be_a_folder(tmp_path: Path) -> None:
    suite = SuiteSpec(tasks=(TaskSpec(name="hellaswag"),), search_paths=(str(tmp_path / "none"),))
    [problem] = told(suite)
    assert "task search path is not a folder" in problem


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("gsm8k", "exact_match,strict-match"),
        ("arc_easy", "acc_norm,none"),
        ("mmlu", "acc,none"),
        ("mmlu_stem_tasks", "acc,none"),  # a tag
        ("mmlu_abstract_algebra", "acc,none"),  # quoted keys, included metrics
        ("wikitext", "word_perplexity,none"),
    ],
)
def test_lm_evals_own_names_are_known(name: str, metric: str) -> None:
    suite = SuiteSpec(tasks=(TaskSpec(name=name, metric=metric),))
    assert told(suite) == []
    assert not only_search_paths(suite)


def test_metrics_come_from_includes_and_functions_are_never_run(tmp_path: Path) -> None:
    (tmp_path / "_base_yaml").write_text(
        "output_type: generate_until\nmetric_list:\n  - metric: !function nowhere.f1_of_words\n"
    )
    task = tmp_path / "task.yaml"
    task.write_text("include: _base_yaml\ntask: mine\ndoc_to_text: !function nowhere.text\n")
    text = read_task(task)
    assert (text.name, text.metrics, text.filters) == ("mine", ("f1_of_words",), ("none",))


@pytest.mark.parametrize(
    ("content", "metrics"),
    [
        ("task: t\noutput_type: multiple_choice\n", ("acc", "acc_norm")),
        ("task: t\nprocess_results: !function a.b\nmetric_list: [{metric: x}]\n", None),
        ("task: t\nmetric_list: [{metric: rouge, hf_evaluate: true}]\n", None),
        ("task: t\nclass: !function a.T\n", None),
    ],
)
def test_what_a_task_file_tells_of_its_metrics(
    content: str, metrics: tuple[str, ...] | None, tmp_path: Path
) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(content)
    assert read_task(path).metrics == metrics


def test_a_file_that_includes_itself_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("include: t.yaml\ntask: t\n")
    with pytest.raises(ValueError, match="includes itself"):
        read_task(path)


def test_names_of_every_writing() -> None:
    text = '"task": "quoted"\ngroup: g # remark\ntag:\n  - one\n- two\nmetric_list:\n  - metric: acc\n'
    assert sorted(names_in(text)) == ["g", "one", "quoted", "two"]
    assert list(names_in("tag: [a, 'b']\n")) == ["a", "b"]


def test_a_group_of_lm_evals_tasks_needs_its_index(tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text("group: mine\ntask: [gsm8k]\n")
    assert not only_search_paths(SuiteSpec(tasks=(TaskSpec(name="mine"),), search_paths=(str(tmp_path),)))


def test_the_check_imports_nothing_heavy() -> None:
    code = (
        "import sys, fitness.suite, fitness.task_index, fitness.results, fitness.batching, fitness.splits\n"
        "from fitness.suite import *\n"
        "fitness.task_index.check_suite(SuiteSpec(tasks=(TaskSpec(name='gsm8k'),)))\n"
        "print(sorted({'torch', 'transformers', 'lm_eval', 'datasets', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
