"""Candidates as workers come free: what is asked and told when, budgets, kills at any moment, copies."""

from __future__ import annotations

import itertools
import math
import random
import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import evolve.search
from evolve.errors import JournalError, RepeatedFailureError, ReplayError
from evolve.evaluator import Evaluation
from evolve.fleet import Done, Job
from evolve.journal import Journal, canonical, read_journal
from evolve.ledger import is_spent
from evolve.observer import GenerationSummary, Observer, SearchResult
from evolve.optimisers import Optimiser
from evolve.outcome import Failed, cost
from evolve.records import MEAN, SAMPLE, CandidateRecord, RunRecord
from evolve.search import SearchSettings, new_run, run_search
from genome.box import Kind
from genome.errors import RefusedRecipe
from merge_engine.errors import Problem
from merge_engine.spec.recipe import Recipe
from tests.fault.inline_fleet import InlineFleet
from tests.fault.toy import CoarseSpace, ToyBaseline, ToyEvaluator, ToyFactory, ToySpace

SETTINGS = SearchSettings(seed=3, popsize=6, max_fevals=40, scheduler="async")
Place = tuple[int, int]


class Killed(Exception):
    """What the driver never sees when it is killed in earnest."""


class ShuffledFleet(InlineFleet):
    """Jobs finish in an order drawn by ``seed``; ``on_wait`` is called before each wait."""

    def __init__(
        self, capacity: int = 4, seed: int = 0, on_wait: Callable[[ShuffledFleet], None] | None = None
    ) -> None:
        super().__init__(ToyEvaluator(ToyFactory(scratch=Path())), capacity)
        self._order = random.Random(seed)
        self._on_wait = on_wait or (lambda fleet: None)

    @property
    def jobs(self) -> Sequence[Job]:
        return self._jobs

    def wait(self, timeout_s: float) -> list[Done]:
        self._on_wait(self)
        self._order.shuffle(self._jobs)
        return super().wait(timeout_s)


class Recorder(Observer):
    def __init__(self) -> None:
        self.summaries: list[GenerationSummary] = []

    def on_generation(self, summary: GenerationSummary) -> None:
        self.summaries.append(summary)


def search(
    path: Path,
    settings: SearchSettings = SETTINGS,
    fleet: InlineFleet | None = None,
    *observers: Observer,
    space: ToySpace | None = None,
) -> SearchResult:
    space = space or ToySpace()
    if path.exists():
        journal = Journal.open(path)
    else:
        journal = Journal.create(path, new_run(space, settings, batch_size=4, inputs={}, started_at="now"))
    try:
        return run_search(space, settings, fleet or ShuffledFleet(), journal, observers)
    finally:
        journal.close()


def lines(path: Path) -> tuple[CandidateRecord, ...]:
    """In the order in which they finished."""
    return read_journal(path).candidates


def samples(path: Path) -> list[CandidateRecord]:
    return [record for record in lines(path) if record.origin == SAMPLE]


def content(path: Path) -> list[dict[str, Any]]:
    return canonical(lines(path))


def place(record: CandidateRecord) -> Place:
    return (record.generation, record.index)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


@pytest.mark.parametrize("space", [ToySpace(), CoarseSpace()])
def test_with_one_worker_it_is_the_search_that_waits_for_generations(
    path: Path, tmp_path: Path, space: ToySpace
) -> None:
    search(path, SETTINGS, ShuffledFleet(1), space=space)
    search(tmp_path / "sync", replace(SETTINGS, scheduler="sync"), ShuffledFleet(1), space=space)
    found, expected = content(path), content(tmp_path / "sync")
    assert found[:-1] == expected[:-1]
    assert found[-1]["recipe"] == expected[-1]["recipe"]


@pytest.mark.parametrize("capacity", [2, 5, 6, 7, 30])
def test_no_worker_waits_once_the_baselines_are_scored(path: Path, capacity: int) -> None:
    running: list[int] = []
    search(path, SETTINGS, ShuffledFleet(capacity, on_wait=lambda fleet: running.append(len(fleet.jobs))))
    budget_ends = SETTINGS.max_fevals - 1  # beside the mean
    after_baselines = running[4:-1]
    expected = [min(capacity, budget_ends - 4 - done) for done in range(len(after_baselines))]
    assert after_baselines == expected


def test_the_optimiser_is_told_in_groups_as_outcomes_arrive(path: Path) -> None:
    recorder = Recorder()
    search(path, SETTINGS, ShuffledFleet(5), recorder)
    assert [summary.generation for summary in recorder.summaries] == [1, 2, 3, 4, 5, 6]
    told = [record.id for summary in recorder.summaries for record in summary.candidates]
    assert told == [record.id for record in samples(path)][: len(told)]
    assert [len(summary.candidates) for summary in recorder.summaries] == [4, 6, 6, 6, 6, 6], (
        "two sources are told beside the samples of generation 1, the third is its start"
    )
    late = [s.generation - record.generation for s in recorder.summaries for record in s.candidates]
    assert 0 <= min(late) < max(late), "points that were drawn before the latest tell count, too"


def test_a_candidate_s_generation_is_one_more_than_the_tells_before_it_was_drawn(path: Path) -> None:
    recorder, drawn = Recorder(), dict[int, int]()

    def note(fleet: ShuffledFleet) -> None:
        for job in fleet.jobs:
            drawn.setdefault(job.id, len(recorder.summaries) + 1)

    search(path, SETTINGS, ShuffledFleet(5, on_wait=note), recorder)
    assert {record.id: record.generation for record in samples(path)} == {
        record.id: drawn[record.id] for record in samples(path)
    }


@pytest.mark.parametrize("budget", [1, 6, 11, 40])
def test_a_budget_is_met_exactly_and_ends_with_the_mean(path: Path, budget: int) -> None:
    result = search(path, replace(SETTINGS, max_fevals=budget))
    found = lines(path)
    assert len(found) == result.evaluations == budget
    assert sorted(record.id for record in found) == list(range(budget))
    assert [record.origin for record in found].count(MEAN) == 1
    assert result.mean == found[-1]
    assert result.stopped_because == "budget"


def test_a_finished_search_scores_nothing_more(path: Path) -> None:
    first = search(path)
    before, fleet, recorder = path.read_bytes(), ShuffledFleet(), Recorder()
    assert search(path, SETTINGS, fleet, recorder) == first
    assert (fleet.evaluated, recorder.summaries) == ([], [])
    assert path.read_bytes() == before


def test_a_larger_budget_goes_on_as_if_there_had_been_no_end(path: Path, tmp_path: Path) -> None:
    for budget in (6, 17, 31):
        search(path, replace(SETTINGS, max_fevals=budget), ShuffledFleet(1))
    search(tmp_path / "straight", replace(SETTINGS, max_fevals=29), ShuffledFleet(1))

    def points(path: Path) -> list[tuple[Any, ...]]:
        return [(*place(record), record.recipe, cost(record.outcome)) for record in samples(path)]

    assert points(path) == points(tmp_path / "straight")
    assert lines(path)[-1].recipe == lines(tmp_path / "straight")[-1].recipe


def test_a_smaller_budget_than_was_spent_scores_nothing(path: Path) -> None:
    search(path)
    fleet = ShuffledFleet()
    assert search(path, replace(SETTINGS, max_fevals=10), fleet).evaluations == 40
    assert fleet.evaluated == []


class MixedSpace(CoarseSpace):
    """A real, an integer and a categorical; the integer gives many points equal coordinates in CMA-ES."""

    kinds: tuple[Kind, ...] = ("real", "integer", "categorical")

    def encode(self, recipe: Recipe) -> NDArray[np.float64] | None:
        return None


State = tuple[bytes, float, bytes]


@pytest.fixture
def optimisers(monkeypatch: pytest.MonkeyPatch) -> list[Optimiser]:
    """The optimisers of all searches of a test, the latest last."""
    made: list[Optimiser] = []

    def make(*args: Any) -> Optimiser:
        made.append(make_optimiser(*args))
        return made[-1]

    make_optimiser = evolve.search.make_optimiser
    monkeypatch.setattr(evolve.search, "make_optimiser", make)
    return made


def state(optimiser: Optimiser) -> State:
    return (optimiser.mean().tobytes(), optimiser.sigma(), optimiser.std().tobytes())


def killed_at(wait: int) -> Callable[[ShuffledFleet], None]:
    """Kills the driver when it waits for the ``wait``-th time, the first is 0."""
    waits = itertools.count()

    def on_wait(fleet: ShuffledFleet) -> None:
        if next(waits) == wait:
            raise Killed

    return on_wait


class InterruptedAtOnce(Observer):
    """Presses Ctrl-C before anything but the journal was looked at."""

    def on_start(self, run: RunRecord, replayed: tuple[CandidateRecord, ...]) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("space", [ToySpace(), MixedSpace(), CoarseSpace()], ids=["real", "mixed", "coarse"])
@pytest.mark.parametrize("capacity", [1, 3, 20])
def test_killed_after_any_line_it_stands_where_it_was_and_draws_the_same(
    path: Path, tmp_path: Path, optimisers: list[Optimiser], space: ToySpace, capacity: int
) -> None:
    settings = replace(SETTINGS, popsize=5, max_fevals=36)
    before: dict[int, tuple[State, int]] = {}  # how many lines there were -> what was the case then
    recorder = Recorder()

    def note(fleet: ShuffledFleet) -> None:
        if optimisers:
            before[len(lines(path))] = (state(optimisers[-1]), len(recorder.summaries) + 1)

    search(path, settings, ShuffledFleet(capacity, on_wait=note), recorder, space=space)
    header, *written = path.read_bytes().splitlines(keepends=True)
    recipes = {place(record): record.recipe for record in samples(path)}
    compared = 0
    for count, (expected, generation) in list(before.items())[:-1]:
        kept = tmp_path / f"{count}.jsonl"
        kept.write_bytes(header + b"".join(written[:count]))
        search(kept, settings, ShuffledFleet(capacity), InterruptedAtOnce(), space=space)
        assert state(optimisers[-1]) == expected
        if type(space) is CoarseSpace:
            continue  # what equals an earlier candidate never becomes a job
        fleet = ShuffledFleet(capacity, on_wait=killed_at(0))
        with pytest.raises(Killed):
            search(kept, settings, fleet, space=space)
        places = {place(record) for record in samples(kept)}
        missing = ((generation, index) for index in itertools.count() if (generation, index) not in places)
        for job, its_place in zip(fleet.jobs, missing, strict=False):
            assert job.recipe == recipes.get(its_place, job.recipe)
            compared += its_place in recipes
    assert compared > 25 or type(space) is CoarseSpace


@pytest.mark.parametrize("space", [ToySpace(), CoarseSpace()], ids=["real", "coarse"])
def test_killed_again_and_again_it_loses_nothing_that_was_written_and_scores_nothing_twice(
    path: Path, space: ToySpace
) -> None:
    settings = replace(SETTINGS, max_fevals=40 if type(space) is ToySpace else 24)
    moments = random.Random(5)
    for number in range(12):
        before = path.read_bytes() if path.exists() else b""
        with pytest.raises(Killed):
            search(path, settings, ShuffledFleet(4, number, killed_at(moments.randint(0, 3))), space=space)
        assert path.read_bytes().startswith(before)
    result = search(path, settings, space=space)
    assert result.stopped_because == "budget"
    assert is_spent(lines(path), settings.max_fevals)
    assert result.evaluations <= settings.max_fevals
    found = lines(path)
    if type(space) is ToySpace:
        assert sorted(record.id for record in found) == list(range(40)), "no number is left out"
    assert len({place(record) for record in samples(path)}) == len(samples(path))
    scored = [record.recipe for record in found if record.evaluated]
    assert all(recipe not in scored[:number] for number, recipe in enumerate(scored))


def test_a_line_lost_from_the_middle_is_noticed(path: Path) -> None:
    search(path, SETTINGS, ShuffledFleet(1))
    header, *written = path.read_text().splitlines(keepends=True)
    path.write_text(header + "".join(written[:10] + written[11:]))
    message = (
        r"candidate \d+ is of generation 3, but the lines before it are too few for that: some are missing"
    )
    with pytest.raises(ReplayError, match=message):
        search(path)
    del written[5]
    swapped = [written[6], *written[:6], *written[7:]]
    path.write_text(header + "".join(swapped))
    with pytest.raises(ReplayError):
        search(path)


@pytest.mark.parametrize("number", [2, 8, 20, 37])
def test_without_a_damaged_line_and_all_after_it_a_search_comes_to_the_same_end(
    path: Path, number: int
) -> None:
    search(path, SETTINGS, ShuffledFleet(1))
    whole, written = content(path), path.read_text().splitlines(keepends=True)
    damaged = [*written[: number - 1], written[number - 1].replace("{", ""), *written[number:]]
    path.write_text("".join(damaged))
    message = (
        rf"line {number} is damaged .* remove that line \(with scheduler: async, all lines after it, too\)"
    )
    with pytest.raises(JournalError, match=message):
        search(path, SETTINGS, ShuffledFleet(1))
    path.write_text("".join(written[: number - 1]))
    search(path, SETTINGS, ShuffledFleet(1))
    assert content(path) == whole


def test_what_is_said_of_a_missing_line_leads_back_to_a_search_of_the_same_budget(path: Path) -> None:
    search(path, SETTINGS, ShuffledFleet(3))
    written = path.read_text().splitlines(keepends=True)
    path.write_text("".join(written[:9] + written[10:]))
    with pytest.raises(ReplayError, match="or remove that candidate's line and all after it") as refused:
        search(path, SETTINGS, ShuffledFleet(3))
    number = re.search(r"candidate (\d+)", str(refused.value))
    assert number is not None
    first = next(i for i, line in enumerate(written) if f'"id":{number[1]},' in line)
    path.write_text("".join(written[:9] + written[10:first]))
    result = search(path, SETTINGS, ShuffledFleet(3))
    assert result.stopped_because == "budget"
    assert result.evaluations == SETTINGS.max_fevals


def test_a_recipe_that_does_not_come_out_again_is_noticed(path: Path) -> None:
    search(path)
    path.write_text(path.read_text().replace('"weight":0.', '"weight":0.0'))
    with pytest.raises(ReplayError, match=r"candidate \d+ does not come out again"):
        search(path)


COARSE = replace(SETTINGS, max_fevals=24)


@pytest.mark.parametrize("capacity", [1, 4, 30])
def test_equal_recipes_are_scored_once_also_while_the_first_is_in_flight(path: Path, capacity: int) -> None:
    fleet = ShuffledFleet(capacity)
    result = search(path, COARSE, fleet, space=CoarseSpace())
    found = {record.id: record for record in lines(path)}
    scored = [record.recipe for record in found.values() if record.evaluated]
    assert [job.recipe for job in fleet.evaluated] == scored
    assert all(recipe not in scored[:number] for number, recipe in enumerate(scored))
    assert result.evaluations == len(scored)
    copies = [record for record in found.values() if record.copied_from is not None]
    assert len(copies) > 3
    for record in copies:
        original = found[record.copied_from]  # type: ignore[index]
        assert (original.recipe, original.outcome) == (record.recipe, record.outcome)
        assert original.evaluated


@pytest.mark.parametrize("capacity", [1, 3, 50])
def test_a_search_that_finds_nothing_new_ends_and_ends_again(path: Path, capacity: int) -> None:
    settings = replace(SETTINGS, max_fevals=500)
    result = search(path, settings, ShuffledFleet(capacity), space=CoarseSpace())
    assert result.stopped_because == "no new recipe in the last 20 generations"
    assert result.evaluations < 5 * 5 * 3
    before, fleet = path.read_bytes(), ShuffledFleet(capacity)
    again = search(path, settings, fleet, space=CoarseSpace())
    assert (again.stopped_because, fleet.evaluated) == (result.stopped_because, [])
    assert path.read_bytes() == before


def test_a_refused_recipe_is_a_failure_that_costs_nothing(path: Path) -> None:
    class Picky(CoarseSpace):
        def decode(self, vector: NDArray[np.float64]) -> Recipe:
            if vector[0] > 2:
                raise RefusedRecipe([Problem("a", "is too heavy")])
            return super().decode(vector)

        def baselines(self) -> Sequence[ToyBaseline]:
            return [ToyBaseline(name="start", recipe=self.decode(self.start), vector=self.start)]

    search(path, replace(COARSE, seed=4, max_fevals=40), space=Picky())
    refused = [record for record in lines(path) if not record.recipe]
    assert len(refused) >= 8, "as many failures of one kind would have ended the search"
    assert {record.outcome for record in refused} == {Failed(stage="decode", reason="a: is too heavy")}
    assert not any(record.evaluated for record in refused)


class Failing(ToyEvaluator):
    """Fails from the ``first``-th evaluation on, every ``step``-th time."""

    def __init__(self, first: int, step: int) -> None:
        super().__init__(ToyFactory(scratch=Path()))
        self._first = first
        self._step = step
        self._count = itertools.count()

    def evaluate(self, recipe: Any, split: Any) -> Evaluation:
        evaluation = super().evaluate(recipe, split)
        number = next(self._count) - self._first
        if number < 0 or number % self._step:
            return evaluation
        return replace(evaluation, outcome=Failed(stage="score", reason="no memory"))


def test_failures_are_journalled_rank_worst_and_the_search_goes_on(path: Path) -> None:
    result = search(path, SETTINGS, InlineFleet(Failing(5, 3), 4))
    assert result.evaluations == 40
    assert sum(isinstance(record.outcome, Failed) for record in lines(path)) == 12
    assert result.best is not None
    assert cost(result.best.outcome) < math.inf
    before = path.read_bytes()
    assert search(path).evaluations == 40
    assert path.read_bytes() == before


def test_the_same_failure_again_and_again_ends_the_search(path: Path) -> None:
    with pytest.raises(RepeatedFailureError, match=r"the last 8 candidates failed .*\(score: no memory\)"):
        search(path, SETTINGS, InlineFleet(Failing(6, 1), 4))
    assert len(lines(path)) == 14


def test_when_time_is_up_what_runs_is_finished_and_the_mean_is_scored(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = itertools.count()
    monkeypatch.setattr("evolve.session.time.monotonic", lambda: next(now_s))
    fleet = ShuffledFleet(5)
    result = search(path, replace(SETTINGS, time_limit_s=25.0), fleet)
    assert result.stopped_because == "time"
    assert not fleet.jobs
    found = lines(path)
    assert 4 < len(found) < 40
    assert found[-1].origin == MEAN
    assert sorted(record.id for record in found) == list(range(len(found)))


class Stopper(Observer):
    """Presses Ctrl-C after so many candidates."""

    def __init__(self, count: int) -> None:
        self._left = count

    def on_candidate(self, record: CandidateRecord) -> None:
        self._left -= 1
        if self._left == 0:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("count", [2, 11])
def test_ctrl_c_drops_what_is_in_flight_and_the_search_goes_on_later(path: Path, count: int) -> None:
    result = search(path, SETTINGS, ShuffledFleet(4), Stopper(count))
    assert (result.stopped_because, result.evaluations, result.mean) == ("interrupted", count, None)
    result = search(path)
    assert (result.stopped_because, result.evaluations) == ("budget", 40)
    assert sorted(record.id for record in lines(path)) == list(range(40))


def test_points_of_a_run_before_a_restart_are_not_told_to_the_next(
    path: Path, optimisers: list[Optimiser]
) -> None:
    recorder = Recorder()
    settings = replace(SETTINGS, popsize=4, restarts=1, max_fevals=600)
    search(path, settings, ShuffledFleet(7), recorder)
    assert optimisers[-1].run == 1
    sizes = [len(summary.candidates) for summary in recorder.summaries]
    assert sorted(set(sizes[1:])) == [4, 8], "the second run has twice the popsize"
    told = sum(sizes)
    assert told < len(samples(path)) - 7, "those that were in flight at a restart are left out"
    expected = state(optimisers[-1])
    search(path, settings)
    assert state(optimisers[-1]) == expected
