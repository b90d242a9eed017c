"""Intervals of held-out scores."""

from __future__ import annotations

import numpy as np
import pytest

from evolve.outcome import Failed, Scored
from evolve.statistics import Estimate, estimate, holdout_table, paired_difference
from fitness.results import Report, TaskResult
from tests.evolve.made import holdout, scored, task_result

Z = 1.959963984540054


def test_one_task_has_the_textbook_interval() -> None:
    items = [1.0] * 30 + [0.0] * 10
    found = estimate(Report(tasks=(task_result("t", items),)))
    assert found.value == 0.75
    # p (1 - p) / (n - 1) is the squared standard error of a proportion with the unbiased variance.
    assert found.half_width == pytest.approx(Z * np.sqrt(0.75 * 0.25 / 39))


def test_weights_scale_the_tasks_parts() -> None:
    items = [1.0, 0.0] * 20
    one = Report(tasks=(task_result("t", items, weight=1.0),))
    half = Report(tasks=(task_result("t", items, weight=-0.5),))
    assert estimate(half).value == -0.5 * estimate(one).value
    assert estimate(half).half_width == pytest.approx(0.5 * estimate(one).half_width)


def test_the_interval_covers_the_true_score_in_95_of_100_draws() -> None:
    generator = np.random.default_rng(0)
    truth = np.array([0.3, 0.8])
    covered = 0
    for _ in range(1000):
        draws = generator.random((2, 100)) < truth[:, None]
        report = Report(tasks=tuple(task_result(str(i), row.astype(float)) for i, row in enumerate(draws)))
        found = estimate(report)
        assert found.half_width is not None
        covered += abs(found.value - truth.sum()) <= found.half_width
    assert 930 <= covered <= 970


def test_a_pair_is_compared_item_by_item() -> None:
    base = [1.0, 0.0] * 50
    better = [1.0, 0.0] * 45 + [1.0] * 10  # the same answers but for five more right ones
    mine, theirs = Report(tasks=(task_result("t", better),)), Report(tasks=(task_result("t", base),))
    paired = paired_difference(mine, theirs)
    assert paired.value == pytest.approx(0.05)
    assert paired.excludes_zero
    alone = estimate(mine).half_width
    assert alone is not None
    assert paired.half_width is not None
    assert paired.half_width < alone / 2


def test_an_identical_opponent_gives_zero_without_doubt() -> None:
    report = Report(tasks=(task_result("t", [1.0, 0.0, 1.0]),))
    assert paired_difference(report, report) == Estimate(value=0.0, half_width=0.0)
    assert not paired_difference(report, report).excludes_zero


@pytest.mark.parametrize(
    "task",
    [
        TaskResult(task="t", metric="f1,none", weight=1.0, value=0.9, items=(1.0, 0.0), item_ids=(0, 1)),
        TaskResult(task="t", metric="ppl,none", weight=1.0, value=12.5, items=(None, None), item_ids=(0, 1)),
        TaskResult(task="t", metric="acc,none", weight=1.0, value=1.0, items=(1.0,), item_ids=(0,)),
        TaskResult(task="t", metric="acc,none", weight=1.0, value=1.0, items=(), item_ids=()),
    ],
    ids=["no mean", "no item values", "one item", "no items"],
)
def test_no_interval_is_invented(task: TaskResult) -> None:
    report = Report(tasks=(task_result("fine", [1.0, 0.0]), task))
    assert estimate(report).half_width is None
    assert estimate(report).value == report.score


def test_a_task_without_weight_does_not_spoil_the_interval() -> None:
    watched = TaskResult(task="t", metric="ppl,none", weight=0.0, value=9.0, items=(None,), item_ids=(0,))
    fine = task_result("fine", [1.0, 0.0, 1.0])
    assert estimate(Report(tasks=(fine, watched))) == estimate(Report(tasks=(fine,)))


def test_other_items_cannot_be_paired() -> None:
    one = task_result("t", [1.0, 0.0])
    other = TaskResult(task="t", metric="acc,none", weight=1.0, value=0.5, items=(1.0, 0.0), item_ids=(5, 6))
    assert paired_difference(Report(tasks=(one,)), Report(tasks=(other,))).half_width is None


def test_the_table_pairs_every_row_with_the_best_source_on_held_out_items() -> None:
    rows = [
        holdout("best", 9, scored(0.9, 0.9, items=200)),
        holdout("baseline:source:a", 0, scored(0.5, 0.5, items=200)),
        holdout("baseline:source:b", 1, scored(0.6, 0.6, items=200)),
        holdout("baseline:uniform", 2, Failed(reason="weights are not finite", stage="merge")),
    ]
    table = holdout_table(rows)
    assert table.best_source == "baseline:source:b"
    best, a, b, uniform = table.rows
    assert best.versus_best_source is not None
    assert best.versus_best_source.value == pytest.approx(0.6)
    assert best.versus_best_source.excludes_zero
    assert a.versus_best_source is not None
    assert a.versus_best_source.value == pytest.approx(-0.2)
    assert b.versus_best_source is None
    assert uniform.score is None
    assert uniform.failure == "weights are not finite"
    assert [name for name, _ in best.tasks] == ["sums", "words"]


def test_without_a_scored_source_there_is_nobody_to_pair_with() -> None:
    outcome = scored(0.5)
    assert isinstance(outcome, Scored)
    table = holdout_table([holdout("best", 0, outcome)])
    assert table.best_source is None
    assert table.rows[0].versus_best_source is None
