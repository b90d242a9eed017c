"""Merges that need far less memory than their models, and what is left of those that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from merge_engine.engine import Engine
from merge_engine.handover import Handover
from merge_engine.spec.recipe import parse_recipe
from tests.merge_engine import toy

ROWS, COLUMNS, TENSORS = 1024, 4096, 16  # 8 MiB each, 128 MiB a model
TENSOR_MIB = 8

_MERGE = """
import resource, sys
from pathlib import Path
import torch
from merge_engine import folder
torch.set_num_threads(1)
def mib(key):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines[key].split()[0]) / 1024
torch.ones(4) + 1
if sys.argv[2] != "none":
    allowed = int((mib("VmSize") + float(sys.argv[2])) * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
before = mib("VmRSS")
folder.merge_config(sys.stdin.read(), Path(sys.argv[1]))
print(mib("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four models of zeros, 128 MiB each, which take no room on the disk."""
    folder = tmp_path_factory.mktemp("models")
    return [_hollow_model(folder / name) for name in ("base", "a", "b", "c")]


def _hollow_model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(toy.config(layers=TENSORS)))
    size = ROWS * COLUMNS * 2
    header = json.dumps(
        {
            f"model.layers.{i}.mlp.up_proj.weight": {
                "dtype": "BF16",
                "shape": [ROWS, COLUMNS],
                "data_offsets": [i * size, (i + 1) * size],
            }
            for i in range(TENSORS)
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + TENSORS * size)
    return folder


def _config(models: list[Path], method: str) -> str:
    base, *sources = models
    entries = [{"model": str(model), "parameters": {"weight": 0.5, "density": 0.5}} for model in sources]
    return json.dumps(
        {"merge_method": method, "base_model": str(base), "models": entries, "dtype": "bfloat16"}
    )


def _start(out: Path, allowed_mib: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _MERGE, str(out), allowed_mib],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )


def _has_begun(folder: Path) -> bool:
    return any(file.stat().st_size > 2**20 for file in folder.glob(".out.*.partial/*.safetensors"))


@pytest.mark.parametrize("method", ["dare_linear", "ties"])
def test_memory_is_bounded_by_the_largest_tensor(models: list[Path], tmp_path: Path, method: str) -> None:
    child = _start(tmp_path / "out", "none")
    printed, errors = child.communicate(_config(models, method))
    assert child.returncode == 0, errors
    # 64 MiB of mapped inputs, and what is read until that is noticed; 64 MiB waiting to be written.
    assert float(printed) < 64 + 64 + 64 + 2 * TENSOR_MIB
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > TENSORS * TENSOR_MIB * 2**20


def test_models_larger_than_the_memory_allowed(models: list[Path], tmp_path: Path) -> None:
    total_mib = len(models) * TENSORS * TENSOR_MIB
    child = _start(tmp_path / "out", str(total_mib / 2))
    _, errors = child.communicate(_config(models, "dare_linear"))
    assert child.returncode == 0, errors
    assert (tmp_path / "out" / "config.json").exists()


def test_a_merge_killed_half_way_leaves_nothing_that_loads(models: list[Path], tmp_path: Path) -> None:
    child = _start(tmp_path / "out", "none")
    assert child.stdin is not None
    child.stdin.write(_config(models, "ties"))
    child.stdin.close()
    while child.poll() is None and not _has_begun(tmp_path):
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    for stream in (child.stdout, child.stderr):
        assert stream is not None
        stream.close()
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    (partial,) = tmp_path.iterdir()
    assert not (partial / "config.json").exists()


def test_an_engine_for_one_merge_gives_the_bits_of_one_that_keeps(tmp_path: Path) -> None:
    base, *sources = toy.family(tmp_path)
    data = json.loads(_config([Path(base), *map(Path, sources)], "dare_ties"))
    job = parse_recipe(data)
    kept, passing = dict(Engine().stream(job)), dict(Engine(once=True).stream(job))
    assert list(kept) == list(passing)
    assert all(torch.equal(kept[name], passing[name]) for name in kept)


def test_no_more_waits_than_fits() -> None:
    handover = Handover(100)
    small, large = torch.zeros(40, dtype=torch.uint8), torch.zeros(500, dtype=torch.uint8)
    assert handover.give("a", small)
    assert handover.give("b", small)
    assert not handover._has_room(40)
    stream = handover.taken()
    assert next(stream)[0] == "a"
    assert not handover._has_room(40)  # still in the taker's hands
    assert next(stream)[0] == "b"
    assert handover._has_room(40)
    assert not handover._has_room(500)
    handover.end()
    assert next(stream, None) is None
    assert handover.give("c", large)  # alone, a larger one fits


def test_a_taker_that_is_gone_stops_the_giver() -> None:
    handover = Handover(100)
    handover.give("a", torch.zeros(100, dtype=torch.uint8))
    handover.abandon()
    assert not handover.give("b", torch.zeros(100, dtype=torch.uint8))
    assert list(handover.taken()) == []
