"""Candidates per hour of our search and of the incumbent's, on the same models, tasks and number of workers.

The incumbent, mergekit-evolve 0.1.5, runs as a black box: `mended_incumbent` says what keeps it from
starting on today's libraries. "As shipped" is mended just so far that it starts; "mended" also gets the
batches that it ignores in memory. Start-up counts for nobody: the first generation of each is left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from evolve.journal import read_journal

HERE = Path(__file__).parent
BATCH_SIZE = 64
ITEMS_PER_TASK = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How fast one search was: candidates that began and ended within ``wall_s`` seconds."""

    name: str
    candidates: int
    wall_s: float

    @property
    def per_hour(self) -> float:
        return 3600 * self.candidates / self.wall_s


def measure(demo: Path, scratch: Path, workers: int) -> list[Rate]:
    """Run all three searches one after another; ``demo`` is the folder that scripts/demo_models.py makes."""
    scratch.mkdir(parents=True, exist_ok=True)
    search_file = scratch / "search.yml"
    search_file.write_text(yaml.safe_dump(_search(demo)), encoding="utf-8")
    return [
        _ours(search_file, demo, scratch, workers),
        _incumbent(
            "incumbent, mended", search_file, demo, scratch, workers, popsize=12, batch_size=BATCH_SIZE
        ),
        _incumbent("incumbent, as shipped", search_file, demo, scratch, workers, popsize=4, batch_size=None),
    ]


def table(rates: list[Rate]) -> str:
    """One line for each search, with the ratio of our rate to it."""
    lines = [
        "| search | candidates | seconds | candidates per hour | ours is faster by |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {rate.name} | {rate.candidates} | {rate.wall_s:.1f} | {rate.per_hour:.0f} "
        f"| {rates[0].per_hour / rate.per_hour:.1f}x |"
        for rate in rates
    ]
    return "\n".join(lines)


def _search(demo: Path) -> dict[str, object]:
    """A search file that both read."""
    models = [str((demo / name).resolve()) for name in ("arithmetic", "text", "choice")]
    return {
        "genome": {
            "models": models,
            "base_model": str((demo / "base").resolve()),
            "merge_method": "ties",
            "layer_granularity": 2,
        },
        "tasks": [
            {"name": "demo_arithmetic", "metric": "exact_match,none"},
            {"name": "demo_text", "metric": "exact_match,none"},
            {"name": "demo_choice", "metric": "acc,none"},
        ],
        "limit": ITEMS_PER_TASK,
        "apply_chat_template": False,
        "fewshot_as_multiturn": False,
    }


def _ours(search_file: Path, demo: Path, scratch: Path, workers: int) -> Rate:
    storage = scratch / "ours"
    arguments = _common(search_file, storage, demo, fevals=60)
    arguments += ["--num-workers", str(workers), "--batch-size", str(BATCH_SIZE), "--no-save-final-model"]
    code = "from evolve.cli.search import main; main()"
    _run([sys.executable, "-c", code, *arguments], scratch / "ours.log", {})
    measured = [
        record.measured
        for record in read_journal(storage / "journal.jsonl").candidates
        if record.generation > 1
    ]
    ended_s = max(entry.started_s + entry.wall_s for entry in measured)
    started_s = min(entry.started_s for entry in measured)
    return Rate(name="mergevolve", candidates=len(measured), wall_s=ended_s - started_s)


def _incumbent(
    name: str,
    search_file: Path,
    demo: Path,
    scratch: Path,
    workers: int,
    *,
    popsize: int,
    batch_size: int | None,
) -> Rate:
    times = scratch / "times.json"
    storage = scratch / name.replace(", ", "-").replace(" ", "-")
    arguments = _common(search_file, storage, demo, fevals=3 * popsize if batch_size else 2 * popsize)
    arguments += ["--in-memory", "--no-merge-cuda", "--num-gpus", str(workers)]
    arguments += ["--force-population-size", str(popsize), "--no-save-final-model"]
    environment = {"MENDED_WORKERS": str(workers), "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    if batch_size is not None:
        environment["MENDED_BATCH_SIZE"] = str(batch_size)
    command = [sys.executable, "-m", "mended_incumbent", str(times), *arguments]
    _run(command, storage.with_suffix(".log"), environment)
    generations = [entry for entry in json.loads(times.read_text()) if entry["candidates"] >= popsize][1:]
    return Rate(
        name=name,
        candidates=sum(int(entry["candidates"]) for entry in generations),
        wall_s=sum(entry["wall_s"] for entry in generations),
    )


def _common(search_file: Path, storage: Path, demo: Path, *, fevals: int) -> list[str]:
    tasks = str((demo / "tasks").resolve())
    return [
        str(search_file),
        "--storage-path",
        str(storage),
        "--task-search-path",
        tasks,
        "--max-fevals",
        str(fevals),
    ]


def _run(command: list[str], log: Path, environment: dict[str, str]) -> None:
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    settings = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", **environment}
    with log.open("wb") as output:  # pycma in the incumbent leaves its logs where it runs
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=settings, cwd=log.parent)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:3])} ended with {done.returncode}; see {log}")
