"""One merge method searched over all of its parameters on the demo models, by the commands that users run."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from evolve.evaluator import WorkerContext
from evolve.export import differing_items, passthrough
from evolve.journal import read_journal
from evolve.ledger import choose_winner
from evolve.merge_evaluator import EvaluatorSpec
from evolve.outcome import Scored
from evolve.records import BASELINE_PREFIX, CandidateRecord
from fitness.results import Report
from fitness.suite import SuiteSpec, TaskSpec
from merge_engine.spec import METHODS, dump_yaml
from merge_engine.spec.parameters import Method, Parameter

_TASKS = {"demo_arithmetic": "exact_match,none", "demo_text": "exact_match,none", "demo_choice": "acc,none"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a search found; ``differing_items``: of the best sample, merged again to disk and scored."""

    dimensions: int
    scored: int
    best_source: float
    best_sample: float
    differing_items: int


def search(name: str, demo: Path, storage: Path, generations: int, popsize: int, items: int) -> Row:
    """Search, or go on with the search in ``storage``; then merge the best sample plainly and score that."""
    method = METHODS[name]
    data = {
        **_form(method, demo),
        "tasks": [{"name": task, "metric": metric} for task, metric in _TASKS.items()],
        "limit": items,
        "optimizer": {"popsize": popsize},
    }
    baselines = len(_sources(method)) + 3  # at most: the base, the uniform merge, task arithmetic
    storage.mkdir(parents=True, exist_ok=True)
    search_file = storage.with_suffix(".yml")
    search_file.write_text(dump_yaml(data))
    _run(
        "search",
        str(search_file),
        "--storage-path",
        str(storage),
        "--max-fevals",
        str(baselines + generations * popsize + 1),
        "--task-search-path",
        str(demo / "tasks"),
        "--quiet",
    )
    view = read_journal(storage / "journal.jsonl")
    source = _best(view.candidates, f"{BASELINE_PREFIX}source")
    best = _best(view.candidates, "sample")
    merged_again = _merged_again(best, demo, items, view.run.batch_size)
    return Row(
        dimensions=view.run.dimensions,
        scored=view.evaluations,
        best_source=_report(source).score,
        best_sample=_report(best).score,
        differing_items=sum(differing_items(_report(best), merged_again).values()),
    )


def _form(method: Method, demo: Path) -> dict[str, object]:
    """What varies: every parameter, in every two layers; a model, where the method has no parameters."""
    base, *sources = [str(demo / name) for name in ("base", *_sources(method))]
    if not method.parameters:
        choice = {"choose": [str(demo / name) for name in ("arithmetic", "text", "choice")]}
        models = [{"model": base}, {"model": choice}]
        return {"template": {"merge_method": method.name, "base_model": base, "models": models}}
    genome: dict[str, Any] = {
        "merge_method": method.name,
        "models": sources,
        "bounds": {parameter.name: _bounds(parameter) for parameter in method.parameters},
        "layer_granularity": 2,
    }
    if method.takes_base and method.max_models != 1:
        genome["base_model"] = base
    return {"genome": genome}


def _sources(method: Method) -> tuple[str, ...]:
    if method.needs_base and method.max_models == 1:
        return "text", "base"
    return ("text", "arithmetic", "choice")[: method.max_models or 3]


def _bounds(parameter: Parameter) -> list[object]:
    """The table's, or around the default where it has none."""
    if parameter.kind == "bool":
        return [False, True]
    if parameter.kind == "integer":
        low = int(parameter.low or 1)
        return [low, low + 3]
    if parameter.search_low is not None and parameter.search_high is not None:
        return [parameter.search_low, parameter.search_high]
    default = 1.0 if parameter.default is None else float(parameter.default)
    return [0.5 * default, default] if default else [0.1, 0.2]


def _merged_again(best: CandidateRecord, demo: Path, items: int, batch_size: int) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        config, out = Path(folder) / "best.yml", Path(folder) / "model"
        config.write_text(dump_yaml(best.recipe))
        _run("merge", str(config), str(out))
        outcome = _evaluator(demo, items, batch_size).evaluate(passthrough(out), "search").outcome
    assert isinstance(outcome, Scored), outcome
    return outcome.report


def _best(records: Sequence[CandidateRecord], origin: str) -> CandidateRecord:
    found = choose_winner(record for record in records if record.origin.startswith(origin))
    assert found is not None, f"nothing of origin {origin} was scored"
    return found


def _report(record: CandidateRecord) -> Report:
    assert isinstance(record.outcome, Scored), record.outcome
    return record.outcome.report


@cache
def _evaluator(demo: Path, items: int, batch_size: int) -> Any:
    evaluator = EvaluatorSpec(
        model=str(demo / "base"),
        suite=SuiteSpec(
            tasks=tuple(TaskSpec(name=name, metric=metric) for name, metric in _TASKS.items()),
            search_paths=(str(demo / "tasks"),),
            limit=items,
        ),
        dtype="bfloat16",
        seed=0,
        probe=passthrough(demo / "base"),
        batch_size=batch_size,
    )(WorkerContext(name="again", threads=1, device="cpu", memory_share=0.5, logs=None))
    evaluator.prepare()
    return evaluator


def _run(*arguments: str) -> None:
    code = "from evolve.cli import main; main()"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"mergevolve {' '.join(arguments)}\n{done.stdout}{done.stderr}")
