"""Weights & Biases in offline mode: names, resumption, and failures that do not matter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evolve.export import BestConfig
from evolve.observer import GenerationSummary, Observer, SearchResult
from evolve.storage import StoragePath
from evolve.trackers import WandbTracker, numbers
from tests.evolve.made import candidate, recipe, run_record, scored

BEST = candidate(9, outcome=scored(0.9, 0.8))


def generation(number: int = 1) -> GenerationSummary:
    return GenerationSummary(
        generation=number,
        evaluations=10,
        candidates=(candidate(8, outcome=scored(0.5, 0.25)), BEST),
        mean_recipe=recipe(0.4),
        sigma=0.1,
        std=np.array([0.1, 0.3]),
        best=BEST,
    )


def finished() -> SearchResult:
    return SearchResult(best=BEST, mean=None, evaluations=10, stopped_because="budget")


def tracker(folder: Path, warnings: list[str]) -> WandbTracker:
    return WandbTracker(
        StoragePath(folder), project="merges", entity=None, settings={"limit": 5}, warn=warnings.append
    )


class FakeRun:
    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.logged: list[dict[str, Any]] = []
        self.artifacts: list[Any] = []
        self.ended = False

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def log_artifact(self, artifact: Any) -> None:
        self.artifacts.append(artifact)

    def finish(self) -> None:
        self.ended = True


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """The real package, but for its run."""
    import wandb

    made: list[FakeRun] = []

    def init(**arguments: Any) -> FakeRun:
        made.append(FakeRun(**arguments))
        return made[-1]

    monkeypatch.setattr(wandb, "init", init)
    return made


def test_a_generation_is_logged_under_the_incumbents_names(tmp_path: Path, runs: list[FakeRun]) -> None:
    warnings: list[str] = []
    watched = tracker(tmp_path, warnings)
    observers: tuple[Observer, ...] = (BestConfig(StoragePath(tmp_path), 3), watched)
    for observer in observers:
        observer.on_start(run_record(), ())
        observer.on_candidate(BEST)
        observer.on_generation(generation())
        observer.on_finish(finished())
    assert warnings == []
    values = dict(runs[0].logged[0])
    best_genome, mean_genome = values.pop("best_genome"), values.pop("mean_genome")
    assert values == pytest.approx(
        {
            "best_score": 1.7,
            "evaluations": 10,
            "mean_std": 0.2,
            "population/score_mean": (0.75 + 1.7) / 2,
            "population/score_std": (1.7 - 0.75) / 2,
            "population/sums_acc,none_mean": 0.7,
            "population/sums_acc,none_max": 0.9,
            "population/sums_acc,none_min": 0.5,
            "population/words_acc,none_mean": 0.525,
            "population/words_acc,none_max": 0.8,
            "population/words_acc,none_min": 0.25,
        }
    )
    assert ["slices[0].sources[1].parameters.density", 0.3] in best_genome.data
    assert mean_genome.columns == ["parameter", "value"]
    assert [(artifact.name, artifact.type) for artifact in runs[0].artifacts] == [
        ("best_config", "merge_config")
    ]
    assert runs[0].ended


def test_a_second_start_goes_on_with_the_same_run(tmp_path: Path, runs: list[FakeRun]) -> None:
    for _ in range(2):
        watched = tracker(tmp_path, [])
        watched.on_start(run_record(), ())
        watched.on_finish(finished())
    first, second = runs
    assert first.arguments["id"] == second.arguments["id"]
    assert second.arguments["resume"] == "allow"
    assert second.arguments["config"] == {"limit": 5, "random_seed": 3, "dimensions": 12}


def test_a_failure_is_told_once_and_stops_nothing(tmp_path: Path, runs: list[FakeRun]) -> None:
    warnings: list[str] = []
    watched = tracker(tmp_path, warnings)
    watched.on_start(run_record(), ())

    def broken(values: dict[str, Any]) -> None:
        raise ConnectionError("the network is down")

    runs[0].log = broken  # type: ignore[method-assign]
    watched.on_generation(generation())
    watched.on_generation(generation(2))
    watched.on_finish(finished())
    watched.close()
    assert warnings == ["Weights & Biases is switched off for this run: ConnectionError: the network is down"]


def test_a_missing_package_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    warnings: list[str] = []
    watched = tracker(tmp_path, warnings)
    watched.on_start(run_record(), ())
    watched.on_generation(generation())
    assert len(warnings) == 1
    assert "switched off" in warnings[0]


def test_a_search_that_ends_in_an_error_still_ends_its_run(tmp_path: Path, runs: list[FakeRun]) -> None:
    watched = tracker(tmp_path, [])
    watched.on_start(run_record(), ())
    watched.close()
    assert runs[0].ended


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_real_client_takes_it_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for directory in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(directory, str(tmp_path / "home"))
    storage = StoragePath(tmp_path)
    warnings: list[str] = []
    for _ in range(2):  # the second start resumes
        BestConfig(storage, 3).on_candidate(BEST)
        watched = tracker(tmp_path, warnings)
        watched.on_start(run_record(), ())
        watched.on_generation(generation())
        watched.on_finish(finished())
    assert warnings == []
    run_id = (tmp_path / "wandb_run_id").read_text().strip()
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert files
    assert {file.name for file in files} == {f"run-{run_id}.wandb"}


def test_numbers_finds_every_number_and_no_switch() -> None:
    data = {"a": [1, {"b": 0.5}], "c": True, "d": "text", "e": None}
    assert list(numbers(data)) == [("a[0]", 1.0), ("a[1].b", 0.5)]
