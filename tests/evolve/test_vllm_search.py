"""A search whose worker is an engine of two processes: killed while it scores, and resumed."""

from __future__ import annotations

import importlib.util
import re
import time
from pathlib import Path

import psutil
import pytest

from evolve.journal import read_journal
from evolve.outcome import Scored
from tests.evolve import tiny
from tests.evolve.command_line import candidates, driver

BUDGET, KILLED_AFTER = 30, 6  # the first five are baselines

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="needs vLLM, which scripts/test installs"
    ),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The search, as it was when its driver was killed (``killed.jsonl``) and at its end."""
    folder = tmp_path_factory.mktemp("engine")
    for name in ("base", *tiny.SOURCES):
        tiny.write_model(folder / name, hidden=64)  # heads as wide as vLLM wants them
    tiny.write_tasks(folder / "tasks", items=24)
    engine = "vllm: {tensor_parallel_size: 2, max_num_seqs: 32, dtype: float32}"
    search = tiny.search_text(folder, candidates=BUDGET, extra=engine)
    (folder / "search.yml").write_text(search, encoding="utf-8")
    with driver(folder, "first.log", "--vllm") as process:
        while len(candidates(folder)) < KILLED_AFTER:
            assert process.poll() is None, (folder / "first.log").read_text()
            time.sleep(0.05)
        started = psutil.Process(process.pid).children(recursive=True)
        engines = [each for each in started if each.name().startswith("VLLM")]
        assert len(engines) == 2
        process.kill()
        process.wait()
        (folder / "killed.jsonl").write_bytes((folder / "run" / "journal.jsonl").read_bytes())
        given_up_s = time.monotonic() + 120
        while any(map(lives, engines)) and time.monotonic() < given_up_s:
            time.sleep(0.1)
        assert not any(map(lives, engines)), "an engine outlived its search"
    with driver(folder, "second.log", "--vllm") as process:
        assert process.wait(timeout=400) == 0, (folder / "second.log").read_text()
    return folder


def lives(process: psutil.Process) -> bool:
    """Whether it still holds a model: what nobody has waited for does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_it_goes_on_where_it_was_killed_and_counts_no_candidate_twice(folder: Path) -> None:
    before, after = read_journal(folder / "killed.jsonl").candidates, candidates(folder)
    assert KILLED_AFTER <= len(before) < len(after)
    assert after[: len(before)] == before
    assert sorted(record.id for record in after) == list(range(len(after)))
    assert sum(record.evaluated for record in after) == BUDGET
    assert all(isinstance(record.outcome, Scored) for record in after)
    assert f"goes on after {len(before)} candidates" in (folder / "second.log").read_text()


def test_it_ends_with_held_out_scores_and_the_model(folder: Path) -> None:
    said = (folder / "second.log").read_text()
    assert "Held-out items, with 95 % intervals" in said
    assert "stopped: budget" in said
    assert (folder / "run" / "final_model" / "model.safetensors").exists()


def test_the_memory_of_all_of_its_processes_is_counted(folder: Path) -> None:
    found = re.search(r"1 worker on cpu, .* and ([\d.]+) GB each", (folder / "second.log").read_text())
    assert found is not None
    assert float(found[1]) > 1.2  # half a gigabyte for each of three programs with torch
