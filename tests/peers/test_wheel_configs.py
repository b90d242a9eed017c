"""What a config means, against the mergekit 0.1.5 wheel, by merging models of constants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from merge_engine.engine import Engine
from merge_engine.spec.recipe import parse_recipe
from tests.merge_engine import toy
from tests.peers.test_wheel import our_merge, wheel_merge


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Models ``one``, ``two`` and ``three``, whose every element is that number."""
    folder = tmp_path_factory.mktemp("constants")
    settings = toy.config(hidden=8, vocabulary=8)
    return {
        name: str(
            toy.save(
                folder / name,
                settings,
                {key: torch.full(shape, value).bfloat16() for key, shape in toy.shapes(settings).items()},
            )
        )
        for name, value in (("one", 1.0), ("two", 2.0), ("three", 3.0))
    }


def source(model: str, first: int, end: int, **parameters: Any) -> dict[str, Any]:
    return {"model": model, "layer_range": [first, end], "parameters": parameters}


def entry(model: str, **parameters: Any) -> dict[str, Any]:
    return {"model": model, "parameters": parameters}


MLP = {"filter": "mlp", "value": 3}
UNNORMALISED = {"normalize": False}
CONFIGS: dict[str, dict[str, Any]] = {
    "levels of a module": {
        "parameters": {**UNNORMALISED, "weight": 7},
        "modules": {
            "default": {
                "parameters": {"weight": [{"filter": "self_attn", "value": 5}]},
                "slices": [
                    {
                        "sources": [source("one", 0, 4, weight=[MLP])],
                        "parameters": {"weight": [{"filter": "embed", "value": 11}]},
                    }
                ],
            }
        },
    },
    "whole models in a module": {
        "parameters": {**UNNORMALISED, "weight": 7},
        "modules": {"default": {"parameters": {"weight": 5}, "models": [entry("one", weight=[MLP])]}},
    },
    "one condition without a list": {
        "parameters": {**UNNORMALISED, "weight": 2},
        "models": [entry("one", weight=MLP)],
    },
    "gradients within conditions": {
        "parameters": UNNORMALISED,
        "models": [entry("one", weight=[{"filter": "mlp", "value": [1, 4]}, {"value": 2}])],
    },
    "numbers in quotes": {"parameters": UNNORMALISED, "models": [entry("one", weight="0.5")]},
    "a base that is not listed": {
        "base_model": "two",
        "parameters": {**UNNORMALISED, "weight": 2},
        "models": [entry("one", weight=5)],
    },
    "a base that no slice lists": {
        "base_model": "two",
        "parameters": UNNORMALISED,
        "slices": [{"sources": [source("one", 0, 4, weight=3)]}],
    },
    "an empty slice": {
        "parameters": {"weight": 1},
        "slices": [
            {"sources": [source("one", 0, 2)]},
            {"sources": [source("three", 2, 2)]},
            {"sources": [source("two", 2, 4)]},
        ],
    },
    "a base for each slice": {
        "merge_method": "task_arithmetic",
        "slices": [
            {"base_model": "one", "sources": [source("one", 0, 2), source("two", 0, 2, weight=3)]},
            {"base_model": "two", "sources": [source("two", 2, 4), source("three", 2, 4, weight=5)]},
        ],
    },
    "models written in parts": {
        "parameters": UNNORMALISED,
        "models": [{"model": {"model": {"path": "two"}}, "parameters": {"weight": 3}}],
    },
    "a key without effect": {
        "parameters": UNNORMALISED,
        "slices": [{"residual_weight": 0.25, "sources": [source("one", 0, 4, weight=3)]}],
    },
    "a prefixed dtype": {
        "parameters": UNNORMALISED,
        "models": [entry("one", weight=3)],
        "dtype": "torch.float32",
    },
}


def placed(data: Any, models: dict[str, str]) -> Any:
    """``data`` with every model's name replaced by its folder."""
    if isinstance(data, dict):
        return {key: placed(value, models) for key, value in data.items()}
    if isinstance(data, list):
        return [placed(value, models) for value in data]
    return models.get(data, data) if isinstance(data, str) else data


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_means_the_same(name: str, models: dict[str, str], tmp_path: Path) -> None:
    data = placed({"merge_method": "linear", "dtype": "float32", **CONFIGS[name]}, models)
    theirs, ours = wheel_merge(data, tmp_path / "out"), our_merge(data)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key].float(), tensor.float()), key


# Several models of these have to be random: what is kept of constants is arbitrary.
@pytest.fixture(scope="module")
def random_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("random")
    return dict(zip(("base", "a", "b"), toy.family(folder, sources="ab"), strict=True))


OWN = {"weight": 0.5, "density": 1.0}
RANDOM_CONFIGS: dict[str, dict[str, Any]] = {
    "nothing kept of one model": {
        "models": [entry("a", weight=0.5, density=0.0), entry("b", weight=0.5)],
        "parameters": {"normalize": True},
    },
    "nothing kept in the first layer": {
        "models": [entry("a", weight=0.5), entry("b", weight=0.5, density=[0, 1, 1, 1])]
    },
    "nothing kept, weights divided by their sum": {
        "merge_method": "dare_linear",
        "models": [entry("a", weight=0.5, density=0.0), entry("b", weight=0.5)],
        "parameters": {"normalize": True},
    },
    "a flag in quotes": {"models": [entry("a", **OWN), entry("b", **OWN)], "parameters": {"normalize": "no"}},
    "a whole number with a point": {
        "merge_method": "karcher",
        "base_model": None,
        "models": [entry("a"), entry("b")],
        "parameters": {"max_iter": 5.0},
        "dtype": "float64",
    },
    "parameters of other methods": {
        "merge_method": "task_arithmetic",
        "models": [entry("a", **OWN, epsilon=0.1), entry("b", **OWN, normalize=False)],
        "parameters": {"select_topk": 0.1, "t": 0.3},
    },
    "parameters of no method, keys without effect": {
        "models": [entry("a", **OWN, colour=3), {**entry("b", **OWN), "comment": "good"}],
        "parameters": {"regularization": 0.1},
        "description": "mine",
    },
    "no dtype, and models of one": {"models": [entry("a", **OWN), entry("b", **OWN)], "dtype": None},
}


@pytest.mark.parametrize("name", RANDOM_CONFIGS)
def test_a_config_of_random_models_means_the_same(
    name: str, random_models: dict[str, str], tmp_path: Path
) -> None:
    common = {"merge_method": "ties", "base_model": "base", "dtype": "float32"}
    data = placed({**common, **RANDOM_CONFIGS[name]}, random_models)
    theirs = wheel_merge(data, tmp_path / "out")
    ours = dict(Engine(compile="never").stream(parse_recipe(data, [])))
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert ours[key].dtype == tensor.dtype
        assert torch.allclose(ours[key].float(), tensor.float(), rtol=1e-6, atol=1e-6), key


@pytest.mark.parametrize("stored", [("bfloat16", "float16"), ("float16", "float32"), ("float32", "bfloat16")])
def test_without_a_dtype_mixed_ones_are_merged_in_one_that_holds_all(
    stored: tuple[str, str], tmp_path: Path
) -> None:
    settings = toy.config()
    for seed, dtype in enumerate(("bfloat16", *stored)):
        tensors = toy.random_tensors(settings, seed, dtype=getattr(torch, dtype))
        toy.save(tmp_path / str(seed), settings, tensors)
    models = [entry(str(tmp_path / number), weight=0.25) for number in "12"]
    data = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "0"), "models": models}
    theirs, ours = wheel_merge(data, tmp_path / "out"), our_merge(data)
    for key, tensor in theirs.items():
        assert ours[key].dtype == tensor.dtype == torch.float32
        assert torch.equal(ours[key], tensor)


@pytest.mark.parametrize("base", ["own", "tied"])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "slerp"])
def test_tied_and_untied_weights_are_merged_alike(method: str, base: str, tmp_path: Path) -> None:
    for seed, name in enumerate(("own", "tied")):
        settings = toy.config(tie_word_embeddings=name == "tied")
        tensors = toy.random_tensors(settings, seed, dtype=torch.float32)
        toy.save(tmp_path / name, settings, tensors)
    other = "own" if base == "tied" else "tied"
    models = [
        entry(str(tmp_path / name), **({"weight": 0.25} if method != "slerp" else {}))
        for name in (base, other)
    ]
    data = {
        "merge_method": method,
        "models": models,
        "dtype": "float32",
        "parameters": {"t": 0.3} if method == "slerp" else {},
    }
    if method != "linear":
        data["base_model"] = str(tmp_path / base)
    theirs, ours = wheel_merge(data, tmp_path / "out"), our_merge(data)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.allclose(ours[key], tensor, rtol=1e-5, atol=1e-6), key
