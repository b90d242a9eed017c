"""The evaluator of merges on tiny real models: outcomes, times, failures as values."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from evolve.evaluator import Facts, WorkerContext
from evolve.evaluator_spec import EvaluatorSpec
from evolve.merge_evaluator import MergeEvaluator
from evolve.outcome import Failed, Scored
from fitness.results import Report
from fitness.suite import SuiteSpec, TaskSpec
from tests.evolve.tiny import write_models, write_tasks

_CONTEXT = WorkerContext(name="worker-0", threads=1, device="cpu", memory_share=0.5, logs=None)


def linear(models: Path, left: float, right: float) -> dict[str, Any]:
    weights = {"left": left, "right": right}
    return {
        "merge_method": "linear",
        "models": [
            {"model": str(models / name), "parameters": {"weight": weight}}
            for name, weight in weights.items()
        ],
        "parameters": {"normalize": False},
        "dtype": "bfloat16",
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    write_tasks(folder / "tasks")
    return folder


@pytest.fixture(scope="module")
def prepared(models: Path) -> tuple[MergeEvaluator, Facts]:
    tasks = (TaskSpec(name="tiny_choice"), TaskSpec(name="tiny_answer", metric="exact_match,none"))
    suite = SuiteSpec(tasks=tasks, holdout=0.25, search_paths=(str(models / "tasks"),))
    spec = EvaluatorSpec(
        model=str(models / "left"),
        suite=suite,
        dtype="bfloat16",
        seed=0,
        probe=linear(models, 0.5, 0.5),
    )
    evaluator = pickle.loads(pickle.dumps(spec))(_CONTEXT)  # as it reaches a worker
    return evaluator, evaluator.prepare()


def test_a_prepared_worker_knows_what_the_preflight_shows(prepared: tuple[MergeEvaluator, Facts]) -> None:
    _, facts = prepared
    assert (facts.device, facts.threads, facts.search_items) == ("cpu", 1, 36)
    assert facts.batch_size >= 1
    assert 0 < facts.probe_s < 60
    assert facts.memory_bytes > 10_000_000


@pytest.mark.parametrize(("split", "items"), [("search", [18, 18]), ("holdout", [6, 6])])
def test_a_recipe_is_merged_and_scored_item_by_item(
    prepared: tuple[MergeEvaluator, Facts], models: Path, split: Any, items: list[int]
) -> None:
    evaluator, _ = prepared
    evaluation = evaluator.evaluate(linear(models, 0.3, 0.7), split)
    assert isinstance(evaluation.outcome, Scored)
    assert [len(task.items) for task in evaluation.outcome.report.tasks] == items
    assert evaluation.merge_s > 0
    assert 0 < evaluation.forward_s < evaluation.score_s


def test_scores_depend_on_the_recipe_and_on_nothing_before_it(
    prepared: tuple[MergeEvaluator, Facts], models: Path
) -> None:
    evaluator, facts = prepared

    def report(recipe: dict[str, Any]) -> Report:
        outcome = evaluator.evaluate(recipe, "search").outcome
        assert isinstance(outcome, Scored)
        return outcome.report

    left = report(linear(models, 1.0, 0.0))
    assert report(linear(models, 0.0, 1.0)) != left
    evaluator.set_batch_size(facts.batch_size // 2)
    assert report(linear(models, 1.0, 0.0)) == left
    evaluator.set_batch_size(facts.batch_size)
    assert report(linear(models, 1.0, 0.0)) == left


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"merge_method": "magic"}, r"RecipeError: .*magic"),
        (
            {"models": [{"model": "/nowhere", "parameters": {"weight": 1.0}}]},
            "PlanError: .*/nowhere: no such folder",
        ),
    ],
)
def test_a_merge_that_cannot_be_is_a_failed_outcome_and_the_worker_lives(
    prepared: tuple[MergeEvaluator, Facts],
    models: Path,
    changes: dict[str, Any],
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    evaluator, _ = prepared
    recipe = linear(models, 0.5, 0.5)
    evaluation = evaluator.evaluate({**recipe, **changes}, "search")
    assert isinstance(evaluation.outcome, Failed)
    assert evaluation.outcome.stage == "merge"
    assert re.match(reason, evaluation.outcome.reason)
    assert "Traceback" in capsys.readouterr().err
    assert isinstance(evaluator.evaluate(recipe, "search").outcome, Scored)


def test_weights_that_make_no_numbers_fail_while_scoring(
    prepared: tuple[MergeEvaluator, Facts], models: Path
) -> None:
    evaluator, _ = prepared
    outcome = evaluator.evaluate(
        linear(models, 3e38, 3e38), "search"
    ).outcome  # the norms' weights are infinite
    assert isinstance(outcome, Failed)
    assert outcome.stage == "score"


def test_models_of_different_vocabularies_score_in_memory_as_on_disk(models: Path, tmp_path: Path) -> None:
    """The resident model has the vocabulary of the result, not that of a source."""
    import json

    from transformers import AutoModelForCausalLM

    from merge_engine.engine import Engine
    from merge_engine.folder import write_model
    from merge_engine.spec.recipe import parse_recipe

    shutil.copytree(models / "right", tmp_path / "right")
    tokenizer = json.loads((tmp_path / "right" / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {**words, "five": words["three"], "three": len(words)}
    (tmp_path / "right" / "tokenizer.json").write_text(json.dumps(tokenizer))
    larger = AutoModelForCausalLM.from_pretrained(tmp_path / "right", dtype="bfloat16")
    larger.resize_token_embeddings(len(words) + 1, mean_resizing=False)
    larger.save_pretrained(tmp_path / "right")

    recipe = linear(models, 0.6, 0.4) | {"tokenizer_source": "union"}
    recipe["models"][1]["model"] = str(tmp_path / "right")
    write_model(Engine(), parse_recipe(recipe), tmp_path / "out")
    alone = {"merge_method": "passthrough", "models": [{"model": str(tmp_path / "out")}], "dtype": "bfloat16"}
    suite = SuiteSpec(
        tasks=(TaskSpec(name="tiny_answer", metric="exact_match,none"), TaskSpec(name="tiny_choice")),
        search_paths=(str(models / "tasks"),),
    )

    def report(model: Path, probe: dict[str, Any]) -> Report:
        spec = EvaluatorSpec(
            model=str(model), suite=suite, dtype="bfloat16", seed=0, probe=probe, batch_size=4
        )
        evaluator = spec(_CONTEXT)
        evaluator.prepare()
        outcome = evaluator.evaluate(probe, "search").outcome
        assert isinstance(outcome, Scored), outcome
        return outcome.report

    assert report(models / "left", recipe) == report(tmp_path / "out", alone)
