"""Every merge method is searched over every one of its parameters, and plain merging reproduces the best."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from evolve.evaluator import WorkerContext
from evolve.evaluator_spec import EvaluatorSpec
from evolve.journal import Journal, read_journal
from evolve.ledger import choose_winner
from evolve.merge_evaluator import MergeEvaluator
from evolve.outcome import Scored
from evolve.records import BASELINE_PREFIX
from evolve.search import SearchSettings, new_run, run_search
from evolve.search_models import model_facts, named_models, open_models
from fitness.suite import SuiteSpec, TaskSpec
from genome import build_space, parse_search_file
from merge_engine.engine import Engine
from merge_engine.folder import merge_config
from merge_engine.spec import METHODS, dump_yaml, parse_recipe
from tests.evolve.tiny import write_models, write_tasks
from tests.fault.inline_fleet import InlineFleet
from tests.genome.made import every_parameter, method_models

pytestmark = pytest.mark.slow

GENERATIONS, POPSIZE = 3, 4
CONTEXT = WorkerContext(name="worker-0", threads=1, device="cpu", memory_share=0.5, logs=None)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, and the sources ``left`` and ``right``."""
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    write_tasks(folder / "tasks", items=12)
    return folder


@pytest.fixture(scope="module")
def evaluator(models: Path) -> MergeEvaluator:
    suite = SuiteSpec(tasks=(TaskSpec(name="tiny_choice"),), search_paths=(str(models / "tasks"),))
    as_it_is = {"merge_method": "passthrough", "models": [{"model": str(models / "base")}]}
    spec = EvaluatorSpec(
        model=str(models / "base"), suite=suite, dtype="bfloat16", seed=0, probe=as_it_is, batch_size=8
    )
    made = spec(CONTEXT)
    made.prepare()
    return made


def form(name: str, models: Path) -> dict[str, object]:
    """What varies: every parameter in every two layers; the model, where the method has no parameters."""
    method = METHODS[name]
    folders = {"a": str(models / "left"), "b": str(models / "right"), "c": str(models / "base")}
    if not method.parameters:
        choice = {"choose": [folders["a"], folders["b"]]}
        return {
            "template": {
                "merge_method": name,
                "base_model": folders["c"],
                "models": [{"model": folders["c"]}, {"model": choice}],
            }
        }
    genome: dict[str, Any] = {
        "merge_method": name,
        "models": [folders[model] for model in method_models(method)],
        "bounds": every_parameter(method),
        "layer_granularity": 2,
    }
    if method.takes_base and method.max_models != 1:
        genome["models"] = genome["models"][:2]
        genome["base_model"] = folders["c"]
    return {"genome": genome}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_method_is_searched_and_its_best_config_is_merged_again(
    method: str, models: Path, evaluator: MergeEvaluator, tmp_path: Path
) -> None:
    data = {**form(method, models), "tasks": ["tiny_choice"]}
    headers = open_models(named_models(data), [])
    space = build_space(
        parse_search_file(dump_yaml(data)),
        {reference: model_facts(header) for reference, header in headers.items()},
    )
    baselines = len(space.baselines())
    settings = SearchSettings(seed=0, popsize=POPSIZE, max_fevals=baselines + GENERATIONS * POPSIZE + 1)
    run = new_run(space, settings, batch_size=8, inputs={}, started_at="now")
    path = tmp_path / "journal.jsonl"
    with contextlib.closing(Journal.create(path, run)) as journal:
        run_search(space, settings, InlineFleet(evaluator), journal)
    records = read_journal(path).candidates
    assert [record for record in records if not isinstance(record.outcome, Scored)] == []
    best = choose_winner(record for record in records if not record.origin.startswith(BASELINE_PREFIX))
    assert best is not None
    merge_config(dump_yaml(best.recipe), tmp_path / "model")
    merged = {"merge_method": "passthrough", "models": [{"model": str(tmp_path / "model")}]}
    again = evaluator.evaluate({**merged, "dtype": "bfloat16"}, "search").outcome
    assert again == best.outcome
    written = load_file(tmp_path / "model" / "model.safetensors")
    scored = dict(Engine(seed=0).stream(parse_recipe(best.recipe)))
    assert written.keys() == scored.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in scored.items())
