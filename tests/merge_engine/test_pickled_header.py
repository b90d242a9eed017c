"""Pickled weights: read in place, never run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from merge_engine.checkpoint_header import open_header
from merge_engine.errors import CheckpointError
from merge_engine.plan import TensorRef
from merge_engine.source_tensors import SourceTensors
from tests.merge_engine import toy

PICKLED = "pytorch_model.bin"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(toy.config()))
    return tmp_path


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    sources = SourceTensors()
    return {
        name: sources.tensor(TensorRef(model=str(folder), name=name)).view(info.shape)
        for name, info in sources.header(str(folder)).tensors.items()
    }


def test_single_files_and_shards_hold_what_was_saved(folder: Path) -> None:
    saved = toy.random_tensors(toy.config(), 0)
    torch.save(saved, folder / PICKLED)
    single = tensors(folder)
    (folder / PICKLED).unlink()
    names = list(saved)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[:5], names[5:])):
        file = f"pytorch_model-{number}.bin"
        torch.save({name: torch.nn.Parameter(saved[name]) for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / f"{PICKLED}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for found in (single, tensors(folder)):
        assert found.keys() == saved.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in saved.items())


def test_parts_of_a_shared_storage_are_found(folder: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    torch.save({"whole": whole, "last": whole[1:], "none": torch.zeros(0, 4)}, folder / PICKLED)
    found = tensors(folder)
    assert torch.equal(found["whole"], whole)
    assert torch.equal(found["last"], whole[1:])
    assert found["none"].shape == (0, 4)


def test_safetensors_are_preferred(folder: Path) -> None:
    (folder / PICKLED).write_bytes(b"no checkpoint")
    model = toy.save(folder / "model", toy.config(), toy.random_tensors(toy.config(), 0))
    (folder / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    assert open_header(folder).tensors


class Attack:
    """Leaves a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._trace),)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(new_format: bool, folder: Path) -> None:
    content = {"w": torch.zeros(2), "x": Attack(folder / "trace")}
    torch.save(content, folder / PICKLED, _use_new_zipfile_serialization=new_format)
    with pytest.raises(
        CheckpointError, match=r"holds more than tensors, which could run code; it is not load"
    ):
        open_header(folder)
    assert not (folder / "trace").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds no mapping of names to tensors"),
        ({"epoch": 3}, "'epoch' is no tensor but a int"),
        ({"model": {"w": torch.zeros(1)}}, "'model' is no tensor but a dict"),
        ({"w": torch.zeros(2, 3).T}, "'w' has a layout that cannot be read in place; convert"),
        ({"w": torch.zeros(2, dtype=torch.complex64)}, r"'w' has dtype torch\.complex64; convert"),
    ],
)
def test_what_is_no_state_dict_is_refused(folder: Path, content: object, message: str) -> None:
    torch.save(content, folder / PICKLED)
    with pytest.raises(CheckpointError, match=message):
        open_header(folder)


def test_files_of_before_pytorch_1_6_hold_what_was_saved(folder: Path) -> None:
    """Storages that look alike, that are shared, that are empty, and of any dtype."""
    whole = torch.arange(12.0).view(3, 4)
    saved = {
        "whole": whole,
        "last": whole[1:],
        "other": whole + 1,
        "same": whole.clone(),
        "half": torch.nn.Parameter(torch.ones(7).bfloat16()),
        "one": torch.ones(14, dtype=torch.int8),
        "none": torch.zeros(0, 4),
        "nothing": torch.zeros(0),
    }
    torch.save(saved, folder / PICKLED, _use_new_zipfile_serialization=False)
    found = tensors(folder)
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in saved.items())
    assert found["half"].dtype == torch.bfloat16


@pytest.mark.parametrize("new_format", [True, False])
def test_damaged_files_are_refused(new_format: bool, folder: Path) -> None:
    torch.save({"w": torch.zeros(64, 64)}, folder / PICKLED, _use_new_zipfile_serialization=new_format)
    whole = (folder / PICKLED).read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-8], b"", b"\x80\x02}q\x00.", bytes(1000)):
        (folder / PICKLED).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
            open_header(folder)


def test_torch_is_loaded_for_pickled_weights_only(folder: Path, tmp_path: Path) -> None:
    model = toy.save(tmp_path / "model", toy.config(), toy.random_tensors(toy.config(), 0))
    torch.save(toy.random_tensors(toy.config(), 0), folder / PICKLED)
    code = (
        "import pathlib, sys; from merge_engine.checkpoint_header import open_header;"
        f"open_header(pathlib.Path({str(model)!r})); before = 'torch' in sys.modules;"
        f"open_header(pathlib.Path({str(folder)!r})); print(before, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"]
