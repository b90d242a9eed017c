"""NaN and infinite numbers in a source: an error that names model and tensor, before they spoil a result."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from merge_engine.engine import Engine
from merge_engine.errors import CheckpointError
from merge_engine.spec.recipe import parse_recipe
from tests.merge_engine import toy

NAME = "model.layers.2.mlp.up_proj.weight"


def damaged(folder: Path, value: float, dtype: torch.dtype) -> str:
    settings = toy.config()
    tensors = toy.random_tensors(settings, 1, dtype=dtype)
    tensors[NAME][3, 5] = value
    return str(toy.save(folder / "damaged", settings, tensors))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("value", "found"), [(math.nan, "NaN"), (math.inf, "infinite numbers"), (-math.inf, "infinite numbers")]
)
def test_merging_says_which_model_and_tensor(
    value: float, found: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    settings = toy.config()
    sound = str(toy.save(tmp_path / "sound", settings, toy.random_tensors(settings, 0, dtype=dtype)))
    bad = damaged(tmp_path, value, dtype)
    entries = [{"model": model, "parameters": {"weight": 0.5}} for model in (sound, bad)]
    recipe = parse_recipe({"merge_method": "linear", "models": entries})
    with pytest.raises(CheckpointError, match=rf"{bad}: tensor '{NAME}' holds {found}, which would spoil"):
        list(Engine(compile="never").stream(recipe))


def test_copying_keeps_them(tmp_path: Path) -> None:
    bad = damaged(tmp_path, math.nan, torch.float32)
    recipe = parse_recipe({"merge_method": "passthrough", "models": [{"model": bad}]})
    for targets in ({}, {NAME: torch.zeros(64, 32)}):
        copied = dict(Engine(compile="never").stream(recipe, into=targets))[NAME]
        assert bool(copied[3, 5].isnan())
        assert int(copied.isnan().sum()) == 1
