"""A model folder's fingerprint follows its content, not its dates."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from merge_engine.checkpoint_header import open_header
from merge_engine.fingerprint import fingerprint


def write_model(folder: Path, *, seed: int = 0, elements: int = 1 << 12, theta: float = 1e4) -> Path:
    folder.mkdir(exist_ok=True)
    weights = torch.randn(elements, generator=torch.Generator().manual_seed(seed))
    save_file({"weight": weights}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "rope_theta": theta}))
    return folder


def of(folder: Path) -> str:
    return fingerprint(open_header(folder))


def test_same_content_same_fingerprint_whatever_the_dates(tmp_path: Path) -> None:
    first = of(write_model(tmp_path / "a"))
    os.utime(tmp_path / "a" / "model.safetensors", (0, 0))
    assert of(tmp_path / "a") == first == of(write_model(tmp_path / "b"))


def test_weights_size_and_config_all_count(tmp_path: Path) -> None:
    prints = {
        of(write_model(tmp_path / "a")),
        of(write_model(tmp_path / "b", seed=1)),
        of(write_model(tmp_path / "c", elements=1 << 11)),
        of(write_model(tmp_path / "d", theta=1e6)),
    }
    assert len(prints) == 4


def test_every_part_of_a_large_file_is_sampled(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "large", elements=1 << 22)  # 16 MiB: a quarter is read
    before = of(folder)
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.seek(11 << 20)
        stream.write(bytes(1 << 19))
    assert of(folder) != before
