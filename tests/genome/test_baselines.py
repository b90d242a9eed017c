"""What a search has to beat, as recipes and, where the space has them, as points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from genome import Baseline
from merge_engine.spec import METHODS, parse_recipe, recipe_data
from tests.genome.made import every_method_space, space


def baselines(**changes: Any) -> dict[str, Baseline]:
    return {baseline.name: baseline for baseline in space(**changes).baselines()}


def points(**changes: Any) -> dict[str, list[float] | None]:
    found = baselines(**changes)
    return {name: None if one.vector is None else one.vector.tolist() for name, one in found.items()}


def test_names_and_order() -> None:
    assert list(baselines()) == ["source:a", "source:b", "source:c", "base", "uniform", "task_arithmetic"]
    assert list(baselines(merge_method="linear")) == ["source:a", "source:b", "source:c", "uniform"]
    assert list(baselines(merge_method="linear", base_model="b")) == [
        "source:a",
        "source:b",
        "source:c",
        "uniform",
        "task_arithmetic",
    ]


@pytest.mark.parametrize("method", sorted(name for name in METHODS if METHODS[name].parameters))
@pytest.mark.parametrize("granularity", [0, 3])
def test_every_baseline_is_a_valid_recipe_and_its_point_decodes(method: str, granularity: int) -> None:
    built = every_method_space(method, granularity)
    for baseline in built.baselines():
        assert parse_recipe(recipe_data(baseline.recipe)) == baseline.recipe
        if baseline.vector is not None:
            parse_recipe(recipe_data(built.decode(baseline.vector)))


@pytest.mark.parametrize("method", ["breadcrumbs", "della", "sce", "ram"])
def test_methods_that_do_not_give_a_source_back_have_no_point_for_it(method: str) -> None:
    found = every_method_space(method, 0).baselines()
    assert all(one.vector is None for one in found if one.name.startswith("source:"))


def test_a_source_is_that_model_as_it_is() -> None:
    assert recipe_data(baselines()["source:b"].recipe) == {
        "merge_method": "passthrough",
        "models": [{"model": "b"}],
        "dtype": "bfloat16",
    }


def test_the_uniform_merge_is_the_start() -> None:
    built = space(layer_granularity=3)
    uniform = next(baseline for baseline in built.baselines() if baseline.name == "uniform")
    assert uniform.recipe == built.decode(built.start)
    assert uniform.vector is not None
    assert np.array_equal(uniform.vector, built.start)


def test_the_uniform_merge_stays_uniform_outside_the_bounds() -> None:
    uniform = baselines(merge_method="linear", bounds={"weight": [0.5, 1]})["uniform"]
    assert uniform.vector is None
    assert uniform.recipe.models is not None
    assert [entry.parameters for entry in uniform.recipe.models] == [{"weight": 1 / 3}] * 3


def test_task_arithmetic_adds_every_task_vector_whole() -> None:
    assert recipe_data(baselines(models=["a", "b"])["task_arithmetic"].recipe) == {
        "merge_method": "task_arithmetic",
        "base_model": "root",
        "models": [
            {"model": "root"},
            {"model": "a", "parameters": {"weight": 1.0}},
            {"model": "b", "parameters": {"weight": 1.0}},
        ],
        "parameters": {"normalize": False, "lambda": 1.0},
        "dtype": "bfloat16",
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"models": ["a", "b"]},
            {"source:a": [1, 1, 0, 1], "source:b": [0, 1, 1, 1], "base": None, "task_arithmetic": None},
        ),
        (
            {"models": ["a", "b"], "merge_method": "task_arithmetic"},
            {"source:a": [1, 0], "source:b": [0, 1], "base": [0, 0], "task_arithmetic": [1, 1]},
        ),
        (
            {"models": ["a", "b"], "merge_method": "dare_linear", "normalize": True},
            {"source:a": [1, 1, 0, 1], "base": None, "task_arithmetic": None},
        ),
        (
            {"models": ["a", "b"], "merge_method": "task_arithmetic", "bounds": {"weight": [0.1, 0.9]}},
            {"source:a": None, "base": None, "task_arithmetic": None, "uniform": [0.5, 0.5]},
        ),
        (
            {"models": ["a", "b"], "merge_method": "slerp"},
            {"source:a": [0], "source:b": [1], "uniform": [0.5]},
        ),
        (
            {"models": ["a", "b"], "merge_method": "slerp", "base_model": "b"},
            {"source:a": [1], "source:b": [0], "task_arithmetic": None},
        ),
        (
            {"models": ["a", "b"], "merge_method": "slerp", "base_model": "other"},
            {"source:a": [0], "source:b": [1], "base": None},
        ),
        ({"merge_method": "slerp"}, {"source:a": None, "source:c": None, "uniform": None}),
        ({"merge_method": "linear", "base_model": "other"}, {"source:a": [1, 0, 0], "base": None}),
        (
            {"merge_method": "passthrough", "models": ["a"], "bounds": {"scale": [0.5, 2]}},
            {"source:a": [1], "uniform": [1]},
        ),
    ],
)
def test_points_of_the_space(changes: dict[str, Any], expected: dict[str, list[float] | None]) -> None:
    found = points(**changes)
    assert {name: found[name] for name in expected} == expected


def test_points_are_the_same_in_all_layers_and_filters() -> None:
    found = points(models=["a", "b"], merge_method="linear", layer_granularity=3, filters=["mlp"])
    assert found["source:b"] == [0, 1] * 6


def test_the_tokenizer_of_a_baseline_is_that_of_the_search() -> None:
    found = baselines(tokenizer_source="base")
    assert found["source:a"].recipe.tokenizer_source == "root"
    assert found["uniform"].recipe.tokenizer_source == "base"
    assert found["task_arithmetic"].recipe.tokenizer_source == "base"
    assert baselines(tokenizer_source="union")["base"].recipe.tokenizer_source == "union"
