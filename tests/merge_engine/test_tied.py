"""Tied weights: written once, and only left out where they are a repetition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from merge_engine.checkpoint_header import open_header
from merge_engine.engine import Engine
from merge_engine.folder import write_model
from merge_engine.layers import layer_names
from merge_engine.spec.recipe import parse_recipe
from merge_engine.tied import untied_config
from tests.merge_engine import toy

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def names(folder: Path, tensors: dict[str, Tensor], **settings: Any) -> set[str]:
    config = {key: value for key, value in (toy.config() | settings).items() if value is not None}
    return set(layer_names(open_header(toy.save(folder, config, tensors))).names())


def repeating() -> dict[str, Tensor]:
    tensors = toy.random_tensors(toy.config(), 0)
    return tensors | {HEAD: tensors[EMBEDDINGS].clone()}


def test_a_head_that_repeats_the_embeddings_is_left_out(tmp_path: Path) -> None:
    assert set(repeating()) - names(tmp_path / "a", repeating(), tie_word_embeddings=True) == {HEAD}


def test_a_head_of_its_own_is_kept_whatever_the_config_says(tmp_path: Path) -> None:
    tensors = toy.random_tensors(toy.config(), 0)
    assert names(tmp_path / "a", tensors, tie_word_embeddings=True) == set(tensors)


def test_equal_weights_that_are_not_tied_are_kept(tmp_path: Path) -> None:
    assert names(tmp_path / "a", repeating(), tie_word_embeddings=False) == set(repeating())


@pytest.mark.parametrize(("model_type", "tied"), [("gemma2", True), ("llama", False), ("invented", False)])
def test_a_silent_config_means_the_default_of_its_type(model_type: str, tied: bool, tmp_path: Path) -> None:
    found = names(tmp_path / "a", repeating(), model_type=model_type, tie_word_embeddings=None)
    assert (HEAD not in found) == tied


def test_shared_storage_of_pickled_weights_counts_once(tmp_path: Path) -> None:
    tensors = toy.random_tensors(toy.config(), 0)
    tensors[HEAD] = tensors[EMBEDDINGS]
    (tmp_path / "config.json").write_text(json.dumps(toy.config() | {"tie_word_embeddings": True}))
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert HEAD not in layer_names(open_header(tmp_path)).names()


@pytest.fixture
def mixed(tmp_path: Path) -> dict[str, str]:
    """A model with a head, one whose embeddings are its head, and one that repeats them as a head."""
    own, shared = toy.config(dtype="float32"), toy.config(dtype="float32", tie_word_embeddings=True)
    tied = toy.random_tensors(shared, 2, dtype=torch.float32)
    tensors = {
        "own": toy.random_tensors(own, 1, dtype=torch.float32),
        "tied": tied,
        "repeating": tied | {HEAD: tied[EMBEDDINGS].clone()},
    }
    configs = {"own": own, "tied": shared, "repeating": shared}
    return {name: str(toy.save(tmp_path / name, configs[name], tensors[name])) for name in tensors}


@pytest.mark.parametrize("order", [("own", "tied"), ("tied", "own"), ("repeating", "own")])
def test_the_embeddings_of_tied_weights_are_the_head_beside_a_model_that_has_one(
    mixed: dict[str, str], order: tuple[str, str], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    models = [{"model": mixed[name], "parameters": {"weight": 0.5}} for name in order]
    write_model(
        Engine(compile="never"), parse_recipe({"merge_method": "linear", "models": models}), tmp_path / "out"
    )
    own, tied = (load_file(Path(mixed[name]) / "model.safetensors") for name in ("own", "tied"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(model.lm_head.weight, (own[HEAD] + tied[EMBEDDINGS]) / 2)
    assert torch.equal(model.model.embed_tokens.weight, (own[EMBEDDINGS] + tied[EMBEDDINGS]) / 2)
    assert not model.config.tie_word_embeddings


def test_slices_that_end_with_tied_weights_have_a_head(mixed: dict[str, str], tmp_path: Path) -> None:
    ends = [("own", [0, 2]), ("tied", [2, 4])]
    slices = [{"sources": [{"model": mixed[name], "layer_range": where}]} for name, where in ends]
    recipe = parse_recipe({"merge_method": "passthrough", "slices": slices})
    write_model(Engine(compile="never"), recipe, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written[HEAD], load_file(Path(mixed["tied"]) / "model.safetensors")[EMBEDDINGS])
    assert not json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"]


def test_the_language_part_of_a_config_is_untied_too() -> None:
    config = {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": True}, "vision_config": {}}
    assert untied_config(config) == {
        "tie_word_embeddings": False,
        "text_config": {"tie_word_embeddings": False},
        "vision_config": {},
    }
