"""The demo's search, scored by transformers or by vLLM, as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

from evolve.journal import JournalView, read_journal

ROOT = Path(__file__).parents[2]
_CODE = "from evolve.cli.search import main; main()"


def demo_search(
    demo: Path, storage: Path, *, vllm: bool, candidates: int, workers: int, items: int | None = None
) -> JournalView:
    """Run configs/demo/search.yml on the models in ``demo``; what its journal holds at the end.

    ``items``: of each task; None: all of them.
    """
    data = yaml.safe_load((ROOT / "configs" / "demo" / "search.yml").read_text(encoding="utf-8"))
    genome = data["genome"]
    genome["models"] = [str(demo / Path(model).name) for model in genome["models"]]
    genome["base_model"] = str(demo / Path(genome["base_model"]).name)
    data["limit"] = items
    storage.parent.mkdir(parents=True, exist_ok=True)
    search_file = storage.with_suffix(".yml")
    search_file.write_text(yaml.safe_dump(data), encoding="utf-8")
    arguments = [str(search_file), "--storage-path", str(storage), "--task-search-path", str(demo / "tasks")]
    arguments += ["--max-fevals", str(candidates), "--num-workers", str(workers), "--no-save-final-model"]
    arguments += ["--vllm"] if vllm else []
    run([sys.executable, "-c", _CODE, *arguments], storage.with_suffix(".log"))
    return read_journal(storage / "journal.jsonl")


def run(command: list[str], log: Path) -> None:
    """Run a command of ours; ends this program with the log's name if it fails."""
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "scripts")])}
    with log.open("wb") as output:
        done = subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, env={**settings, "HF_HUB_OFFLINE": "1"}
        )
    if done.returncode:
        tail = log.read_text(errors="replace")[-2000:]
        raise SystemExit(f"{' '.join(command[:3])} ended with {done.returncode}:\n{tail}")
