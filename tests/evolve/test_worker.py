"""What a worker process does before and beside its evaluator's work."""

from __future__ import annotations

from pathlib import Path

import pytest

from evolve.evaluator import WorkerContext
from evolve.worker import Worker
from tests.fault.toy import ToyFactory


def context(folder: Path) -> WorkerContext:
    return WorkerContext(name="worker-0", threads=1, device="cpu", memory_share=1.0, logs=None, folder=folder)


def test_relative_paths_mean_the_drivers_folder_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "drivers").mkdir()
    factory = ToyFactory(scratch=tmp_path)
    Worker(factory, context(tmp_path / "nowhere"))
    assert Path.cwd() == tmp_path
    Worker(factory, context(tmp_path / "drivers"))
    assert Path.cwd() == tmp_path / "drivers"
