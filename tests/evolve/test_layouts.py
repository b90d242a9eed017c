"""Which searches have candidates that differ in their layers, and what a layout's preflight says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evolve.errors import PreflightError
from evolve.layouts import Layouts, layouts_of
from evolve.options import SearchOptions
from evolve.preflight import Ready, inspect
from merge_engine.spec import dump_yaml
from tests.evolve import tiny


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.write_models(folder)
    tiny.write_model(folder / "deeper", layers=6, vocabulary=30)
    tiny.write_model(folder / "wider", hidden=32)
    tiny.write_tasks(folder / "tasks")
    return folder


@pytest.fixture
def check(models: Path, tmp_path: Path) -> Callable[..., Ready]:
    def run(form: dict[str, Any]) -> Ready:
        path = tmp_path / "search.yml"
        path.write_text(dump_yaml({**form, "tasks": ["tiny_choice"]}), encoding="utf-8")
        tasks = (str(models / "tasks"),)
        return inspect(
            SearchOptions(search_file=path, storage_path=tmp_path / "run", task_search_paths=tasks)
        )

    return run


def named(models: Path, *names: str) -> list[str]:
    return [str(models / name) for name in names]


def sliced(models: Path, *ranges: object) -> dict[str, Any]:
    weight = {"weight": {"search": [0.0, 1.0]}}
    sources = [
        [
            {"model": model, "layer_range": given, "parameters": weight}
            for model in named(models, "left", "right")
        ]
        for given in ranges
    ]
    return {"template": {"merge_method": "linear", "slices": [{"sources": entry} for entry in sources]}}


def test_a_layout_holds_its_models_in_memory(check: Callable[..., Ready], models: Path) -> None:
    names = named(models, "left", "deeper")
    ready = check({"layout": {"models": names, "max_layers": 9}})
    assert layouts_of(ready) == Layouts(most_layers=9, models=tuple(names))
    assert [baseline.name for baseline in ready.space.baselines()] == [
        f"source:{names[0]}"
    ]  # 10 layers in all


def test_a_template_whose_depth_is_searched_holds_none(check: Callable[..., Ready], models: Path) -> None:
    cut = {"search": [1, 3], "step": 1}
    ready = check(sliced(models, [0, 2], [cut, 4]))
    assert layouts_of(ready) == Layouts(most_layers=8, models=())


def test_a_template_deeper_than_its_models_does_too(check: Callable[..., Ready], models: Path) -> None:
    assert layouts_of(check(sliced(models, [0, 3], [1, 4]))) == Layouts(most_layers=8, models=())


def test_other_searches_write_into_one_model(check: Callable[..., Ready], models: Path) -> None:
    assert layouts_of(check(sliced(models, [0, 2], [2, 4]))) is None
    genome = {"merge_method": "linear", "models": named(models, "left", "right"), "layer_granularity": 2}
    assert layouts_of(check({"genome": genome})) is None


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"models": ["left", "wider"]}, r"layout\.models\[1\]: layer 0 of .*wider has .* of shape"),
        ({"models": ["left", "nowhere"]}, r"layout\.models\[1\]: .*nowhere"),
        ({"models": ["left"], "max_layers": 3}, r"layout\.max_layers: 3 is less than the 4 layers"),
    ],
)
def test_a_layout_that_cannot_be_searched_is_refused_before_any_work(
    layout: dict[str, Any], message: str, check: Callable[..., Ready], models: Path
) -> None:
    with pytest.raises(PreflightError, match=message):
        check({"layout": layout | {"models": named(models, *layout["models"])}})
