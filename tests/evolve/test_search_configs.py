"""The ready search files: each is read and explained, and runs for a few candidates on tiny models."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
import yaml

from evolve.evaluator import WorkerContext
from evolve.evaluator_spec import EvaluatorSpec
from evolve.explain import explain
from evolve.initial import place_initial, read_initial
from evolve.journal import Journal, read_journal
from evolve.layouts import layouts_of
from evolve.options import SearchOptions
from evolve.outcome import Scored
from evolve.preflight import inspect
from evolve.search import SearchSettings, new_run, run_search
from genome.stages import read_stages
from merge_engine.spec import recipe_data
from tests.evolve import tiny
from tests.fault.inline_fleet import InlineFleet

ROOT = Path(__file__).parents[2]
CONFIGS = sorted([*(ROOT / "configs" / "search").glob("*.yml"), *(ROOT / "configs" / "demo").glob("*.yml")])
MODELS = ("base", "arithmetic", "text", "choice")
CONTEXT = WorkerContext(name="worker-0", threads=1, device="cpu", memory_share=0.5, logs=None)

every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the configs' relative paths lead to tiny models and tasks."""
    import torch

    folder = tmp_path_factory.mktemp("configs")
    torch.manual_seed(0)
    for name in MODELS:
        tiny.write_model(folder / ".cache" / "demo" / name, layers=6)
    tasks = folder / ".cache" / "demo" / "tasks"
    tiny.write_tasks(tasks, items=6)
    for task in ("demo_arithmetic", "demo_text", "demo_choice"):
        like = "tiny_choice" if task == "demo_choice" else "tiny_answer"
        for name in (task, f"{task}_heldout"):
            text = (tasks / f"{like}.yaml").read_text(encoding="utf-8")
            (tasks / f"{name}.yaml").write_text(text.replace(f"task: {like}", f"task: {name}"))
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


def options(config: Path, folder: Path) -> SearchOptions:
    return SearchOptions(
        search_file=config, storage_path=folder / "run", task_search_paths=(".cache/demo/tasks",)
    )


@every_config
def test_a_config_says_how_to_run_it_and_what_it_costs(config: Path) -> None:
    text = config.read_text(encoding="utf-8")
    opening = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    assert f"mergekit-evolve {config.relative_to(ROOT)} --storage-path " in opening
    assert re.search(r"# Cost: .*\d", opening), "the opening comment does not say what the search costs"


@every_config
def test_a_config_is_read_and_explained(config: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert re.search(r"\d+ dimensions: ", explain(config))


@pytest.mark.slow
@every_config
def test_a_config_runs(config: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    stages = read_stages(yaml.safe_load(config.read_text(encoding="utf-8")))
    text = None if not stages else json.dumps(stages[0].data)
    ready = inspect(options(config, tmp_path), text)
    evaluator = EvaluatorSpec(
        model=ready.pattern,
        suite=ready.suite,
        dtype=ready.dtype,
        seed=0,
        probe=recipe_data(ready.space.decode(ready.space.start)),
        batch_size=8,
        layouts=layouts_of(ready),
    )(CONTEXT)
    evaluator.prepare()
    count = len(ready.space.baselines()) + 6
    settings = SearchSettings(seed=0, popsize=4, max_fevals=count)
    path = tmp_path / "journal.jsonl"
    run = new_run(ready.space, settings, batch_size=8, inputs={}, started_at="now")
    with contextlib.closing(Journal.create(path, run)) as journal:
        run_search(ready.space, settings, InlineFleet(evaluator), journal, initial=ready.initial)
    candidates = read_journal(path).candidates
    assert len(candidates) >= count
    assert [record for record in candidates if not isinstance(record.outcome, Scored)] == []


def test_the_warm_start_is_a_point_of_its_space(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    config = ROOT / "configs" / "search" / "warm_start.yml"
    ready = inspect(
        SearchOptions(
            search_file=config, storage_path=place / "run", task_search_paths=(".cache/demo/tasks",)
        )
    )
    recipes = read_initial(ready.search_file.initial, ready.headers, [])
    (placed,) = place_initial(recipes, ready.space)
    assert placed.vector is not None
    assert placed.vector.tolist() == [0.6] * 9
