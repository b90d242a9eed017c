"""The published mergekit, as a black box, takes every kind of recipe that a space decodes to.

Models of constant tensors show which number reached which tensor: for methods that are plain sums the result
is compared with what `merge_engine.spec` says the recipe means.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from genome import Space
from merge_engine.spec import Recipe, Value, dump_yaml, first_match, layer_place, recipe_data
from tests.genome.made import space

LAYERS = 5
VALUES = {"root": 0.0, "a": 1.0, "b": 2.0, "c": 4.0}  # every tensor of a model is this constant

RunMergekit = Callable[[Recipe], dict[str, float]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of tiny Llama models by name."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    folder = tmp_path_factory.mktemp("models")
    for name, value in VALUES.items():
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(value)
        model.save_pretrained(folder / name)
    return {name: str(folder / name) for name in VALUES}


@pytest.fixture(scope="module")
def mergekit(tmp_path_factory: pytest.TempPathFactory) -> RunMergekit:
    """Merges a recipe with the wheel; gives the constant of each tensor (its first element)."""
    from safetensors.numpy import load_file

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the wheel's own dependencies warn on import
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions

    def run(recipe: Recipe) -> dict[str, float]:
        out: Path = tmp_path_factory.mktemp("merged")
        data = yaml.safe_load(dump_yaml(recipe_data(recipe)))  # as mergekit-yaml reads a file
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run_merge(
                MergeConfiguration.model_validate(data),
                str(out),
                MergeOptions(quiet=True, copy_tokenizer=False, random_seed=0),
            )
        merged: dict[str, float] = {}
        for file in out.glob("*.safetensors"):
            merged |= {name: float(tensor.flat[0]) for name, tensor in load_file(file).items()}
        return merged

    return run


def built(models: Mapping[str, str], names: str = "abc", **changes: Any) -> Space:
    given = {"models": [models[name] for name in names], "base_model": models["root"], "dtype": "float32"}
    return space(num_layers=LAYERS, **{**given, **changes})


def somewhere(built: Space) -> np.ndarray:
    """A point inside the box at which no two genes are equal."""
    return built.lower + (built.upper - built.lower) * np.linspace(0.2, 0.9, built.lower.size)


def meaning(recipe: Recipe, name: str) -> float:
    """The constant that the tensor ``name`` should get, for methods that are plain sums."""
    found = re.search(r"layers\.(\d+)\.", name)
    layer = int(found[1]) if found else None
    inputs, shared, t = _inputs(recipe, layer, name)
    sums = [
        first_match([own.get("weight"), *(s.get("weight") for s in shared)], name, t) for _, own in inputs
    ]
    values = [VALUES[Path(model).name] for model, _ in inputs]
    if recipe.merge_method == "slerp":
        blend = first_match([s.get("t") for s in shared], name, t)
        assert blend is not None
        return values[0] + (values[1] - values[0]) * blend
    pairs = [(weight, value) for weight, value in zip(sums, values, strict=True) if weight is not None]
    total = sum(weight * value for weight, value in pairs)
    return total / sum(weight for weight, _ in pairs) if recipe.parameters["normalize"] else total


def _inputs(
    recipe: Recipe, layer: int | None, name: str
) -> tuple[list[tuple[str, Mapping[str, Value]]], list[Mapping[str, Value]], float]:
    if recipe.models is not None:
        inputs = [(entry.model, entry.parameters) for entry in recipe.models]
        return inputs, [recipe.parameters], layer_place(layer, LAYERS)
    assert recipe.slices is not None
    starts = [piece.sources[0].layer_range[0] for piece in recipe.slices]
    last = len(starts) - 1
    if layer is None:
        i = 0 if "embed" in name else last
    else:
        i = max(i for i, start in enumerate(starts) if start <= layer)
    piece = recipe.slices[i]
    start, end = piece.sources[0].layer_range
    place = layer_place(None if layer is None else layer - start, end - start)
    return [(s.model, s.parameters) for s in piece.sources], [piece.parameters, recipe.parameters], place


@pytest.mark.parametrize(
    "changes",
    [
        {"merge_method": "linear", "filters": ["mlp.up", "self_attn"]},
        {"merge_method": "linear", "layer_granularity": 2, "smooth": True, "filters": ["self_attn"]},
        {"merge_method": "task_arithmetic", "layer_granularity": 2, "filters": ["mlp"]},
        {
            "merge_method": "task_arithmetic",
            "allow_negative_weights": True,
            "layer_granularity": 3,
            "smooth": True,
        },
        {"merge_method": "slerp", "names": "ab", "layer_granularity": 2, "filters": ["mlp"]},
        {"merge_method": "slerp", "names": "bc", "layer_granularity": 2, "smooth": True},
        {"merge_method": "slerp", "layer_granularity": 2, "filters": ["mlp"]},
    ],
    ids=lambda changes: "-".join(
        [changes["merge_method"], *(key for key in changes if key != "merge_method")]
    ),
)
def test_every_tensor_gets_its_number(
    changes: dict[str, Any], models: dict[str, str], mergekit: RunMergekit
) -> None:
    here = built(models, **changes)
    recipe = here.decode(somewhere(here))
    merged = mergekit(recipe)
    assert len(merged) == 9 * LAYERS + 3
    assert merged == pytest.approx({name: meaning(recipe, name) for name in merged}, rel=1e-5)


@pytest.mark.parametrize("method", ["ties", "dare_ties", "dare_linear"])
@pytest.mark.parametrize("smooth", [False, True])
def test_recipes_with_densities_are_taken(
    method: str, smooth: bool, models: dict[str, str], mergekit: RunMergekit
) -> None:
    here = built(models, merge_method=method, layer_granularity=2, filters=["mlp"], smooth=smooth)
    merged = mergekit(here.decode(somewhere(here)))
    assert all(np.isfinite(value) for value in merged.values())


def test_baselines_are_taken_and_their_points_are_the_same_merge(
    models: dict[str, str], mergekit: RunMergekit
) -> None:
    here = built(models, names="ab", merge_method="task_arithmetic", layer_granularity=2)
    expected = {"source:a": 1.0, "source:b": 2.0, "base": 0.0, "uniform": 1.5, "task_arithmetic": 3.0}
    for baseline in here.baselines():
        name = "source:" + Path(baseline.name).name if baseline.name.startswith("source") else baseline.name
        assert set(mergekit(baseline.recipe).values()) == {expected[name]}
        assert baseline.vector is not None
        assert set(mergekit(here.decode(baseline.vector)).values()) == {expected[name]}
