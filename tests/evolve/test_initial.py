"""Warm starts: recipes in files, read before any work, placed in the space where they are points of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from evolve import initial
from evolve.errors import PreflightError
from evolve.export import config_text
from evolve.options import SearchOptions
from evolve.preflight import Ready, inspect
from merge_engine.spec import dump_yaml, recipe_data
from tests.evolve import tiny
from tests.evolve.made import candidate

Check = Callable[..., Ready]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    tiny.write_models(folder / "models")
    tiny.write_model(folder / "models" / "wider", hidden=32)
    tiny.write_tasks(folder / "tasks")
    return folder


@pytest.fixture
def check(place: Path, tmp_path: Path) -> Check:
    """Inspect the tiny search file with these initial recipes, given by file name."""

    def run(**texts: str) -> Ready:
        files = [tmp_path / f"{name}.yml" for name in texts]
        for file, text in zip(files, texts.values(), strict=True):
            file.write_text(text, encoding="utf-8")
        data = yaml.safe_load(tiny.search_text(place / "models"))
        data["initial"] = [str(file) for file in files]
        search_file = tmp_path / "search.yml"
        search_file.write_text(yaml.safe_dump(data), encoding="utf-8")
        options = SearchOptions(
            search_file=search_file,
            storage_path=tmp_path / "run",
            task_search_paths=(str(place / "tasks"),),
        )
        return inspect(options)

    return run


def linear(place: Path, *models: str) -> str:
    entries = [{"model": str(place / "models" / model), "parameters": {"weight": 0.5}} for model in models]
    return dump_yaml({"merge_method": "linear", "models": entries})


def problems(check: Check, **texts: str) -> str:
    with pytest.raises(PreflightError) as refused:
        check(**texts)
    return str(refused.value)


def test_a_winner_of_an_earlier_search_is_a_point_of_the_same_space(check: Check) -> None:
    space = check().space
    vector = 0.5 * (space.start + space.upper)
    text = config_text(replace(candidate(3), recipe=recipe_data(space.decode(vector))), 0)
    ready = check(winner=text)
    assert len(ready.initial) == 1
    assert ready.initial[0].vector is not None
    assert ready.initial[0].vector == pytest.approx(vector)
    assert ready.initial[0].file.endswith("winner.yml")
    assert initial.notes(ready.initial) == []


def test_a_recipe_from_elsewhere_is_taken_with_a_note(check: Check, place: Path) -> None:
    ready = check(other=linear(place, "left", "base"))
    assert ready.initial[0].vector is None
    assert initial.notes(ready.initial) == [
        f"note: {ready.initial[0].file} is not a point of this space: it is scored and reported, but the "
        "search cannot start from it"
    ]


def test_the_digest_follows_the_content_and_not_the_spelling(check: Check, place: Path) -> None:
    one = linear(place, "left", "right")
    first, same, other = check(
        first=one, same=f"# a comment\n{one}", other=linear(place, "right", "left")
    ).initial
    assert first.digest == same.digest != other.digest


def test_a_file_that_is_not_there(check: Check, place: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(tiny.search_text(place / "models"))
    data["initial"] = [str(tmp_path / "nowhere.yml")]
    search_file = tmp_path / "search.yml"
    search_file.write_text(yaml.safe_dump(data), encoding="utf-8")
    options = SearchOptions(
        search_file=search_file, storage_path=tmp_path / "run", task_search_paths=(str(place / "tasks"),)
    )
    with pytest.raises(PreflightError, match=r"initial\[0\]: .*nowhere.yml cannot be read: No such file"):
        inspect(options)


def test_a_file_that_holds_no_recipe(check: Check) -> None:
    message = problems(check, wrong="merge_method: lineal\nmodels: [{model: a}]\n")
    assert "initial[0]: " in message
    assert "wrong.yml: merge_method" in message
    assert "did you mean linear" in message


def test_several_recipes_in_one_file(check: Check, place: Path) -> None:
    text = linear(place, "left", "right")
    assert "several.yml" in problems(check, several=f"{text}---\n{text}")


def test_models_that_are_not_there_or_do_not_fit(check: Check, place: Path) -> None:
    message = problems(
        check,
        gone=linear(place, "left", "gone"),
        wide=linear(place, "left", "wider"),
        fine=linear(place, "left"),
    )
    assert "initial[0]: " in message
    assert "no such folder" in message
    assert "initial[1]: " in message
    assert "initial[2]" not in message
