"""Source tensors that stay in memory: results that are them are not copied, all others are the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from merge_engine.engine import Engine
from merge_engine.spec import parse_recipe
from tests.merge_engine import toy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    toy.family(path)
    return path


def layout(folder: Path, dtype: str = "bfloat16") -> Any:
    scale = [{"filter": "o_proj", "value": 1.37}, {"filter": "norm", "value": -1.0}]
    pieces = [("a", [0, 2], None), ("b", [1, 3], scale), ("a", [1, 4], None)]
    sources = [
        {"model": str(folder / model), "layer_range": layers, "parameters": {"scale": given} if given else {}}
        for model, layers, given in pieces
    ]
    return parse_recipe(
        {"merge_method": "passthrough", "slices": [{"sources": [s]} for s in sources], "dtype": dtype}
    )


def keeping(folder: Path) -> Engine:
    engine = Engine(compile="never")
    engine.keep(str(folder / "a"), "bfloat16")
    engine.keep(str(folder / "b"), "bfloat16", layers_only=True)
    return engine


def test_unchanged_tensors_are_the_same_ones_each_time(folder: Path) -> None:
    engine = keeping(folder)
    one, two = dict(engine.stream(layout(folder))), dict(engine.stream(layout(folder)))
    shared = {name for name in one if one[name].data_ptr() == two[name].data_ptr()}
    changed = {n for n in one if (".2." in n or ".3." in n) and ("o_proj" in n or "norm" in n)}
    assert shared == set(one) - changed
    up = "mlp.up_proj.weight"
    assert one[f"model.layers.1.{up}"].data_ptr() == one[f"model.layers.4.{up}"].data_ptr()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_values_are_those_of_an_engine_that_keeps_nothing(folder: Path, dtype: str) -> None:
    engine = keeping(folder)
    kept = dict(engine.stream(layout(folder, dtype)))
    plain = dict(Engine(compile="never").stream(layout(folder, dtype)))
    assert list(kept) == list(plain)
    for name, tensor in plain.items():
        assert kept[name].dtype == tensor.dtype
        assert torch.equal(kept[name], tensor)


def test_other_methods_and_targets_do_not_touch_what_is_kept(folder: Path) -> None:
    engine = keeping(folder)
    stored = {}
    for file in sorted((folder / "a").glob("*.safetensors")):
        stored |= load_file(file)
    mixed = {
        "merge_method": "linear",
        "models": [
            {"model": str(folder / name), "parameters": {"weight": weight}}
            for name, weight in (("a", 0.3), ("b", 0.9))
        ],
        "dtype": "bfloat16",
    }
    recipe = parse_recipe(mixed)
    merged = dict(engine.stream(recipe))
    for name, tensor in Engine(compile="never").stream(recipe):
        assert torch.equal(merged[name], tensor)
    targets = {name: torch.empty_like(tensor) for name, tensor in stored.items()}
    whole = parse_recipe(
        {"merge_method": "passthrough", "models": [{"model": str(folder / "a")}], "dtype": "bfloat16"}
    )
    for name, tensor in engine.stream(whole, into=targets):
        assert tensor is targets[name]
        tensor.zero_()
    for name, tensor in engine.stream(whole):
        assert torch.equal(tensor, stored[name])
