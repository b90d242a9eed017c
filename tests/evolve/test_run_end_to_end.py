"""One whole search over tiny models, with real Ray and lm-eval: interrupted, resumed, exported, checked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from evolve.cli import main
from evolve.journal import JournalView, read_journal
from evolve.ledger import choose_winner
from evolve.outcome import Scored
from tests.evolve import tiny

ROOT = Path(__file__).parents[2]
TENSORS = "model.safetensors"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that was interrupted by Ctrl-C and then resumed to its end, six candidates later."""
    folder = tmp_path_factory.mktemp("whole")
    tiny.write_models(folder / "models")
    tiny.write_tasks(folder / "tasks")
    (folder / "search.yml").write_text(tiny.search_text(folder / "models", candidates=3000), encoding="utf-8")
    with driver(folder, "first.log") as process:
        wait_for_candidates(folder, 8, process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers hear it, too
        assert process.wait(timeout=120) == 130, (folder / "first.log").read_text()
    (folder / "interrupted").mkdir()
    for name in ("best_config.yaml", "journal.jsonl", "report.html"):
        (folder / "interrupted" / name).write_bytes((folder / "run" / name).read_bytes())
    done = len(journal(folder).candidates)
    with driver(folder, "second.log", "--max-fevals", str(done + 6)) as process:
        assert process.wait(timeout=240) == 0, (folder / "second.log").read_text()
    return folder


@contextmanager
def driver(folder: Path, log: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`mergekit-evolve` in a process of its own, killed if it outlives the block."""
    command = [sys.executable, "-c", "from evolve.cli.search import main; main()", "search.yml"]
    command += ["--storage-path", "run", "--task-search-path", "tasks", "--num-workers", "1", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (folder / log).open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for_candidates(folder: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    path = folder / "run" / "journal.jsonl"
    while not path.exists() or len(read_journal(path).candidates) < count:
        assert process.poll() is None, (folder / "first.log").read_text()
        time.sleep(0.05)


def journal(folder: Path) -> JournalView:
    return read_journal(folder / "run" / "journal.jsonl")


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_ctrl_c_ends_with_the_best_so_far_exported(folder: Path) -> None:
    said = (folder / "first.log").read_text()
    assert "stopped: interrupted" in said
    assert "wrote run/final_model" in said
    assert "stopped early; the same command goes on from here" in said
    assert (folder / "interrupted" / "best_config.yaml").read_text().startswith("# candidate ")
    assert "Traceback" not in said


def test_the_same_command_resumes_and_ends_at_its_budget(folder: Path) -> None:
    before = read_journal(folder / "interrupted" / "journal.jsonl").candidates
    after = journal(folder).candidates
    assert after[: len(before)] == before
    assert len(after) == len(before) + 6
    assert after[-1].origin == "mean"
    assert f"goes on after {len(before)} candidates" in (folder / "second.log").read_text()


def test_the_budget_is_exact_and_baselines_come_first(folder: Path) -> None:
    candidates = sorted(journal(folder).candidates, key=lambda record: record.id)
    assert [record.id for record in candidates] == list(range(len(candidates)))
    baselines = [record.origin for record in candidates if record.origin.startswith("baseline:")]
    assert baselines == [record.origin for record in candidates[: len(baselines)]]
    assert {"baseline:uniform", "baseline:task_arithmetic"} <= set(baselines)


def test_the_held_out_table_has_best_mean_and_every_baseline(folder: Path) -> None:
    view = journal(folder)
    names = {record.name for record in view.holdout}
    baselines = {record.origin for record in view.candidates if record.origin.startswith("baseline:")}
    assert names == {"best", "mean"} | baselines
    search = {task.task: set(task.item_ids) for task in report_of(view.candidates[0]).tasks}
    for record in view.holdout:
        for task in report_of(record).tasks:
            assert search[task.task].isdisjoint(task.item_ids)
    assert "Held-out items, with 95 % intervals" in (folder / "second.log").read_text()


def report_of(record: object) -> object:
    outcome = record.outcome  # type: ignore[attr-defined]
    assert isinstance(outcome, Scored)
    return outcome.report


def test_the_exported_model_scored_as_in_the_search(folder: Path) -> None:
    said = (folder / "second.log").read_text()
    assert "wrote run/final_model: candidate " in said
    assert "WARNING" not in said


def test_best_config_and_final_model_are_the_winner(folder: Path) -> None:
    from merge_engine.spec import load_yaml

    winner = choose_winner(journal(folder).candidates)
    assert winner is not None
    assert load_yaml((folder / "run" / "best_config.yaml").read_text()) == winner.recipe
    invoke("merge", folder / "run" / "best_config.yaml", folder / "merged")
    final = (folder / "run" / "final_model" / TENSORS).read_bytes()
    assert (folder / "merged" / TENSORS).read_bytes() == final
    invoke("export", folder / "run", folder / "exported")
    assert (folder / "exported" / TENSORS).read_bytes() == final


def test_the_mergekit_wheel_takes_best_config_to_the_same_tensors(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    command = "from mergekit.scripts.run_yaml import main; main()"
    out = folder / "by-mergekit"
    done = subprocess.run(
        [sys.executable, "-c", command, str(folder / "run" / "best_config.yaml"), str(out)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = load_file(folder / "run" / "final_model" / TENSORS), load_file(out / TENSORS)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        ulp = torch.finfo(torch.bfloat16).eps * tensor.abs().float().clamp_min(1e-30)
        assert bool(((tensor.float() - theirs[name].float()).abs() <= ulp).all()), name


def test_status_and_report_afterwards(folder: Path) -> None:
    total = len(journal(folder).candidates)
    status = invoke("status", folder / "run")
    assert f"not running; {total} of {total} candidates done, 0 failed" in status
    assert "the winner is in final_model/" in status
    page = (folder / "run" / "report.html").read_text(encoding="utf-8")
    assert "Held-out items" in page
    (folder / "run" / "report.html").unlink()
    invoke("report", folder / "run")
    assert "Held-out items" in (folder / "run" / "report.html").read_text(encoding="utf-8")


def test_a_finished_search_starts_no_worker(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "run" / "final_model").iterdir()}
    with driver(folder, "third.log", "--max-fevals", str(len(journal(folder).candidates))) as process:
        assert process.wait(timeout=120) == 0
    said = (folder / "third.log").read_text()
    assert "starting workers" not in said
    assert "Held-out items, with 95 % intervals" in said
    assert {path: path.stat().st_mtime_ns for path in (folder / "run" / "final_model").iterdir()} == before


def test_the_storage_path_holds_what_the_docs_name_and_nothing_else(folder: Path) -> None:
    assert {path.name for path in (folder / "run").iterdir()} == {
        ".lock",
        "best_config.yaml",
        "final_model",
        "journal.jsonl",
        "logs",
        "report.html",
        "search.yml",
    }
