"""The demo models and their tasks: one recipe gives one result, and no item is both taught and asked."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from demo_models.build import Settings, build  # noqa: E402
from demo_models.tasks import TASKS, Share, Task, draw_items  # noqa: E402

MODELS = ("base", "arithmetic", "text", "choice")
SHORT = Settings(items_per_task=50, batch_size=8, steps_share=0.02, threads=1)
CONFIGS = sorted((ROOT / "configs" / "demo").glob("*.yml"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A demo folder whose models were trained for a few steps only."""
    import torch

    folder = tmp_path_factory.mktemp("demo")
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    assert build(folder, SHORT, jobs=1, say=silent)
    yield folder
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def silent(line: str) -> None:
    """Takes what the training reports."""


def weights(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name / "model.safetensors").read_bytes() for name in MODELS}


def test_the_same_settings_give_the_same_weights(demo: Path, tmp_path: Path) -> None:
    build(tmp_path, SHORT, jobs=1, say=silent)
    assert weights(tmp_path) == weights(demo)


def test_experts_trained_side_by_side_are_the_same(demo: Path, tmp_path: Path) -> None:
    build(tmp_path, SHORT, jobs=2)
    assert weights(tmp_path) == weights(demo)


def test_another_seed_gives_other_weights(demo: Path, tmp_path: Path) -> None:
    build(tmp_path, replace(SHORT, seed=1), jobs=1, say=silent)
    assert all(weights(tmp_path)[name] != weights(demo)[name] for name in MODELS)


def test_a_complete_folder_is_left_as_it_is(demo: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*") if path.is_file()}
    assert not build(demo, SHORT, jobs=1, say=silent)
    assert before == {path: path.stat().st_mtime_ns for path in demo.rglob("*") if path.is_file()}


def test_a_folder_without_its_manifest_is_built_again(demo: Path) -> None:
    before = weights(demo)
    (demo / "manifest.json").unlink()
    (demo / "text" / "model.safetensors").write_bytes(b"half")
    assert build(demo, SHORT, jobs=1, say=silent)
    assert weights(demo) == before


def test_models_and_tokenizers_load_as_any_other(demo: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in MODELS:
        model = AutoModelForCausalLM.from_pretrained(demo / name)
        tokenizer = AutoTokenizer.from_pretrained(demo / name)
        assert tokenizer.is_fast
        assert len(tokenizer) == model.config.vocab_size
        for task in TASKS:
            (item,) = draw_items(task, "search", 1, seed=0)
            assert tokenizer.decode(tokenizer(item.prompt)["input_ids"]) == item.prompt


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_no_item_is_in_two_shares(task: Task) -> None:
    counts: dict[Share, int] = {"training": 20_000, "search": task.search_items, "heldout": 800}
    keys = {
        share: {item.key for item in draw_items(task, share, count, seed=0, repeats=share == "training")}
        for share, count in counts.items()
    }
    for one, other in itertools.combinations(keys.values(), 2):
        assert not one & other


def test_written_items_are_distinct_and_have_one_right_answer(demo: Path) -> None:
    for task in TASKS:
        files = [demo / "tasks" / f"{task.name}{ending}.jsonl" for ending in ("", "_heldout")]
        rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        assert len({row["prompt"] for row in rows}) == len(rows) == task.search_items + 800
        assert all(row["choices"].count(row["answer"]) == bool(row["choices"]) for row in rows)


def test_the_answers_are_right() -> None:
    arithmetic, text, choice = (draw_items(task, "search", 50, seed=3) for task in TASKS)
    for item in arithmetic:
        left, right = item.prompt.replace(" ", "").rstrip("=").split("+")
        assert int(item.answer.replace(" ", "")) == int(left) + int(right)
    for item in text:
        assert item.answer.split() == sorted(item.prompt.split()[1:-1])
    for item in choice:
        assert item.answer in item.choices
        assert list(item.choices) == item.prompt.split()[1:-1]


def test_the_suites_are_scored_from_any_directory(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fitness.suite import SuiteSpec, TaskSpec
    from fitness.task_index import check_suite
    from fitness.transformers_backend import TransformersBackend
    from merge_engine.engine import Engine
    from merge_engine.spec import parse_recipe

    names = [(task.name, "acc" if task.output_type == "multiple_choice" else "exact_match") for task in TASKS]
    suite = SuiteSpec(
        tasks=tuple(TaskSpec(name=name, metric=f"{metric},none") for name, metric in names),
        holdout=tuple(TaskSpec(name=f"{name}_heldout", metric=f"{metric},none") for name, metric in names),
        limit=20,
        search_paths=(str(demo / "tasks"),),
    )
    monkeypatch.chdir(tmp_path)
    assert not check_suite(suite)
    backend = TransformersBackend(demo / "base", suite, dtype="bfloat16")
    recipe = parse_recipe({"merge_method": "passthrough", "models": [{"model": str(demo / "choice")}]})
    backend.load(Engine().stream(recipe, into=backend.tensors()))
    for split in ("search", "holdout"):
        report = backend.score(split)
        assert [len(task.items) for task in report.tasks] == [20, 20, 20]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_every_search_file_of_the_demo_is_read_and_names_what_the_demo_makes(
    config: Path, demo: Path
) -> None:
    from genome import parse_search_file

    text = config.read_text(encoding="utf-8")
    search_file = parse_search_file(text)
    assert set(search_file.genome.model_references()) <= {f".cache/demo/{name}" for name in MODELS}
    declared = {yaml.safe_load(file.read_text())["task"] for file in (demo / "tasks").glob("*.yaml")}
    assert {task.name for task in (*search_file.tasks, *search_file.holdout.tasks)} == declared
    assert f"configs/demo/{config.name} --storage-path" in text
