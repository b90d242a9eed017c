"""Whole searches with either scheduler on functions whose lowest value is 0, on simulated workers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench.simulated_fleet import Conditions, SimulatedFleet
from numpy.typing import NDArray

from evolve.fleet import Job
from evolve.journal import Journal
from evolve.observer import GenerationSummary, Observer
from evolve.optimisers import default_popsize
from evolve.outcome import Scored
from evolve.search import SearchSettings, new_run, run_search
from fitness.results import Report, TaskResult
from genome.box import Kind
from merge_engine.spec.recipe import InputModel, Recipe

Vector = NDArray[np.float64]
Function = Callable[[Vector], float]


def sphere(away: Vector) -> float:
    return float(away @ away)


def ellipsoid(away: Vector) -> float:
    """Axes are up to 30 times as sensitive as others, and turned against the coordinates."""
    scale = 10 ** np.linspace(0, 3, len(away))
    turned = np.linalg.qr(np.random.RandomState(len(away)).randn(len(away), len(away)))[0] @ away
    return float(scale @ turned**2 / scale.mean())


def valley(away: Vector) -> float:
    """Rosenbrock's, a bent one."""
    place = 1 + 4 * away
    return float(np.sum(100 * (place[1:] - place[:-1] ** 2) ** 2 + (1 - place[:-1]) ** 2) / 100)


def hills(away: Vector) -> float:
    """Rastrigin's, many small ones on a large slope."""
    return float(away @ away + 0.02 * np.sum(1 - np.cos(16 * np.pi * away)))


FUNCTIONS: Mapping[str, Function] = {
    "sphere": sphere,
    "ellipsoid": ellipsoid,
    "valley": valley,
    "hills": hills,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    name: str
    recipe: Recipe
    vector: Vector | None


class Cube:
    """One weight in [0, 1] for each of D models; a search starts in the middle, which is its one baseline."""

    def __init__(self, dimensions: int) -> None:
        self.names = tuple(f"model-{number}" for number in range(dimensions))
        self.kinds: tuple[Kind, ...] = ("real",) * dimensions
        self.lower = np.zeros(dimensions)
        self.upper = np.ones(dimensions)
        self.start = np.full(dimensions, 0.5)

    def decode(self, vector: Vector) -> Recipe:
        models = tuple(
            InputModel(model=name, parameters={"weight": float(weight)})
            for name, weight in zip(self.names, vector, strict=True)
        )
        return Recipe(merge_method="linear", models=models)

    def encode(self, recipe: Recipe) -> Vector | None:
        return weights({"models": [{"parameters": model.parameters} for model in recipe.models or ()]})

    def baselines(self) -> tuple[Baseline, ...]:
        return (Baseline(name="middle", recipe=self.decode(self.start), vector=self.start),)


def weights(recipe: Mapping[str, Any]) -> Vector:
    return np.array([model["parameters"]["weight"] for model in recipe["models"]])


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """``noise``: the standard deviation of what is added to each candidate's cost."""

    function: str
    dimensions: int
    noise: float = 0.0

    def cost(self, recipe: Mapping[str, Any], seed: int) -> float:
        optimum = np.random.RandomState(1000 + seed).uniform(0.2, 0.8, self.dimensions)
        return FUNCTIONS[self.function](weights(recipe) - optimum)


class _Watcher(Observer):
    """The true cost of the mean of the distribution, as it falls."""

    def __init__(self, problem: Problem, fleet: SimulatedFleet, seed: int) -> None:
        self.history: list[tuple[float, int, float]] = []  # virtual time, evaluations, cost
        self._problem = problem
        self._fleet = fleet
        self._seed = seed

    def on_generation(self, summary: GenerationSummary) -> None:
        cost = self._problem.cost(summary.mean_recipe, self._seed)
        self.history.append((self._fleet.now_s, summary.evaluations, cost))


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Medians over seeds of the cost of the mean, after the time in which the workers can do so many
    candidates if none ever waits, and after so many candidates.
    """

    at_time: float
    at_candidates: float


def measure(
    problem: Problem, scheduler: str, workers: int, candidates: int, seeds: int, folder: Path
) -> Standing:
    """Candidate times spread by 20 %; the popsize is the scheduler's default."""
    end_s = candidates / workers
    histories = [_search(problem, scheduler, workers, candidates, seed, folder) for seed in range(seeds)]
    return Standing(
        at_time=statistics.median(
            [cost for time_s, _, cost in history if time_s <= end_s][-1] for history in histories
        ),
        at_candidates=statistics.median(
            [cost for _, count, cost in history if count <= candidates][-1] for history in histories
        ),
    )


def _search(
    problem: Problem, scheduler: str, workers: int, candidates: int, seed: int, folder: Path
) -> list[tuple[float, int, float]]:
    noise = np.random.RandomState(seed)

    def outcome_of(job: Job) -> Scored:
        value = -(problem.cost(job.recipe, seed) + problem.noise * noise.randn())
        task = TaskResult(task="f", metric="acc,none", weight=1.0, value=value, items=(value,), item_ids=(0,))
        return Scored(report=Report(tasks=(task,)))

    space = Cube(problem.dimensions)
    settings = SearchSettings(
        seed=seed,
        popsize=default_popsize(problem.dimensions, workers if scheduler == "sync" else 1),
        scheduler=scheduler,
        max_fevals=candidates + workers,
    )
    fleet = SimulatedFleet(Conditions(workers=workers, mean_s=1.0, seed=seed), outcome_of)
    watcher = _Watcher(problem, fleet, seed)
    run = new_run(space, settings, batch_size=1, inputs={}, started_at="now")
    path = folder / "journal.jsonl"
    with closing(Journal.create(path, run)) as journal:
        run_search(space, settings, fleet, journal, [watcher])
    path.unlink()
    return watcher.history
