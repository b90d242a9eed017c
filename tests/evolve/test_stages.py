"""Searches in stages: looked at as a whole, run one after another, killed and resumed; what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from evolve.cli import main
from evolve.errors import PreflightError
from evolve.frozen_input import kept_searches
from evolve.journal import canonical, read_journal
from evolve.ledger import choose_winner
from evolve.options import SearchOptions
from evolve.report.write import write_report
from evolve.run import run
from evolve.stage_paths import current_stage, stage_states, winners_before_last
from evolve.status import lines, read_status
from evolve.storage import StoragePath
from tests.evolve import tiny
from tests.evolve.made import view, written

ROOT = Path(__file__).parents[2]
TENSORS = "model.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    tiny.write_models(folder / "models")
    tiny.write_model(folder / "models" / "wider", hidden=32)
    tiny.write_tasks(folder / "tasks")
    return folder


def search_file(place: Path, candidates: tuple[int, int] = (8, 8)) -> dict[str, Any]:
    """A merge of two models, then a linear merge of the winner and one of them."""
    models = {name: str(place / "models" / name) for name in ("base", "left", "right")}
    first = {
        "models": [models["left"], models["right"]],
        "merge_method": "task_arithmetic",
        "base_model": models["base"],
        "layer_granularity": 2,
    }
    second = {"models": ["winner:first", models["right"]], "merge_method": "linear"}
    return {
        "tasks": ["tiny_choice"],
        "holdout": 0.5,
        "stages": [
            {"name": "first", "genome": first, "budget": {"candidates": candidates[0]}},
            {"name": "second", "genome": second, "budget": {"candidates": candidates[1]}},
        ],
    }


@pytest.fixture
def refused(place: Path, tmp_path: Path) -> Callable[..., str]:
    """The message for the search file after an edit; whatever happens, nothing new is on disk."""

    def run_it(edit: Callable[[dict[str, Any]], object] = lambda data: None, **options: object) -> str:
        data = search_file(place)
        edit(data)
        path = tmp_path / "search.yml"
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        given = SearchOptions(
            search_file=path,
            storage_path=tmp_path / "run",
            task_search_paths=(str(place / "tasks"),),
            view="quiet",
            **options,  # type: ignore[arg-type]
        )
        with pytest.raises(PreflightError) as caught:
            run(given)
        assert sorted(tmp_path.iterdir()) == [path]
        return str(caught.value)

    return run_it


def test_a_winner_of_no_earlier_stage(refused: Callable[..., str]) -> None:
    message = refused(lambda data: data["stages"].reverse())
    assert "stages[0].genome.models[0]: winner:first: 'first' does not come before 'second'" in message


def test_problems_of_all_stages_at_once_each_in_its_place(refused: Callable[..., str], place: Path) -> None:
    def edit(data: dict[str, Any]) -> None:
        data["tasks"] = ["tiny_chioce"]
        data["stages"][0]["optimizer"] = {"popsize": 2}
        data["stages"].append(
            {"name": "third", "genome": {"models": [str(place / "no"), "winner:first"], "merge_method": "x"}}
        )
        data["stages"].append({"name": "last", "genome": {"models": [str(place / "nor")]}})

    message = refused(edit)
    assert message.count("tasks[0]: 'tiny_chioce'") == 1, "shared keys are told of once"
    assert "stages[0].optimizer.popsize: 2 is out of range" in message
    assert "stages[3].genome.models[0]: " in message


def test_later_stages_are_looked_at_with_what_the_winner_will_be_like(
    refused: Callable[..., str], place: Path
) -> None:
    def edit(data: dict[str, Any]) -> None:
        data["stages"][1]["genome"]["models"][1] = str(place / "models" / "wider")

    message = refused(edit)
    assert "stages[1].genome.models: model.embed_tokens.weight: shapes differ: winner:first has" in message
    assert "stages[0]" not in message


def test_a_stage_after_a_layout_is_looked_at_as_far_as_may_be(
    refused: Callable[..., str], place: Path
) -> None:
    def edit(data: dict[str, Any]) -> None:
        del data["stages"][0]["genome"]
        data["stages"][0]["layout"] = {"models": [str(place / "models" / "left")]}
        data["stages"][1]["tasks"] = ["tiny_chioce"]

    assert "stages[1].tasks[0]: 'tiny_chioce'" in refused(edit)


@pytest.mark.parametrize(
    ("option", "name"), [({"max_fevals": 9}, "--max-fevals"), ({"timeout_s": 9.0}, "--timeout")]
)
def test_budgets_belong_to_the_stages(
    refused: Callable[..., str], option: dict[str, object], name: str
) -> None:
    assert f"{name}: the search file has stages" in refused(**option)


def storage_with_stages(folder: Path, *, begun: int) -> StoragePath:
    """The storage path of three stages, the first ``begun`` of which have a journal of forty candidates."""
    storage = written(folder, view(40))
    storage.journal.unlink()
    stage = {"genome": {"models": ["a", "b"], "merge_method": "linear"}, "tasks": ["t"]}
    names = ("one", "two", "three")
    stages = [{"name": name, **stage, "budget": {"candidates": 80}} for name in names]
    storage.search_file.write_text(json.dumps({"stages": stages}), encoding="utf-8")
    for name in names[:begun]:
        written(folder if name == names[-1] else storage.stage(name).folder, view(40))
        storage.search_file.write_text(json.dumps({"stages": stages}), encoding="utf-8")
    return storage


@pytest.mark.parametrize(("begun", "current"), [(1, "one"), (2, "two"), (3, "three")])
def test_status_and_report_show_the_stages_and_the_one_that_is_under_way(
    tmp_path: Path, begun: int, current: str
) -> None:
    storage = storage_with_stages(tmp_path / "run", begun=begun)
    assert current_stage(stage_states(storage)).name == current
    said = lines(read_status(storage.folder))
    done = "40 of 80 candidates done, best 2.3000 (candidate 39)"
    expected = [f"stage {name}: {done}" for name in ("one", "two", "three")[:begun]]
    expected += [f"stage {name}: not begun" for name in ("one", "two", "three")[begun:]]
    assert said[:3] == expected
    assert said[3].startswith("not running; 40 of 80 candidates done")
    page = write_report(storage).read_text(encoding="utf-8")
    table = page[page.index("<h2>Stages</h2>") :]
    assert '<a href="stages/one/report.html">one</a>' in table
    assert re.search(rf"\b{current}(</a>)? \(below\)", table)
    assert len(winners_before_last(storage)) == min(begun, 2)


def test_the_kept_file_is_parsed_again_stage_by_stage(tmp_path: Path) -> None:
    storage = storage_with_stages(tmp_path / "run", begun=1)
    assert list(kept_searches(storage)) == ["one", "two", "three"]
    storage.search_file.write_text("nonsense: [", encoding="utf-8")
    assert kept_searches(storage) == {}


def driver(place: Path, folder: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from evolve.cli.search import main; main()", "search.yml", "--quiet"]
    command += ["--storage-path", folder, "--task-search-path", "tasks", "--num-workers", "1"]
    command += ["--batch-size", "16"]  # what fits depends on what else the machine is doing
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return said


def kill_after(place: Path, folder: str, journal: Path, candidates: int) -> None:
    """A driver that is killed once so many candidates are in a stage's journal."""
    process = driver(place, folder)
    while not journal.exists() or len(read_journal(journal).candidates) < candidates:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.kill()
    process.communicate()


def content(storage: StoragePath, names: tuple[str, ...]) -> list[list[str]]:
    """What each stage's journal holds, wherever the storage path is."""
    found = []
    for path in [*(storage.stage(name) for name in names), storage]:
        held = read_journal(path.journal)
        records = map(json.dumps, canonical([held.run, *held.candidates, *held.holdout]))
        found.append(sorted(line.replace(str(storage.folder.resolve()), "") for line in records))
    return found


@pytest.mark.slow
def test_killed_in_each_stage_and_moved_the_search_ends_as_if_nothing_had_happened(place: Path) -> None:
    data = search_file(place, candidates=(60, 60))
    (place / "search.yml").write_text(yaml.safe_dump(data), encoding="utf-8")
    straight, killed = StoragePath(place / "straight"), StoragePath(place / "killed")
    finish(driver(place, "straight"))
    kill_after(place, "killed", killed.stage("first").journal, 20)
    kill_after(place, "killed", killed.journal, 10)
    first = killed.stage("first").journal.read_bytes()
    assert len(read_journal(killed.journal).candidates) < 60, "the kill was meant to come in the middle"
    before_names = Path(shutil.copytree(killed.folder, place / "before-names"))
    killed = StoragePath(killed.folder.rename(place / "moved"))
    finish(driver(place, "moved"))
    assert killed.stage("first").journal.read_bytes() == first, "a closed stage is left alone"
    assert content(killed, ("first",)) == content(straight, ("first",))
    assert (killed.final_model / TENSORS).read_bytes() == (straight.final_model / TENSORS).read_bytes()
    check_old_journal(place, StoragePath(before_names), straight)
    check_results(place, straight)


def check_old_journal(place: Path, storage: StoragePath, straight: StoragePath) -> None:
    """A journal that names a winner by the folder where it lay, wherever that was, goes on with that name."""
    folder = "/then/run/stages/first/final_model"
    text = storage.journal.read_text(encoding="utf-8")
    assert "winner:first" in text
    storage.journal.write_text(text.replace("winner:first", folder), encoding="utf-8")
    finish(driver(place, storage.folder.name))
    held = content(storage, ("first",))
    found = [sorted(line.replace(folder, "winner:first") for line in lines) for lines in held]
    assert found == content(straight, ("first",))
    ours, theirs = (path.best_config.read_text(encoding="utf-8") for path in (storage, straight))
    assert ours.partition("\n")[2] == theirs.partition("\n")[2], "all but the candidate's name"


def check_results(place: Path, storage: StoragePath) -> None:
    """Files at the top, a recipe of the original models, a first stage that is closed."""
    names = {path.name for path in storage.folder.iterdir()}
    assert {"search.yml", "journal.jsonl", "best_config.yaml", "final_model", "report.html"} <= names
    winner = choose_winner(read_journal(storage.stage("first").journal).candidates)
    assert [found.recipe for found in winners_before_last(storage)] == [winner.recipe if winner else None]
    text = storage.best_config.read_text(encoding="utf-8")
    assert str(storage.folder) not in text
    for command in (["merge", str(storage.best_config)], ["export", str(storage.folder)]):
        out = place / command[0]
        result = CliRunner().invoke(main, [*command, str(out)])
        assert result.exit_code == 0, result.output
        assert (out / TENSORS).read_bytes() == (storage.final_model / TENSORS).read_bytes()
    data = search_file(place, candidates=(61, 60))
    (place / "search.yml").write_text(yaml.safe_dump(data), encoding="utf-8")
    process = driver(place, storage.folder.name)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "stage first: budget.candidates: 60 -> 61" in said
