"""CMA-ES behind ask/tell: bounds, failures, foreign points, seeds."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evolve.optimiser import ALGORITHMS, CmaEs, CmaSettings, Vector, default_popsize

_D = 6
_LOWER = np.linspace(-1.0, 0.0, _D)
_UPPER = np.linspace(0.5, 3.0, _D)
_TARGET = np.linspace(-0.9, 2.9, _D)  # near the bounds on both ends


def distance(point: Vector) -> float:
    return float(np.sum((point - _TARGET) ** 2))


def make(**changes: object) -> CmaEs:
    settings = CmaSettings(**{"seed": 1, "popsize": 8, **changes})  # type: ignore[arg-type]
    return CmaEs(settings, start=(_LOWER + _UPPER) / 2, lower=_LOWER, upper=_UPPER)


def step(optimiser: CmaEs) -> list[Vector]:
    points = optimiser.ask()
    optimiser.tell([(point, distance(point)) for point in points])
    return points


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_finds_the_lowest_point_and_never_leaves_the_bounds(algorithm: str) -> None:
    optimiser = make(algorithm=algorithm)
    asked = [point for _ in range(120) for point in step(optimiser)]
    assert all(np.all(point >= _LOWER) and np.all(point <= _UPPER) for point in asked)
    assert distance(optimiser.mean()) < 1e-4


def test_stops_when_steps_no_longer_matter() -> None:
    optimiser = make()
    assert optimiser.stopped() is None
    for _ in range(1000):
        step(optimiser)
        if optimiser.stopped() is not None:
            break
    assert optimiser.stopped() == "converged (tolx)"
    assert np.all(optimiser.std() < 1e-3)


def test_the_seed_decides_everything_and_the_global_generator_nothing() -> None:
    np.random.seed(3)
    state = np.random.get_state()[1]
    first = [step(make_) for make_ in [make()] for _ in range(5)]
    np.random.seed(4)
    again = [step(make_) for make_ in [make()] for _ in range(5)]
    other = [step(make_) for make_ in [make(seed=2)] for _ in range(5)]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    np.random.seed(3)
    assert np.array_equal(np.random.get_state()[1], state)
    step(make())
    assert np.array_equal(np.random.get_state()[1], state), "building or asking touched numpy's generator"


def test_one_result_in_processes_with_different_hash_seeds() -> None:
    program = (
        "import numpy as np\n"
        "from evolve.optimiser import CmaEs, CmaSettings\n"
        "optimiser = CmaEs(CmaSettings(seed=5, popsize=6), start=np.full(4, 0.3), lower=np.zeros(4),"
        " upper=np.ones(4))\n"
        "optimiser.inject([np.ones(4)])\n"
        "told = [(np.ones(4), 0.5)]\n"
        "for _ in range(4):\n"
        "    points = optimiser.ask()\n"
        "    optimiser.tell([*told, *((point, float(point.sum())) for point in points)])\n"
        "    told = []\n"
        "print(optimiser.mean().tobytes().hex())\n"
    )
    root = Path(__file__).parents[2]
    means = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "1", "4711")
    }
    assert len(means) == 1


def test_a_generation_of_failures_leaves_the_distribution_as_it_is() -> None:
    optimiser = make()
    step(optimiser)
    before = optimiser.mean(), optimiser.sigma(), optimiser.std()
    optimiser.tell([(point, math.inf) for point in optimiser.ask()])
    after = optimiser.mean(), optimiser.sigma(), optimiser.std()
    assert all(np.array_equal(old, new) for old, new in zip(before, after, strict=True))
    step(optimiser)
    assert not np.array_equal(optimiser.mean(), before[0])


def test_a_failure_ranks_behind_the_worst_score() -> None:
    failed, bad = make(), make()
    for optimiser, worst in ((failed, math.inf), (bad, 1e9)):
        points = optimiser.ask()
        costs = [distance(point) for point in points]
        costs[2] = worst
        optimiser.tell(zip(points, costs, strict=True))
    assert np.array_equal(failed.mean(), bad.mean())
    assert np.array_equal(failed.std(), bad.std())


def test_half_a_generation_is_learnt_from_and_less_is_not() -> None:
    few, half = make(), make()
    start = few.mean()
    few.tell([(point, distance(point)) for point in few.ask()[:3]])
    half.tell([(point, distance(point)) for point in half.ask()[:4]])
    assert np.array_equal(few.mean(), start)
    assert not np.array_equal(half.mean(), start)


def test_injected_points_make_room_and_pull_the_mean_without_blowing_up_the_step() -> None:
    plain, injected = make(), make()
    corner = _UPPER.copy()
    injected.inject([corner])
    points = injected.ask()
    assert len(points) == 7
    injected.tell([(corner, -1.0), *((point, distance(point)) for point in points)])
    step(plain)
    assert np.linalg.norm(injected.mean() - corner) < np.linalg.norm(plain.mean() - corner)
    assert np.all(injected.mean() < corner)
    assert injected.sigma() < 2 * plain.sigma()
    assert len(injected.ask()) == 8


def test_many_injected_points_leave_half_of_the_generation_to_samples() -> None:
    optimiser = make()
    known = [np.clip(_LOWER + 0.1 * number, _LOWER, _UPPER) for number in range(9)]
    optimiser.inject(known)
    points = optimiser.ask()
    assert len(points) == 4
    optimiser.tell([(point, distance(point)) for point in [*known, *points]])


def test_restarts_double_the_population_and_keep_the_better_mean() -> None:
    optimiser = make(restarts=1)
    sizes = []
    for _ in range(400):
        sizes.append(len(step(optimiser)))
        if sizes[-1] == 16:
            break
    assert sizes[0] == 8
    assert sizes[-1] == 16
    assert distance(optimiser.mean()) < 1e-4, "the mean of the run before the restart is the better one"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "adam"}, "unknown optimizer 'adam'; known: cma, sep-cma"),
        ({"popsize": 3}, "popsize is 3; CMA-ES needs at least 4"),
        ({"sigma0": 0.0}, "sigma0 is 0.0; it is a share of the range"),
        ({"restarts": -1}, "restarts is -1; it cannot be negative"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_a_coordinate_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="lower < upper"):
        CmaEs(CmaSettings(seed=0, popsize=4), start=np.ones(2), lower=np.ones(2), upper=np.array([2.0, 1.0]))


@pytest.mark.parametrize(
    ("dimensions", "workers", "popsize"), [(1, 1, 4), (8, 1, 10), (8, 4, 12), (1000, 32, 32)]
)
def test_the_default_population_keeps_all_workers_busy(dimensions: int, workers: int, popsize: int) -> None:
    assert default_popsize(dimensions, workers) == popsize
