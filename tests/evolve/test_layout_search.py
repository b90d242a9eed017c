"""Paths through layers, scored in memory: the same items as from disk; and one whole small search of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evolve.evaluator import WorkerContext
from evolve.evaluator_spec import EvaluatorSpec
from evolve.journal import read_journal
from evolve.layouts import Layouts
from evolve.ledger import choose_winner
from evolve.merge_evaluator import MergeEvaluator
from evolve.outcome import Failed, Scored
from evolve.search_models import model_facts
from fitness.results import Report
from fitness.suite import SuiteSpec, TaskSpec
from genome import RefusedRecipe
from genome.slice_layout import LayoutSpec
from genome.slice_layout_space import LayoutSpace
from merge_engine.checkpoint_header import open_header
from merge_engine.engine import Engine
from merge_engine.folder import write_model
from merge_engine.spec import parse_recipe, recipe_data
from tests.evolve import tiny
from tests.evolve.test_run_end_to_end import driver

_CONTEXT = WorkerContext(name="worker-0", threads=1, device="cpu", memory_share=0.5, logs=None)
TASKS = (TaskSpec(name="tiny_choice"), TaskSpec(name="tiny_answer", metric="exact_match,none"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    tiny.write_models(folder)
    tiny.write_tasks(folder / "tasks")
    return folder


@pytest.fixture(scope="module")
def space(folder: Path) -> LayoutSpace:
    models = tuple(str(folder / name) for name in ("left", "right"))
    facts = {model: model_facts(open_header(Path(model))) for model in models}
    return LayoutSpace(LayoutSpec(models=models, repeats=2, scale_bounds=(-1.5, 1.5)), facts)


@pytest.fixture(scope="module")
def evaluator(folder: Path, space: LayoutSpace) -> MergeEvaluator:
    made = EvaluatorSpec(
        model=space.models[0],
        suite=SuiteSpec(tasks=TASKS, search_paths=(str(folder / "tasks"),)),
        dtype="bfloat16",
        seed=0,
        probe=recipe_data(space.decode(space.start)),
        batch_size=16,
        layouts=Layouts(most_layers=space.most_layers, models=space.models),
    )(_CONTEXT)
    made.prepare()
    return made


def report(evaluator: MergeEvaluator, recipe: dict[str, Any]) -> Report:
    outcome = evaluator.evaluate(recipe, "search").outcome
    assert isinstance(outcome, Scored), outcome
    return outcome.report


def whole(folder: Path) -> dict[str, Any]:
    return {"merge_method": "passthrough", "models": [{"model": str(folder)}]}


def candidates(space: LayoutSpace, count: int) -> list[dict[str, Any]]:
    """Random paths with random scales."""
    generator = np.random.default_rng(0)
    found: list[dict[str, Any]] = []
    while len(found) < count:
        try:
            found.append(dict(recipe_data(space.decode(generator.uniform(space.lower, space.upper)))))
        except RefusedRecipe:
            continue
    return found


def test_candidates_score_as_their_exported_models(
    evaluator: MergeEvaluator, space: LayoutSpace, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    for number, recipe in enumerate(candidates(space, 3)):
        in_memory = report(evaluator, recipe)
        out = tmp_path / str(number)
        write_model(Engine(), parse_recipe(recipe), out)
        assert report(evaluator, whole(out)) == in_memory  # the same worker, as a search checks its export
        weights = dict(evaluator._backend._model._model.state_dict())
        loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16)
        assert loaded.config.num_hidden_layers == len(evaluator._backend._model._model.model.layers)
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(weights[name], tensor)


def test_a_candidate_does_not_depend_on_those_before_it(
    evaluator: MergeEvaluator, space: LayoutSpace
) -> None:
    first, second, third = candidates(space, 3)
    one = report(evaluator, first)
    report(evaluator, second)
    evaluator.evaluate({"merge_method": "magic"}, "search")
    report(evaluator, third)
    assert report(evaluator, first) == one


def test_sources_are_held_once_whatever_the_path(evaluator: MergeEvaluator, space: LayoutSpace) -> None:
    """A path through one layer again and again has the tensors of that layer, not copies of them."""
    layer = {"model": space.models[1], "layer_range": [1, 2]}
    end = {"model": space.models[0], "layer_range": [3, 4]}
    recipe = {
        "merge_method": "passthrough",
        "slices": [{"sources": [source]} for source in (layer, layer, layer, end)],
        "dtype": "bfloat16",
    }
    report(evaluator, recipe)
    layers = evaluator._backend._model._model.model.layers
    assert len({layers[i].mlp.up_proj.weight.data_ptr() for i in range(3)}) == 1


def test_other_merges_of_any_depth_are_scored_too(evaluator: MergeEvaluator, folder: Path) -> None:
    """As a template's choice over lists of slices has them."""

    def piece(start: int, end: int) -> dict[str, Any]:
        return {
            "sources": [
                {"model": str(folder / name), "layer_range": [start, end], "parameters": {"weight": 0.5}}
                for name in ("left", "right")
            ]
        }

    recipe = {"merge_method": "linear", "slices": [piece(0, 3), piece(1, 4)], "dtype": "bfloat16"}
    report(evaluator, recipe)
    assert len(evaluator._backend._model._model.model.layers) == 6


def test_a_layer_that_does_not_exist_is_a_failed_candidate(
    evaluator: MergeEvaluator, space: LayoutSpace, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": space.models[0], "layer_range": [3, 6]}]}],
    }
    outcome = evaluator.evaluate(recipe, "search").outcome
    assert isinstance(outcome, Failed)
    assert outcome.stage == "merge"
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.slow
def test_a_whole_search_exports_a_standard_model(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    (tmp_path / "tasks").symlink_to(folder / "tasks")
    text = tiny.search_text(folder, candidates=14, extra="optimizer: {popsize: 5}")
    tasks = text[text.index("tasks:") :]
    layout = f"layout:\n  models: [{folder / 'left'}, {folder / 'right'}]\n  repeats: 2\n  max_layers: 7\n"
    (tmp_path / "search.yml").write_text(layout + tasks)
    with driver(tmp_path, "log") as process:
        status = process.wait(timeout=240)
    said = (tmp_path / "log").read_text()
    assert status == 0, said
    assert "WARNING" not in said  # the exported model scores item by item as the search saw it
    found = read_journal(tmp_path / "run" / "journal.jsonl").candidates
    assert {record.origin for record in found} >= {f"baseline:source:{folder / 'left'}", "sample", "mean"}
    assert all(isinstance(record.outcome, Scored) for record in found)
    winner = choose_winner(found)
    assert winner is not None
    ranges = [piece["sources"][0]["layer_range"] for piece in winner.recipe.get("slices", [])]
    depth = sum(end - start for start, end in ranges) or 4  # a source as it is
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final_model")
    assert model.config.num_hidden_layers == len(model.model.layers) == depth
