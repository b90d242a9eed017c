"""Candidates merged to the disk: scored as in memory, removed whatever happens, and more kinds of models."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evolve import scratch
from evolve.disk_evaluator import DiskEvaluator
from evolve.errors import ScratchError
from evolve.evaluator import WorkerContext
from evolve.evaluator_spec import DiskSettings, EvaluatorSpec
from evolve.layouts import Layouts
from evolve.merge_evaluator import MergeEvaluator
from evolve.outcome import Failed, Scored
from fitness.errors import ModelError
from fitness.results import Report
from fitness.suite import SuiteSpec, TaskSpec
from tests.evolve.test_merge_evaluator import linear
from tests.evolve.tiny import write_models, write_tasks

ATTENTION = {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}

_CONTEXT = WorkerContext(name="worker-0", threads=1, device="cpu", memory_share=0.5, logs=None)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    write_tasks(folder / "tasks")
    return folder


def suite(models: Path) -> SuiteSpec:
    tasks = (TaskSpec(name="tiny_choice"), TaskSpec(name="tiny_answer", metric="exact_match,none"))
    return SuiteSpec(tasks=tasks, holdout=0.25, search_paths=(str(models / "tasks"),))


def spec(models: Path, scratch_folder: Path | None, **changes: Any) -> EvaluatorSpec:
    made = EvaluatorSpec(
        model=str(models / "left"),
        suite=suite(models),
        dtype="bfloat16",
        seed=0,
        probe=linear(models, 0.5, 0.5),
        batch_size=16,
        disk=None if scratch_folder is None else DiskSettings(scratch=scratch_folder, owner="here"),
    )
    return replace(made, **changes)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def on_disk(models: Path, place: Path) -> Iterator[DiskEvaluator]:
    evaluator = spec(models, place)(_CONTEXT)
    assert isinstance(evaluator, DiskEvaluator)
    facts = evaluator.prepare()
    assert (facts.device, facts.search_items, facts.batch_size) == ("cpu", 36, 16)
    assert facts.probe_s > 0
    assert facts.memory_bytes > 10_000_000
    yield evaluator
    evaluator.close()
    assert list(place.iterdir()) == []


@pytest.fixture(scope="module")
def resident(models: Path) -> MergeEvaluator:
    evaluator = spec(models, None)(_CONTEXT)
    assert isinstance(evaluator, MergeEvaluator)
    evaluator.prepare()
    return evaluator


def held(place: Path) -> list[str]:
    (folder,) = place.iterdir()
    return [entry.name for entry in folder.iterdir()]


def report(
    evaluator: DiskEvaluator | MergeEvaluator, recipe: dict[str, Any], split: Any = "search"
) -> Report:
    outcome = evaluator.evaluate(recipe, split).outcome
    assert isinstance(outcome, Scored), outcome
    return outcome.report


@pytest.mark.parametrize("split", ["search", "holdout"])
def test_a_candidate_scores_on_disk_as_in_memory_item_by_item(
    on_disk: DiskEvaluator, resident: MergeEvaluator, models: Path, split: Any
) -> None:
    reports = []
    for weight in (0.0, 0.5, 1.0):
        recipe = linear(models, weight, 1 - weight)
        reports.append(report(on_disk, recipe, split))
        assert reports[-1] == report(resident, recipe, split)
    assert reports[0] != reports[2]


def test_nothing_stays_of_a_candidate_and_its_seconds_are_told(
    on_disk: DiskEvaluator, models: Path, place: Path
) -> None:
    evaluation = on_disk.evaluate(linear(models, 0.3, 0.7), "search")
    assert isinstance(evaluation.outcome, Scored)
    assert evaluation.merge_s > 0
    assert 0 < evaluation.forward_s < evaluation.score_s
    assert held(place) == ["mergevolve.lock"]


@pytest.mark.parametrize(
    ("spoil", "stage", "reason"),
    [
        (lambda recipe: recipe | {"merge_method": "magic"}, "merge", "RecipeError: .*magic"),
        (
            lambda recipe: recipe | {"models": [{"model": "/nowhere", "parameters": {"weight": 1.0}}]},
            "merge",
            "PlanError: .*/nowhere: no such folder",
        ),
        (lambda recipe: recipe | {"parameters": {"normalize": False}}, "score", "ScoringError: .*NaN"),
    ],
)
def test_a_candidate_that_fails_leaves_nothing_and_the_worker_lives(
    on_disk: DiskEvaluator,
    models: Path,
    place: Path,
    spoil: Callable[[dict[str, Any]], dict[str, Any]],
    stage: str,
    reason: str,
) -> None:
    evaluation = on_disk.evaluate(spoil(linear(models, 3e38, 3e38)), "search")
    assert isinstance(evaluation.outcome, Failed)
    assert evaluation.outcome.stage == stage
    assert re.match(reason, evaluation.outcome.reason)
    assert "Traceback" in (evaluation.traceback or "")
    assert held(place) == ["mergevolve.lock"]
    assert isinstance(on_disk.evaluate(linear(models, 0.5, 0.5), "search").outcome, Scored)


def test_the_batch_size_that_all_workers_share_is_taken_over(on_disk: DiskEvaluator, models: Path) -> None:
    before = report(on_disk, linear(models, 0.2, 0.8))
    on_disk.set_batch_size(4)
    assert report(on_disk, linear(models, 0.2, 0.8)) == before
    on_disk.set_batch_size(16)


def path(models: Path, *runs: tuple[str, int, int]) -> dict[str, Any]:
    """A model of these models' layers."""
    slices = [
        {"sources": [{"model": str(models / name), "layer_range": [start, end]}]} for name, start, end in runs
    ]
    return {"merge_method": "passthrough", "slices": slices, "dtype": "bfloat16"}


def test_layouts_score_on_disk_as_in_memory(models: Path, tmp_path: Path) -> None:
    layouts = Layouts(most_layers=8, models=(str(models / "left"), str(models / "right")))
    own = path(models, ("left", 0, 4))
    memory = spec(models, None, probe=own, layouts=layouts)(_CONTEXT)
    disk = spec(models, tmp_path, probe=own, layouts=layouts)(_CONTEXT)
    assert isinstance(memory, MergeEvaluator)
    assert isinstance(disk, DiskEvaluator)
    memory.prepare()
    disk.prepare()
    mixed = path(models, ("left", 0, 4), ("right", 1, 4), ("left", 3, 4))
    for recipe in (own, mixed, path(models, ("left", 0, 1))):
        assert report(disk, recipe) == report(memory, recipe)
    disk.close()


def test_layers_of_several_kinds_are_rearranged_on_disk(models: Path, tmp_path: Path) -> None:
    kinds = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    write_pair(tmp_path / "models", "Gemma3TextConfig", **ATTENTION, **kinds)
    own = path(tmp_path / "models", ("left", 0, 2))
    given = {
        "model": str(tmp_path / "models" / "left"),
        "probe": own,
        "layouts": Layouts(most_layers=4, models=()),
    }
    with pytest.raises(ModelError, match=r"layers are of several kinds.* score it with --on-disk$"):
        spec(models, None, **given)(_CONTEXT).prepare()
    evaluator = spec(models, tmp_path / "scratch", **given)(_CONTEXT)
    assert isinstance(evaluator, DiskEvaluator)
    evaluator.prepare()
    report(evaluator, path(tmp_path / "models", ("left", 0, 2), ("right", 1, 2), ("left", 0, 1)))
    evaluator.close()


def write_pair(folder: Path, config: str, **settings: Any) -> None:
    """``left`` and ``right`` of another architecture, with the tiny models' tokenizer."""
    import torch
    import transformers

    from tests.evolve.tiny import WORDS, _tokenizer

    shared = {"vocab_size": len(WORDS) + 3, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    made = getattr(transformers, config)(**shared, hidden_size=16, num_hidden_layers=2, **settings)
    for seed, name in enumerate(("left", "right")):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(made)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        model.to(torch.bfloat16).save_pretrained(folder / name)
        _tokenizer().save_pretrained(folder / name)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("config", "settings", "refusal"),
    [
        (
            "MixtralConfig",
            ATTENTION | {"num_local_experts": 4},
            r"fused experts.* score it with --on-disk:\n",
        ),
        ("MambaConfig", {"state_size": 4}, r"a running state .*; score it with --on-disk$"),
    ],
)
def test_what_is_refused_in_memory_is_scored_on_disk(
    models: Path, tmp_path: Path, config: str, settings: dict[str, Any], refusal: str
) -> None:
    write_pair(tmp_path / "models", config, **settings)
    probe = linear(tmp_path / "models", 0.5, 0.5)
    model = str(tmp_path / "models" / "left")
    with pytest.raises(ModelError, match=refusal):
        spec(models, None, model=model, probe=probe)(_CONTEXT).prepare()
    evaluator = spec(models, tmp_path / "scratch", model=model, probe=probe)(_CONTEXT)
    assert isinstance(evaluator, DiskEvaluator)
    assert evaluator.prepare().search_items == 36
    left, right = (report(evaluator, linear(tmp_path / "models", *weights)) for weights in ((1, 0), (0, 1)))
    assert left != right
    evaluator.close()


def test_code_of_the_models_own_goes_with_a_candidate(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    code = "from transformers import LlamaForCausalLM\nclass OwnForCausalLM(LlamaForCausalLM): pass\n"
    for name in ("left", "right"):
        folder = tmp_path / "models" / name
        shutil.copytree(models / name, folder)
        config = json.loads((folder / "config.json").read_text())
        config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "modeling_own.py").write_text(code)
    given = {"model": str(tmp_path / "models" / "left"), "probe": linear(tmp_path / "models", 0.5, 0.5)}
    evaluator = spec(models, tmp_path / "scratch", **given, trust_remote_code=True)(_CONTEXT)
    assert isinstance(evaluator, DiskEvaluator)
    assert evaluator.prepare().search_items == 36
    evaluator.close()


def test_quantised_weights_are_scored_from_the_disk(models: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    evaluator = spec(models, None, disk=DiskSettings(scratch=tmp_path, bits=8))(_CONTEXT)
    assert isinstance(evaluator, DiskEvaluator)
    evaluator.prepare()
    recipe = linear(models, 0.3, 0.7)
    assert report(evaluator, recipe) == report(evaluator, recipe)
    evaluator.close()


def test_a_worker_that_cannot_be_prepared_leaves_nothing(models: Path, tmp_path: Path) -> None:
    """bitsandbytes knows no 4-bit layers that are so narrow."""
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ModelError, match=r"does not run with 4-bit weights; leave --load-in-4bit out"):
        spec(models, None, disk=DiskSettings(scratch=tmp_path, bits=4))(_CONTEXT).prepare()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_refused_before_anything_is_written(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 30_000})  # room for one model of 20 kB, not for the two of two workers
    monkeypatch.setattr(scratch.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ScratchError, match=r"2 merged models at a time need 0.00 GB of disk"):
        spec(models, tmp_path)(_CONTEXT).prepare()
    assert list(tmp_path.iterdir()) == []
