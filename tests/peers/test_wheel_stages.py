"""The best config of a search in stages, built by us and by the wheel's `mergekit-multi`: the same model."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evolve.export import config_text
from evolve.winners import Winner
from merge_engine.folder import merge_config
from tests.evolve import made
from tests.merge_engine import toy

if importlib.util.find_spec("mergekit") is None:
    pytest.skip("mergekit is not installed", allow_module_level=True)

SCRIPT = "from mergekit.scripts.multimerge import main; main()"


def test_a_staged_best_config_is_built_alike(tmp_path: Path) -> None:
    """Weights first, then a path through what was found, then a path through both winners."""
    toy.family(tmp_path, dtype=torch.float32)
    a, b, base = (str(tmp_path / name) for name in ("a", "b", "base"))
    weights = {
        "merge_method": "task_arithmetic",
        "base_model": base,
        "models": [
            {"model": a, "parameters": {"weight": 0.75}},
            {"model": b, "parameters": {"weight": 0.5}},
        ],
    }
    path = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "winner:weights", "layer_range": [0, 3]}]},
            {"sources": [{"model": b, "layer_range": [3, 4]}]},
        ],
    }
    both = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "winner:path", "layer_range": [2, 4]}]},
            {"sources": [{"model": "winner:weights", "layer_range": [1, 4]}]},
        ],
    }
    winners = [
        Winner(stage=stage, reference=f"winner:{stage}", folder=str(tmp_path / stage), recipe=recipe)
        for stage, recipe in (("weights", weights), ("path", path))
    ]
    text = config_text(replace(made.candidate(7), recipe=both), 0, winners)
    (tmp_path / "best_config.yaml").write_text(text, encoding="utf-8")
    merge_config(text, tmp_path / "ours")
    wheel(tmp_path / "best_config.yaml", tmp_path / "theirs", tmp_path / "between")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert sorted(ours) == sorted(theirs)
    for name, tensor in theirs.items():
        assert toy.ulps(ours[name], tensor).max() <= 1, name


def wheel(config: Path, out: Path, between: Path) -> None:
    """`mergekit-multi`, in a process of its own."""
    command = [sys.executable, "-c", SCRIPT, str(config), "--out-path", str(out), "-I", str(between)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
