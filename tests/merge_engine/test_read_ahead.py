"""What is merged next is asked for in order, some way ahead and no further."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from merge_engine import read_ahead
from merge_engine.checkpoint_header import CheckpointHeader, TensorInfo
from merge_engine.plan_types import TensorJob, TensorRef
from merge_engine.read_ahead import ReadAhead

NAMES = [f"t{i}" for i in range(6)]
BYTES = 100


class Advised:
    """Stands in for the operating system: the places that were asked for, by their beginning."""

    def __init__(self) -> None:
        self.begins: list[int] = []
        self._more = threading.Condition()

    def __call__(self, file: int, begin: int, count: int, advice: int) -> None:
        assert (count, advice) == (BYTES, os.POSIX_FADV_WILLNEED)
        with self._more:
            self.begins.append(begin)
            self._more.notify_all()

    def wait_for(self, count: int) -> list[int]:
        with self._more:
            assert self._more.wait_for(lambda: len(self.begins) >= count, timeout=60)
            return list(self.begins)


@pytest.fixture
def advised(monkeypatch: pytest.MonkeyPatch) -> Advised:
    found = Advised()
    monkeypatch.setattr(os, "posix_fadvise", found)
    return found


def header(file: Path) -> CheckpointHeader:
    tensors = {
        name: TensorInfo(dtype="U8", shape=(BYTES,), file=file, begin=i * BYTES, end=(i + 1) * BYTES)
        for i, name in enumerate(NAMES)
    }
    return CheckpointHeader(folder=file.parent, tensors=tensors, config={}, num_layers=None)


def steps(model: str) -> list[list[TensorJob]]:
    return [
        [
            TensorJob(
                name=name,
                shape=(BYTES,),
                method="passthrough",
                sources=(TensorRef(model=model, name=name),),
                base=None,
                dtype=None,
                out_dtype=None,
                per_source=({},),
                shared={},
            )
        ]
        for name in NAMES
    ]


def test_a_window_moves_over_the_steps(
    tmp_path: Path, advised: Advised, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(BYTES * len(NAMES)))
    monkeypatch.setattr(read_ahead, "WINDOW_BYTES", 2 * BYTES)
    with ReadAhead(steps("model"), lambda model: header(file)) as ahead:
        assert advised.wait_for(2) == [0, 100]
        ahead.passed()
        assert advised.wait_for(3) == [0, 100, 200]
        ahead.passed()
        ahead.passed()
        assert advised.wait_for(5) == [0, 100, 200, 300, 400]
    assert advised.begins == [0, 100, 200, 300, 400]


def test_what_cannot_be_opened_is_left_to_the_merge(tmp_path: Path, advised: Advised) -> None:
    with ReadAhead(steps("model"), lambda model: header(tmp_path / "gone.safetensors")) as ahead:
        ahead._thread.join(60)
        assert not ahead._thread.is_alive()
    assert advised.begins == []
