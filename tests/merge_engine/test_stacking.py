"""Which layers can stand in one stack, from headers alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from merge_engine.checkpoint_header import open_header
from merge_engine.stacking import stacking_problems
from tests.merge_engine import toy


def problems(*folders: Path) -> list[str]:
    headers = {folder.name: open_header(folder) for folder in folders}
    return [str(problem) for problem in stacking_problems(headers, "layout.models")]


def saved(folder: Path, drop: str = "", **changes: Any) -> Path:
    config = toy.config(**changes)
    tensors = toy.random_tensors(config, 0)
    return toy.save(folder, config, {name: t for name, t in tensors.items() if not drop or drop not in name})


def test_models_of_other_depth_and_vocabulary_stack(tmp_path: Path) -> None:
    assert problems(saved(tmp_path / "a"), saved(tmp_path / "b", layers=2, vocabulary=80)) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 64}, r"layer 0 of b has .* of shape .*, the others have"),
        ({"drop": "layers.1.mlp.up_proj"}, "layer 1 of b has no mlp.up_proj.weight"),
        (
            {"layer_types": ["a", "a", "a", "b"]},
            r"b has layers of several kinds \(layer_types in its config\)",
        ),
    ],
)
def test_what_cannot_stand_anywhere_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    (problem,) = problems(saved(tmp_path / "a"), saved(tmp_path / "b", **changes))
    assert problem.startswith("layout.models[1]: ")
    assert re.search(message, problem)


def test_a_model_whose_config_does_not_fit_its_weights_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 9}
    (folder / "config.json").write_text(json.dumps(config))
    (problem,) = problems(folder)
    assert "9" in problem
