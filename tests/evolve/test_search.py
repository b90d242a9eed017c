"""The driver: exact budgets, replay, larger budgets, what ends a search, who hears of it."""

from __future__ import annotations

import math
import random
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from evolve.errors import JournalError, RepeatedFailureError, ReplayError
from evolve.evaluator import Evaluation
from evolve.fleet import Done, WorkerEvent
from evolve.holdout import HoldoutRow, holdout_rows, run_holdout
from evolve.initial import InitialRecipe
from evolve.journal import Journal, canonical, read_journal
from evolve.ledger import choose_winner, is_spent
from evolve.observer import GenerationSummary, Observer, SearchResult
from evolve.outcome import Failed, Scored, cost
from evolve.records import MEAN, CandidateRecord, RunRecord
from evolve.search import SearchSettings, new_run, run_search
from genome.box import Kind
from genome.errors import RefusedRecipe
from merge_engine.errors import Problem
from merge_engine.spec.recipe import Recipe
from tests.fault.inline_fleet import InlineFleet
from tests.fault.toy import CoarseSpace, ToyBaseline, ToyEvaluator, ToyFactory, ToySpace

SETTINGS = SearchSettings(seed=3, popsize=6, max_fevals=30)
BASELINES = ["baseline:source:a", "baseline:source:b", "baseline:source:c", "baseline:uniform"]


class Failing(ToyEvaluator):
    """Fails each evaluation whose number ``when`` picks."""

    def __init__(self, reasons: Mapping[int, str]) -> None:
        super().__init__(ToyFactory(scratch=Path()))
        self._reasons = reasons
        self._count = 0

    def evaluate(self, recipe: Mapping[str, Any], split: Any) -> Evaluation:
        evaluation = super().evaluate(recipe, split)
        reason = self._reasons.get(self._count)
        self._count += 1
        return (
            evaluation
            if reason is None
            else replace(evaluation, outcome=Failed(stage="score", reason=reason))
        )


class Recorder(Observer):
    def __init__(self) -> None:
        self.replayed: tuple[CandidateRecord, ...] = ()
        self.candidates: list[CandidateRecord] = []
        self.summaries: list[GenerationSummary] = []
        self.events: list[WorkerEvent] = []
        self.results: list[SearchResult] = []

    def on_start(self, run: RunRecord, replayed: tuple[CandidateRecord, ...]) -> None:
        self.replayed = replayed

    def on_candidate(self, record: CandidateRecord) -> None:
        self.candidates.append(record)

    def on_generation(self, summary: GenerationSummary) -> None:
        self.summaries.append(summary)

    def on_worker(self, event: WorkerEvent) -> None:
        self.events.append(event)

    def on_finish(self, result: SearchResult) -> None:
        self.results.append(result)


class Stopper(Observer):
    """Presses Ctrl-C after so many candidates."""

    def __init__(self, count: int, number: signal.Signals = signal.SIGINT) -> None:
        self._left = count
        self._number = number

    def on_candidate(self, record: CandidateRecord) -> None:
        self._left -= 1
        if self._left == 0:
            signal.raise_signal(self._number)


def toy_fleet(capacity: int = 2) -> InlineFleet:
    return InlineFleet(ToyEvaluator(ToyFactory(scratch=Path())), capacity)


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
        return run_search(space, settings, fleet or toy_fleet(), journal, observers)
    finally:
        journal.close()


def records(path: Path) -> list[CandidateRecord]:
    return sorted(read_journal(path).candidates, key=lambda record: record.id)


def weights(path: Path, generation: int = 1) -> NDArray[np.float64]:
    """Those of a generation's candidates, shape (candidates, 3)."""
    recipes = [record.recipe for record in records(path) if record.generation == generation]
    return np.array([[model["parameters"]["weight"] for model in recipe["models"]] for recipe in recipes])


def content(path: Path) -> list[dict[str, Any]]:
    return canonical(records(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_a_search_scores_baselines_then_generations_then_the_mean(path: Path) -> None:
    result = search(path)
    found = records(path)
    assert [record.id for record in found] == list(range(30))
    assert [record.origin for record in found] == BASELINES + ["sample"] * 25 + [MEAN]
    sizes = [sum(record.generation == number for record in found) for number in range(7)]
    assert sizes[:2] == [4, 4], (
        "two sources are told beside the samples of generation 1, the third is its start"
    )
    assert sizes[2:4] == [6, 6]
    assert result.stopped_because == "budget"
    assert result.mean == found[-1]
    assert result.best == choose_winner(found[:-1])
    assert cost(choose_winner(found).outcome) < 0.1 * cost(found[0].outcome)


@pytest.mark.parametrize("budget", [1, 6, 11, 29])
def test_a_budget_is_met_exactly(path: Path, budget: int) -> None:
    result = search(path, replace(SETTINGS, max_fevals=budget))
    found = records(path)
    assert len(found) == result.evaluations == budget
    assert [record.origin for record in found].count(MEAN) == 1
    assert found[-1].origin == MEAN


@pytest.mark.parametrize("capacity", [1, 3, 50])
def test_the_number_of_workers_does_not_matter(path: Path, tmp_path: Path, capacity: int) -> None:
    search(path)
    search(tmp_path / "other", SETTINGS, toy_fleet(capacity))
    assert content(tmp_path / "other") == content(path)


def test_any_lost_lines_are_scored_again_and_nothing_else_is(path: Path, tmp_path: Path) -> None:
    search(path)
    whole = content(path)
    header, *lines = path.read_text().splitlines(keepends=True)
    draw = random.Random(1)
    for number in range(12):
        kept = draw.sample(lines, draw.randint(0, len(lines)))
        other = tmp_path / f"journal-{number}"
        other.write_text(header + "".join(kept))
        fleet = toy_fleet()
        search(other, SETTINGS, fleet)
        assert content(other) == whole
        assert len(fleet.evaluated) == len(lines) - len(kept)


@pytest.mark.parametrize("number", [2, 6, 12, 31])
def test_without_a_damaged_line_a_search_comes_to_the_same_end(path: Path, number: int) -> None:
    search(path)
    whole, written = content(path), path.read_text().splitlines(keepends=True)
    damaged = [*written[: number - 1], written[number - 1].replace("{", ""), *written[number:]]
    path.write_text("".join(damaged))
    with pytest.raises(JournalError, match=rf"line {number} is damaged .* remove that line"):
        search(path)
    path.write_text("".join(damaged[: number - 1] + damaged[number:]))
    search(path)
    assert content(path) == whole


def test_the_line_of_a_smaller_budget_s_mean_cannot_be_left_out(path: Path) -> None:
    search(path, replace(SETTINGS, max_fevals=14))
    search(path)
    whole, written = content(path), path.read_text().splitlines(keepends=True)
    mean = next(i for i, line in enumerate(written) if '"origin":"mean"' in line)
    path.write_text("".join(written[:mean] + written[mean + 1 :]))
    message = (
        r"candidate 14 does not come out .* missing: .* or remove that candidate's line and all after it"
    )
    with pytest.raises(ReplayError, match=message):
        search(path)
    path.write_text("".join(written[:mean]))
    search(path)
    samples = [
        [line["recipe"] for line in found if line["origin"] != MEAN] for found in (content(path), whole)
    ]
    assert samples[0][: len(samples[1])] == samples[1]


def test_a_finished_search_has_nothing_left_to_do(path: Path) -> None:
    first = search(path)
    fleet, recorder = toy_fleet(), Recorder()
    again = search(path, SETTINGS, fleet, recorder)
    assert fleet.evaluated == []
    assert again == first
    assert sorted(record.id for record in recorder.replayed) == list(range(30))
    assert recorder.candidates == []
    assert recorder.summaries == []
    assert recorder.results == [first]


def test_a_larger_budget_goes_on_as_if_there_had_been_no_end(path: Path, tmp_path: Path) -> None:
    search(path, replace(SETTINGS, max_fevals=17))
    result = search(path, replace(SETTINGS, max_fevals=41))
    search(tmp_path / "straight", replace(SETTINGS, max_fevals=40))
    assert result.evaluations == len(records(path)) == 41
    assert [record.id for record in records(path) if record.origin == MEAN] == [16, 40]

    def samples(path: Path) -> list[tuple[Any, ...]]:
        return [
            (record.generation, record.index, record.recipe, cost(record.outcome))
            for record in records(path)
            if record.origin != MEAN
        ]

    assert samples(path) == samples(tmp_path / "straight")
    assert records(path)[-1].recipe == records(tmp_path / "straight")[-1].recipe


def test_a_smaller_budget_than_was_spent_scores_nothing(path: Path) -> None:
    search(path)
    fleet = toy_fleet()
    assert search(path, replace(SETTINGS, max_fevals=10), fleet).evaluations == 30
    assert fleet.evaluated == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_search_ends_at_once_and_resumes_to_the_same_end(
    path: Path, tmp_path: Path, number: signal.Signals
) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    result = search(path, SETTINGS, toy_fleet(), Stopper(11, number))
    assert (result.stopped_because, result.evaluations, result.mean) == ("interrupted", 11, None)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    search(path)
    search(tmp_path / "straight")
    assert content(path) == content(tmp_path / "straight")


@pytest.fixture
def in_the_foreground() -> Iterator[None]:
    """Ctrl-C means something: a shell has what it starts in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("in_the_foreground")
def test_a_second_ctrl_c_does_not_wait(path: Path) -> None:
    class Twice(Observer):
        def on_candidate(self, record: CandidateRecord) -> None:
            signal.raise_signal(signal.SIGINT)

    class Slow(InlineFleet):
        def wait(self, timeout_s: float) -> list[Done]:
            return [done for _ in range(self.capacity) for done in super(Slow, self).wait(timeout_s)]

    fleet = Slow(ToyEvaluator(ToyFactory(scratch=Path())))
    with pytest.raises(KeyboardInterrupt):
        search(path, SETTINGS, fleet, Twice())


def test_when_time_is_up_the_mean_is_scored_still(path: Path) -> None:
    result = search(path, replace(SETTINGS, time_limit_s=0.0))
    assert result.stopped_because == "time"
    assert [record.origin for record in records(path)] == [MEAN]
    assert search(path).evaluations == 30
    assert [record.origin for record in records(path)].count(MEAN) == 2


def test_failures_are_journalled_and_the_search_goes_on(path: Path) -> None:
    fleet = InlineFleet(Failing({0: "no", 7: "no", 8: "no", 12: "NaN in task sums"}))
    result = search(path, SETTINGS, fleet)
    failed = [record.outcome for record in records(path) if isinstance(record.outcome, Failed)]
    assert sorted(outcome.reason for outcome in failed) == ["NaN in task sums", "no", "no", "no"]
    assert result.evaluations == 30
    assert result.best is not None
    assert isinstance(result.best.outcome, Scored)


def test_the_same_failure_again_and_again_ends_the_search(path: Path) -> None:
    fleet = InlineFleet(Failing({number: f"tried to allocate {number}.5 MiB" for number in range(6, 100)}))
    with pytest.raises(
        RepeatedFailureError, match=r"the last 8 candidates failed .*\(score: tried to allocate 13.5 MiB\)"
    ):
        search(path, SETTINGS, fleet)
    assert len(records(path)) == 14


def test_different_failures_do_not(path: Path) -> None:
    fleet = InlineFleet(Failing({number: "ab"[number % 2] for number in range(100)}))
    result = search(path, SETTINGS, fleet)
    assert result.best is None
    assert result.stopped_because == "budget"
    assert result.mean is not None
    assert result.mean.copied_from == 3, "nothing was learnt: the mean is the uniform merge still"
    assert result.evaluations == 29


def test_observers_hear_of_everything_once(path: Path) -> None:
    recorder = Recorder()
    result = search(path, SETTINGS, toy_fleet(), recorder)
    assert sorted(record.id for record in recorder.candidates) == list(range(30))
    assert [summary.generation for summary in recorder.summaries] == [1, 2, 3, 4]
    first = recorder.summaries[0]
    assert [record.index for record in first.candidates] == [0, 1, 2, 3]
    assert first.evaluations == 8
    assert first.std.shape == (3,)
    assert first.sigma > 0
    assert first.mean_recipe["merge_method"] == "linear"
    assert recorder.results == [result]


def test_the_search_starts_at_the_best_baseline_or_where_the_seed_says(path: Path, tmp_path: Path) -> None:
    search(path)
    search(tmp_path / "random", replace(SETTINGS, random_init=True))
    near, far = weights(path), weights(tmp_path / "random")
    assert np.linalg.norm(near.mean(axis=0) - [1, 0, 0]) < 0.4
    assert len(near) == 4
    assert len(far) == 3, "all three sources are told"
    assert not np.allclose(near[:3], far)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "seed was 3, is 4"),
        ({"popsize": 8}, "popsize was 6, is 8"),
    ],
)
def test_another_search_is_refused(path: Path, changes: dict[str, int], message: str) -> None:
    search(path)
    with pytest.raises(ReplayError, match=f"belongs to another search: {message}"):
        search(path, replace(SETTINGS, **changes))


def test_a_journal_that_does_not_come_out_again_is_refused_and_versions_named(path: Path) -> None:
    search(path)
    text = path.read_text()
    path.write_text(re.sub(r'"weight":0\.\d+', '"weight":0.5', text))
    with pytest.raises(
        ReplayError, match=r"candidate \d+ does not come out again .* versions are the same as now"
    ):
        search(path)
    path.write_text(re.sub(r'"weight":0\.\d+', '"weight":0.5', text).replace('"cma":"', '"cma":"0.'))
    with pytest.raises(ReplayError, match=r"versions have changed: cma was 0\.4\.\d+\.\d+, is 4\."):
        search(path)


def test_the_winner_is_the_lowest_cost_the_first_of_equals_and_never_a_failure(path: Path) -> None:
    search(path)
    found = records(path)
    best = choose_winner(found)
    assert best is not None
    assert choose_winner(reversed([*found, replace(best, id=99)])) == best
    failed = [replace(record, outcome=Failed(reason="no", stage="merge")) for record in found]
    assert choose_winner(failed) is None
    assert cost(failed[0].outcome) == math.inf


def test_held_out_rows_are_scored_once_and_kept(path: Path) -> None:
    result = search(path)
    assert result.best is not None
    baseline = records(path)[0]
    rows = [
        HoldoutRow(name="best", candidate=result.best),
        HoldoutRow(name="mean", candidate=result.best),
        HoldoutRow(name=baseline.origin, candidate=baseline),
    ]

    def score(rows: list[HoldoutRow]) -> tuple[list[tuple[str, int]], int]:
        fleet = toy_fleet()
        journal = Journal.open(path)
        found = run_holdout(rows, fleet, journal)
        journal.close()
        assert all(job.split == "holdout" for job in fleet.evaluated)
        return [(record.name, record.candidate_id) for record in found], len(fleet.evaluated)

    names = [("best", result.best.id), ("mean", result.best.id), (baseline.origin, baseline.id)]
    assert score(rows[:2]) == (names[:2], 1)
    assert score(rows) == (names, 1)
    assert score(rows) == (names, 0)
    assert score([HoldoutRow(name="again", candidate=baseline)]) == ([("again", baseline.id)], 0)
    assert len(read_journal(path).holdout) == 4


COARSE = replace(SETTINGS, max_fevals=24)


def test_equal_recipes_are_scored_once(path: Path) -> None:
    fleet = toy_fleet()
    result = search(path, COARSE, fleet, space=CoarseSpace())
    found = records(path)
    scored = [record.recipe for record in found if record.evaluated]
    assert [job.recipe for job in sorted(fleet.evaluated, key=lambda job: job.id)] == scored
    assert all(recipe not in scored[:number] for number, recipe in enumerate(scored))
    assert result.evaluations == len(scored) == 24 - (found[-1].copied_from is not None)
    copies = [record for record in found if record.copied_from is not None]
    assert found[2] in copies, "two baselines are the same"
    assert len(copies) > 5
    for record in copies:
        original = found[record.copied_from]  # type: ignore[index]
        assert original.id < record.id
        assert (original.recipe, original.outcome) == (record.recipe, record.outcome)
        assert original.evaluated


def test_a_refused_recipe_is_a_failure_that_costs_nothing(path: Path) -> None:
    class Picky(CoarseSpace):
        def decode(self, vector: NDArray[np.float64]) -> Recipe:
            if vector[0] > 2:
                raise RefusedRecipe([Problem("a", "is too heavy")])
            return super().decode(vector)

        def baselines(self) -> Sequence[ToyBaseline]:
            return [ToyBaseline(name="start", recipe=self.decode(self.start), vector=self.start)]

    search(path, COARSE, space=Picky())
    refused = [record for record in records(path) if not record.recipe]
    assert len(refused) >= 8, "as many failures of one kind would have ended the search"
    assert {record.outcome for record in refused} == {Failed(stage="decode", reason="a: is too heavy")}
    assert not any(record.evaluated for record in refused)


def test_a_search_that_finds_nothing_new_ends_and_ends_again(path: Path) -> None:
    settings = replace(SETTINGS, max_fevals=500)
    result = search(path, settings, space=CoarseSpace())
    assert result.stopped_because == "no new recipe in the last 20 generations"
    assert result.evaluations < 5 * 5 * 3
    before, fleet = content(path), toy_fleet()
    again = search(path, settings, fleet, space=CoarseSpace())
    assert (again.stopped_because, fleet.evaluated) == (result.stopped_because, [])
    assert content(path) == before


def test_a_whole_space_is_found_before_nothing_new_is(path: Path) -> None:
    class Tiny(CoarseSpace):
        kinds: tuple[Kind, ...] = ("categorical",) * 3
        upper = np.array([1.0, 1.0, 1.0])
        start = np.array([1.0, 0.0, 0.0])

    result = search(path, replace(SETTINGS, max_fevals=500), space=Tiny())
    assert result.evaluations == 6


@pytest.mark.parametrize("capacity", [1, 3, 50])
def test_copies_do_not_depend_on_the_number_of_workers(path: Path, tmp_path: Path, capacity: int) -> None:
    search(path, COARSE, space=CoarseSpace())
    search(tmp_path / "other", COARSE, toy_fleet(capacity), space=CoarseSpace())
    assert content(tmp_path / "other") == content(path)


def test_lost_lines_come_back_among_copies_too(path: Path, tmp_path: Path) -> None:
    search(path, COARSE, space=CoarseSpace())
    whole = content(path)
    header, *lines = path.read_text().splitlines(keepends=True)
    draw = random.Random(2)
    for number in range(12):
        kept = draw.sample(lines, draw.randint(0, len(lines)))
        other = tmp_path / f"journal-{number}"
        other.write_text(header + "".join(kept))
        search(other, COARSE, space=CoarseSpace())
        assert content(other) == whole


def test_an_interruption_among_copies_resumes_to_the_same_end(path: Path, tmp_path: Path) -> None:
    search(tmp_path / "straight", COARSE, space=CoarseSpace())
    for count in (2, 3, 9, 4):
        search(path, COARSE, toy_fleet(), Stopper(count), space=CoarseSpace())
    search(path, COARSE, space=CoarseSpace())
    assert content(path) == content(tmp_path / "straight")


def test_a_larger_budget_goes_on_among_copies(path: Path, tmp_path: Path) -> None:
    for budget in (6, 13, 24):
        search(path, replace(COARSE, max_fevals=budget), space=CoarseSpace())
    search(tmp_path / "straight", COARSE, space=CoarseSpace())

    def recipes(path: Path) -> list[tuple[Any, ...]]:
        return [
            (record.generation, record.index, record.recipe, cost(record.outcome))
            for record in records(path)
            if record.origin != MEAN
        ]

    together = list(zip(recipes(path), recipes(tmp_path / "straight"), strict=False))
    assert len(together) > 24
    assert all(one == other for one, other in together)
    assert is_spent(records(path), 24)
    assert not is_spent(records(path), 26)


def initial(space: ToySpace, *vectors: Sequence[float]) -> list[InitialRecipe]:
    recipes = [ToySpace.decode(space, np.array(vector)) for vector in vectors]
    return [
        InitialRecipe(file=f"{number}.yml", recipe=recipe, vector=space.encode(recipe))
        for number, recipe in enumerate(recipes)
    ]


def test_initial_recipes_are_scored_first_and_the_search_starts_at_the_best(path: Path) -> None:
    space = ToySpace()
    given = initial(space, [0.79, 0.31, 0.12], [0.1, 0.9, 0.9])
    journal = Journal.create(path, new_run(space, SETTINGS, batch_size=4, inputs={}, started_at="now"))
    run_search(space, SETTINGS, toy_fleet(), journal, (), given)
    journal.close()
    found = records(path)
    assert [record.origin for record in found[:6]] == [*BASELINES, "initial:0.yml", "initial:1.yml"]
    assert {record.generation for record in found[:6]} == {0}
    assert np.linalg.norm(weights(path).mean(axis=0) - [0.8, 0.3, 0.1]) < 0.4
    assert len(weights(path)) == 3, "the other is told beside the sources"
    names = [row.name for row in holdout_rows(found)]
    assert names == ["best", "mean", *BASELINES, "initial:0.yml", "initial:1.yml"]


def test_an_initial_recipe_outside_the_space_is_scored_all_the_same(path: Path) -> None:
    space = CoarseSpace()
    given = initial(space, [0.8, 0.3, 0.1])
    assert given[0].vector is None
    journal = Journal.create(path, new_run(space, COARSE, batch_size=4, inputs={}, started_at="now"))
    result = run_search(space, COARSE, toy_fleet(), journal, (), given)
    journal.close()
    assert result.best is not None
    assert result.best.origin == "initial:0.yml"


def test_a_held_out_row_of_a_copy_is_its_original_s(path: Path) -> None:
    search(path, COARSE, space=CoarseSpace())
    rows = {row.name: row.candidate.id for row in holdout_rows(records(path))}
    assert rows["baseline:again"] == rows["baseline:start"] == 0
    assert rows["best"] == choose_winner(records(path)).id  # type: ignore[union-attr]
