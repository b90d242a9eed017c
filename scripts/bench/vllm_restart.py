"""Candidates an hour of a search on resident engines, against an engine started for each candidate.

`python -m bench.vllm_restart JSON` is what is started for one candidate; see `score_once`.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from bench.vllm_search import ROOT, demo_search, run


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Candidates that ``workers`` at a time scored in ``wall_s``."""

    name: str
    candidates: int
    wall_s: float

    @property
    def per_hour(self) -> float:
        return 3600 * self.candidates / self.wall_s


def measure(
    demo: Path, scratch: Path, *, candidates: int, restarts: int, workers: int, items: int
) -> list[Rate]:
    """Both on the same items with as many at a time; the search's first generation, with its start, is left
    out.
    """
    return [
        _resident(demo, scratch, candidates, workers, items),
        _restarted(demo, scratch, restarts, workers, items),
    ]


def table(rates: list[Rate]) -> str:
    """A line for each, and how many times the second the first is."""
    lines = [
        f"{rate.name:<34} {rate.candidates:5d} in {rate.wall_s:7.1f} s {rate.per_hour:9.0f} an hour"
        for rate in rates
    ]
    return "\n".join([*lines, f"{rates[0].per_hour / rates[1].per_hour:.1f}x"])


def _resident(demo: Path, scratch: Path, candidates: int, workers: int, items: int) -> Rate:
    view = demo_search(
        demo, scratch / "resident", vllm=True, candidates=candidates, workers=workers, items=items
    )
    scored = [record for record in view.candidates if record.evaluated and record.generation > 1]
    if not scored:
        raise SystemExit(f"{candidates} candidates are one generation: ask for more (--candidates)")
    started_s = min(record.measured.started_s for record in scored)
    ended_s = max(record.measured.started_s + record.measured.wall_s for record in scored)
    return Rate(name="resident engines", candidates=len(scored), wall_s=ended_s - started_s)


def _restarted(demo: Path, scratch: Path, restarts: int, workers: int, items: int) -> Rate:
    def start(candidate: int) -> None:
        place = str(scratch / f"{candidate}")
        options = {"demo": str(demo), "candidate": candidate, "scratch": place, "items": items}
        command = [sys.executable, "-m", "bench.vllm_restart", json.dumps(options)]
        run(command, scratch / f"restart-{candidate}.log")

    started_s = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(start, range(restarts)))
    wall_s = time.perf_counter() - started_s
    return Rate(name="an engine for each candidate", candidates=restarts, wall_s=wall_s)


def score_once(demo: str, candidate: int, scratch: str, items: int) -> None:
    """Merge to a folder, start an engine on it, score: what a worker does that keeps nothing."""
    from evolve.options import SearchOptions
    from evolve.preflight import suite_spec
    from fitness.vllm_backend import VllmBackend
    from fitness.vllm_engine import StoredTensors
    from fitness.vllm_settings import VllmSettings
    from genome import parse_search_file
    from merge_engine.engine import Engine
    from merge_engine.folder import write_model
    from merge_engine.spec.recipe import parse_recipe

    search_file = ROOT / "configs" / "demo" / "search.yml"
    options = SearchOptions(
        search_file=search_file, storage_path=Path(scratch), task_search_paths=(f"{demo}/tasks",)
    )
    search = replace(parse_search_file(search_file.read_text(encoding="utf-8")), limit=items, holdout=None)
    suite = suite_spec(search, options)
    experts = [
        {"model": f"{demo}/{name}", "parameters": {"weight": 0.5 + 0.01 * candidate}}
        for name in ("arithmetic", "text", "choice")
    ]
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": f"{demo}/base",
        "models": experts,
        "dtype": "bfloat16",
    }
    folder = Path(scratch) / "model"
    folder.parent.mkdir(parents=True)
    write_model(Engine(), parse_recipe(recipe), folder)
    backend = VllmBackend(folder, suite, VllmSettings(), dtype="bfloat16")
    backend.load(StoredTensors(folder))
    print(backend.score("search").score)


if __name__ == "__main__":
    score_once(**json.loads(sys.argv[1]))
