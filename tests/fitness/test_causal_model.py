"""How a model is run, whatever its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fitness.causal_model import CausalModel, ModelTraits, empty_model
from tests.fitness.conftest import save_tiny_llama


def test_the_head_is_given_no_slice_for_which_its_weights_would_be_copied_row_by_row(tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path / "model")
    device = torch.device("cpu")
    module = empty_model(folder, torch.float32, device, trust_remote_code=False)
    model = CausalModel(module, ModelTraits.of(module, folder, device))
    given: list[Any] = []
    module.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    logits = model.forward(torch.ones(3, 7, dtype=torch.int64), None, cache=None, keep=1)
    assert logits.shape[:2] == (3, 1)
    assert [(tuple(hidden.shape[:2]), hidden.is_contiguous()) for hidden in given] == [((3, 1), True)]
