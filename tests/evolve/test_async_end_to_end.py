"""One whole asynchronous search over tiny models, with real Ray and lm-eval."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evolve.journal import read_journal
from evolve.ledger import choose_winner
from evolve.records import MEAN, SAMPLE
from tests.evolve import tiny

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def test_a_whole_search_that_waits_for_nobody(tmp_path: Path) -> None:
    tiny.write_models(tmp_path / "models")
    tiny.write_tasks(tmp_path / "tasks")
    text = tiny.search_text(tmp_path / "models", candidates=24, extra="scheduler: async\n")
    text = text.replace("layer_granularity: 2", "layer_granularity: 2\n  filters: [self_attn, mlp]")
    (tmp_path / "search.yml").write_text(text, encoding="utf-8")
    command = [sys.executable, "-c", "from evolve.cli.search import main; main()", "search.yml"]
    command += ["--storage-path", "run", "--task-search-path", "tasks", "--num-workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

    view = read_journal(tmp_path / "run" / "journal.jsonl")
    assert view.evaluations == 24
    assert view.candidates[-1].origin == MEAN
    assert view.run.popsize == 11, "4 + 3 ln 12, not rounded up to suit two workers"
    late = [record for record in view.candidates if record.origin == SAMPLE and record.generation > 1]
    assert late, "the optimiser was told"
    winner = choose_winner(view.candidates)
    assert winner is not None
    assert (tmp_path / "run" / "best_config.yaml").read_text().startswith(f"# candidate {winner.id + 1}")
    assert "scheduler: async" in (tmp_path / "run" / "search.yml").read_text()
    assert (tmp_path / "run" / "final_model" / "model.safetensors").exists()
    assert {"best", "mean"} <= {record.name for record in view.holdout}
