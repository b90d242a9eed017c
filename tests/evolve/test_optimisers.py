"""Optimisers behind ask/tell: bounds, kinds, failures, foreign points, seeds, and what they find."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from evolve.optimisers import (
    ALGORITHMS,
    Box,
    Optimiser,
    OptimiserSettings,
    Vector,
    default_popsize,
    describe,
    make_optimiser,
)
from genome.box import Kind

_D = 6
_LOWER = np.linspace(-1.0, 0.0, _D)
_UPPER = np.linspace(0.5, 3.0, _D)
_TARGET = np.linspace(-0.9, 2.9, _D)  # near the bounds on both ends


def distance(point: Vector) -> float:
    return float(np.sum((point - _TARGET) ** 2))


def make(**changes: object) -> Optimiser:
    settings = OptimiserSettings(**{"seed": 1, "popsize": 8, **changes})  # type: ignore[arg-type]
    box = Box(kinds=("real",) * _D, lower=_LOWER, upper=_UPPER)
    return make_optimiser(settings, box, (_LOWER + _UPPER) / 2)


def step(optimiser: Optimiser) -> list[Vector]:
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
        "from evolve.optimisers import Box, OptimiserSettings, make_optimiser\n"
        "kinds = ('real', 'integer', 'categorical', 'real', 'categorical')\n"
        "upper = np.array([1.0, 9.0, 3.0, 1.0, 1.0])\n"
        "box = Box(kinds=kinds, lower=np.zeros(5), upper=upper)\n"
        "optimiser = make_optimiser(OptimiserSettings(seed=5, popsize=6), box, np.zeros(5))\n"
        "optimiser.inject([upper])\n"
        "told = [(upper, 0.5)]\n"
        "for _ in range(4):\n"
        "    points = optimiser.ask()\n"
        "    optimiser.tell([*told, *((point, float(point.sum())) for point in points)])\n"
        "    told = []\n"
        "print(np.array(optimiser.ask()).tobytes().hex())\n"
    )
    root = Path(__file__).parents[2]
    asked = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "1", "4711")
    }
    assert len(asked) == 1


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
        Box(kinds=("real", "real"), lower=np.ones(2), upper=np.array([2.0, 1.0]))


def test_a_start_outside_the_bounds_is_refused() -> None:
    box = Box(kinds=("real", "real"), lower=np.zeros(2), upper=np.ones(2))
    with pytest.raises(ValueError, match="a start between its lower and upper bound"):
        make_optimiser(OptimiserSettings(seed=0, popsize=4), box, np.array([0.5, 2.0]))


@pytest.mark.parametrize(
    ("dimensions", "workers", "popsize"), [(1, 1, 4), (8, 1, 10), (8, 4, 12), (1000, 32, 32)]
)
def test_the_default_population_keeps_all_workers_busy(dimensions: int, workers: int, popsize: int) -> None:
    assert default_popsize(dimensions, workers) == popsize


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A function over a box, to be made small."""

    box: Box
    start: Vector
    cost: Callable[[Vector], float]


def problem(kinds: Sequence[Kind], upper: Sequence[float], cost: Callable[[Vector], float]) -> Problem:
    ends = np.array(upper, dtype=np.float64)
    box = Box(kinds=tuple(kinds), lower=np.zeros(len(ends)), upper=ends)
    return Problem(box=box, start=np.where(box.whole(), 0.0, ends / 2), cost=cost)


def integers() -> Problem:
    """Reals and layer boundaries on a valley that lies across both."""
    target = np.array([0.2, 0.7, 0.4, 0.9, 3.0, 12.0])
    scale = np.array([1.0, 1.0, 1.0, 1.0, 16.0, 16.0])

    def cost(point: Vector) -> float:
        away = (point - target) / scale
        return float(np.sum(away**2) + 10 * (away[0] - away[4]) ** 2 + 10 * (away[1] + away[5]) ** 2)

    return problem(["real"] * 4 + ["integer"] * 2, [1.0] * 4 + [16.0] * 2, cost)


def categories() -> Problem:
    """Methods with parameters of their own: where the optimum lies depends on what is chosen."""
    target = np.array([[0.3, 0.6, 0.5, 0.2], [0.7, 0.4, 0.1, 0.8], [0.5, 0.9, 0.7, 0.4]])
    height = np.array([0.3, 0.0, 0.2])

    def cost(point: Vector) -> float:
        chosen = int(point[4])
        others = 0.2 * (point[5] != 1.0) + 0.1 * (point[6] != 3.0)
        return float(np.sum((point[:4] - target[chosen]) ** 2) + height[chosen] + others)

    return problem(["real"] * 4 + ["categorical"] * 3, [1.0] * 4 + [2.0, 1.0, 3.0], cost)


def switches() -> Problem:
    """Sixty on/off genes of different worth, twenty of which have a number that counts only while they are
    on.
    """
    random = np.random.RandomState(0)
    wanted, worth = random.randint(0, 2, 60), random.uniform(0.2, 2.0, 60)

    def cost(point: Vector) -> float:
        genes, numbers = point[:60], point[60:]
        return float(worth @ (genes != wanted) + 0.1 * genes[:20] @ (numbers - 0.7) ** 2)

    return problem(["categorical"] * 60 + ["real"] * 20, [1.0] * 80, cost)


def only_switches() -> Problem:
    """Blocks of three that pay only together, but one step at a time leads astray in some."""
    wanted = np.random.RandomState(3).randint(0, 2, 12)

    def cost(point: Vector) -> float:
        right = (point == wanted).reshape(4, 3).sum(axis=1)
        return float(np.choose(right, (0.8, 0.9, 0.6, 0.0)).sum())

    return problem(["categorical"] * 12, [1.0] * 12, cost)


PROBLEMS = [integers, categories, switches, only_switches]


def search(given: Problem, seed: int, evaluations: int = 300, **changes: object) -> tuple[float, Optimiser]:
    """The lowest cost that is found, and the optimiser afterwards."""
    settings = OptimiserSettings(**{"seed": seed, "popsize": 12, **changes})  # type: ignore[arg-type]
    optimiser = make_optimiser(settings, given.box, given.start)
    costs = [given.cost(given.start)]
    while len(costs) < evaluations:
        points = optimiser.ask()
        for point in points:
            assert np.all((given.box.lower <= point) & (point <= given.box.upper))
            assert np.all(point[given.box.whole()] % 1 == 0)
        told = [(point, given.cost(point)) for point in points]
        costs += [cost for _, cost in told]
        optimiser.tell(told)
    return min(costs), optimiser


def guess(given: Problem, seed: int, evaluations: int = 300) -> float:
    random = np.random.RandomState(seed)
    return min(given.cost(given.box.draw(random)) for _ in range(evaluations))


@pytest.mark.parametrize("make_problem", PROBLEMS)
def test_every_kind_of_problem_is_solved_far_better_than_by_guessing(
    make_problem: Callable[[], Problem],
) -> None:
    given = make_problem()
    found = np.median([search(given, seed)[0] for seed in range(5)])
    guessed = np.median([guess(given, seed) for seed in range(5)])
    assert found < 0.5 * guessed


@pytest.mark.parametrize("make_problem", [integers, categories, only_switches])
def test_the_mean_of_a_long_search_is_the_optimum(make_problem: Callable[[], Problem]) -> None:
    given = make_problem()
    ends = [given.cost(search(given, seed, 1500)[1].mean()) for seed in range(3)]
    assert np.median(ends) < 0.05


@pytest.mark.parametrize("make_problem", PROBLEMS)
def test_the_seed_decides_everything_whatever_the_kinds(make_problem: Callable[[], Problem]) -> None:
    given = make_problem()
    np.random.seed(5)
    state = np.random.get_state()[1]
    _, first = search(given, 1, 100)
    np.random.seed(6)
    _, again = search(given, 1, 100)
    _, other = search(given, 2, 100)
    assert np.array_equal(first.ask(), again.ask())
    assert not np.array_equal(first.ask(), other.ask())
    np.random.seed(5)
    assert np.array_equal(np.random.get_state()[1], state)
    search(given, 1, 50)
    assert np.array_equal(np.random.get_state()[1], state), "numpy's generator was touched"


@pytest.mark.parametrize("make_problem", PROBLEMS)
def test_a_known_point_is_learnt_from_whatever_the_kinds(make_problem: Callable[[], Problem]) -> None:
    given = make_problem()
    settings = OptimiserSettings(seed=1, popsize=12)
    plain = make_optimiser(settings, given.box, given.start)
    told = make_optimiser(settings, given.box, given.start)
    corner = given.box.upper.copy()
    told.inject([corner])
    points = told.ask()
    assert len(points) == 11
    told.tell([(corner, -1.0), *((point, 1.0) for point in points)])
    points = plain.ask()
    assert len(points) == 12
    plain.tell([(point, 1.0) for point in points])
    assert np.linalg.norm(told.mean() - corner) < np.linalg.norm(plain.mean() - corner)
    assert len(told.ask()) == 12


@pytest.mark.parametrize("make_problem", PROBLEMS)
def test_failures_and_parts_of_generations_are_taken_whatever_the_kinds(
    make_problem: Callable[[], Problem],
) -> None:
    given = make_problem()
    optimiser = make_optimiser(OptimiserSettings(seed=1, popsize=12), given.box, given.start)
    optimiser.tell([(point, math.inf) for point in optimiser.ask()])
    points = optimiser.ask()
    optimiser.tell([(point, math.inf if i % 3 else given.cost(point)) for i, point in enumerate(points[:5])])
    assert len(optimiser.ask()) == 12
    assert np.all(np.isfinite(optimiser.mean()))
    assert np.all(optimiser.std() >= 0)


def state(optimiser: Optimiser) -> tuple[list[bytes], float]:
    vectors = [optimiser.mean(), optimiser.std(), *optimiser.ask()]
    return [vector.tobytes() for vector in vectors], optimiser.sigma()


@pytest.mark.parametrize("make_problem", PROBLEMS)
def test_what_was_asked_and_never_told_changes_nothing(make_problem: Callable[[], Problem]) -> None:
    given = make_problem()
    settings = OptimiserSettings(seed=1, popsize=12)
    once, often = (make_optimiser(settings, given.box, given.start) for _ in range(2))

    def tell(points: Sequence[Vector], same: Sequence[Vector]) -> None:
        assert np.array_equal(points, same)
        costs = [given.cost(point) for point in points]
        once.tell(zip(points, costs, strict=True))
        often.tell(zip(same, costs, strict=True))

    for _ in range(3):
        now, late = (once.ask(), often.ask()), (once.ask(), often.ask())
        more = [often.ask() for _ in range(40)]  # pycma forgets those that were asked before
        assert not np.array_equal(more[0], more[1])
        assert not np.array_equal(more[0], now[0])
        tell(*now)
        once.ask(), often.ask()
        tell(*late)
    assert state(once) == state(often)


@pytest.mark.parametrize("make_problem", PROBLEMS)
def test_points_older_than_the_latest_tell_are_learnt_from(make_problem: Callable[[], Problem]) -> None:
    given = make_problem()
    settings = OptimiserSettings(seed=1, popsize=12)
    plain, late = (make_optimiser(settings, given.box, given.start) for _ in range(2))
    for optimiser in (plain, late):
        first = optimiser.ask()
        old = optimiser.ask()
        optimiser.tell([(point, given.cost(point)) for point in first])
        fresh = optimiser.ask()
        told = fresh if optimiser is plain else [*fresh[6:], *old[6:]]
        optimiser.tell([(point, given.cost(point)) for point in told])
    assert state(plain) != state(late)
    assert np.all(np.isfinite(late.mean()))


def test_a_late_point_counts_for_what_it_is() -> None:
    """It is not clipped, as a foreign one is: the mean goes to where the best late points lie."""
    optimiser = make(popsize=8)
    late = [optimiser.ask() for _ in range(30)][-1]
    for _ in range(2):
        step(optimiser)
    optimiser.ask()
    ranked = sorted(late, key=distance)
    optimiser.tell([(point, distance(point)) for point in late])
    weights = np.log(4.5) - np.log(np.arange(1, 5))
    expected = np.average(ranked[:4], axis=0, weights=weights)
    assert np.linalg.norm(optimiser.mean() - expected) < 0.2 * np.linalg.norm(ranked[0] - ranked[3])


def test_equal_points_are_told_apart_and_each_but_once() -> None:
    given = problem(["integer"] * 2, [2.0, 2.0], lambda point: float(point.sum()))
    optimiser = make_optimiser(OptimiserSettings(seed=1, popsize=8), given.box, given.start)
    points = optimiser.ask()
    assert len({point.tobytes() for point in points}) < 8
    optimiser.tell([(point, given.cost(point)) for point in reversed(points)])
    with pytest.raises(ValueError, match=r"only the very arrays that were asked .* and those once"):
        optimiser.tell([(points[0], 1.0)])
    with pytest.raises(ValueError, match="only the very arrays"):
        optimiser.tell([(points[0].copy(), 1.0)])


def test_many_switches_stay_near_the_start_at_first_and_few_do_not() -> None:
    def first(count: int) -> Vector:
        given = problem(["categorical"] * count, [1.0] * count, lambda point: 0.0)
        optimiser = make_optimiser(OptimiserSettings(seed=0, popsize=200), given.box, given.start)
        return np.array(optimiser.ask()).sum(axis=1)

    assert 3.0 < first(100).mean() < 5.0
    assert 1.3 < first(3).mean() < 1.7


def test_alternatives_are_all_reached_and_no_others() -> None:
    given = problem(["categorical"] * 3, [1.0, 4.0, 2.0], lambda point: 0.0)
    optimiser = make_optimiser(OptimiserSettings(seed=0, popsize=200), given.box, given.start)
    seen = np.array(optimiser.ask())
    assert [sorted(set(column)) for column in seen.T] == [[0, 1], [0, 1, 2, 3, 4], [0, 1, 2]]


def test_integers_keep_moving_between_whole_numbers() -> None:
    _, optimiser = search(integers(), 1, 1500)
    last = np.array([optimiser.ask() for _ in range(10)]).reshape(-1, 6)
    assert len(set(last[:, 4])) > 1


@pytest.mark.parametrize("kind", ["real", "integer", "categorical"])
def test_one_dimension_is_enough(kind: Kind) -> None:
    given = problem([kind], [8.0], lambda point: float((point[0] - 6.0) ** 2))
    best, optimiser = search(given, 0, 200)
    assert best < 1e-3
    assert optimiser.mean().shape == optimiser.std().shape == (1,)
    assert abs(optimiser.mean()[0] - 6.0) < 0.1


def test_a_restart_of_a_mixed_search_begins_anew_with_twice_the_population() -> None:
    given = categories()
    settings = OptimiserSettings(seed=0, popsize=8, restarts=1)
    optimiser = make_optimiser(settings, given.box, given.start)
    sizes: list[int] = []
    while len(sizes) < 600 and 16 not in sizes:
        points = optimiser.ask()
        sizes.append(len(points))
        optimiser.tell([(point, given.cost(point)) for point in points])
    assert sizes[-1] == 16
    assert given.cost(optimiser.mean()) < 0.4, "the mean of the better run"


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (["real"] * 3, "CMA-ES over 3 reals"),
        (["real", "integer", "integer"], "CMA-ES over 1 real and 2 integers"),
        (["categorical"], "elite distribution over 1 categorical"),
        (["real", "categorical"] * 2, "CMA-ES over 2 reals, elite distribution over 2 categoricals"),
    ],
)
def test_what_will_search_is_said_in_words(kinds: list[Kind], words: str) -> None:
    assert describe(kinds, "cma") == words
    assert describe(kinds, "sep-cma") == words.replace("CMA-ES", "sep-CMA-ES")
