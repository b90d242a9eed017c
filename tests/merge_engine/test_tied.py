"""Tied weights: written once, and only left out where they are a repetition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_engine.checkpoint_header import open_header
from merge_engine.layers import layer_names
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
