"""Merges that need far less memory than their models, and what is left of those that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from merge_engine.engine import Engine
from merge_engine.folder import merge_config
from merge_engine.handover import Handover
from merge_engine.scratch_folder import scratch_folder
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
    return [hollow_model(folder / name) for name in ("base", "a", "b", "c")]


def hollow_model(folder: Path, tensors: int = TENSORS) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(toy.config(layers=tensors)))
    size = ROWS * COLUMNS * 2
    header = json.dumps(
        {
            f"model.layers.{i}.mlp.up_proj.weight": {
                "dtype": "BF16",
                "shape": [ROWS, COLUMNS],
                "data_offsets": [i * size, (i + 1) * size],
            }
            for i in range(tensors)
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + tensors * size)
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
    return any(file.stat().st_size > 2**20 for file in folder.glob(".out.*.partial/**/*.safetensors"))


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


def _killed(config: str, folder: Path, until: Callable[[], bool]) -> None:
    """Merge to ``folder / "out"``, in a process that is killed once ``until`` says so."""
    child = _start(folder / "out", "none")
    assert child.stdin is not None
    child.stdin.write(config)
    child.stdin.close()
    while child.poll() is None and not until():
        time.sleep(0.005)
    child.kill()
    assert child.stdout is not None
    assert child.stderr is not None
    with child.stdout, child.stderr:
        errors = child.stderr.read()
    assert child.wait() == -signal.SIGKILL, errors
    assert not (folder / "out").exists()


def test_a_merge_killed_half_way_leaves_nothing_that_loads(models: list[Path], tmp_path: Path) -> None:
    _killed(_config(models, "ties"), tmp_path, lambda: _has_begun(tmp_path))
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".partial")] == []
    assert not list(tmp_path.glob("**/config.json"))


def test_the_next_start_removes_what_a_killed_one_left(models: list[Path], tmp_path: Path) -> None:
    """Killed while the second of two documents is merged, when the first one's result is whole."""
    first = {**json.loads(_config(models, "dare_linear")), "name": "half"}
    entries = [{"model": name, "parameters": {"weight": 0.5}} for name in ("half", str(models[0]))]
    second = {"merge_method": "linear", "models": entries, "dtype": "bfloat16"}
    text = f"{json.dumps(first)}\n---\n{json.dumps(second)}"
    _killed(text, tmp_path, lambda: any(tmp_path.glob(".out.*.partial/result/*.safetensors")))
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == 2
    assert list(tmp_path.glob(".out.*.partial/half/config.json"))
    for name in (".out.20261122.partial", ".out.2.abcdefgh.partial"):  # not ours, and another result's
        (tmp_path / name).mkdir()
        left.add(name)
    with scratch_folder(tmp_path / "out") as alive:
        assert {path.name for path in tmp_path.iterdir()} == {
            alive.name, ".out.20261122.partial", ".out.2.abcdefgh.partial"
        }  # fmt: skip
        base, *_ = toy.family(tmp_path / "small")
        merge_config(
            json.dumps({"merge_method": "passthrough", "models": [{"model": base}]}), tmp_path / "out"
        )
        assert alive.exists()
    names = {"out", "small", ".out.20261122.partial", ".out.2.abcdefgh.partial"}
    assert {path.name for path in tmp_path.iterdir()} == names


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
