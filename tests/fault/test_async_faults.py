"""Accidents of a search that waits for nobody, with real Ray workers: nothing lost, nothing counted twice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evolve.outcome import Failed
from evolve.records import MEAN, SAMPLE
from tests.fault.driver import BUDGET, Driver, candidates, run

pytestmark = pytest.mark.slow


def check_whole(folder: Path) -> None:
    """Every number once, every place of the ask/tell sequence once, every recipe scored once."""
    found = candidates(folder)  # refuses a journal that has a candidate twice
    assert sorted(found) == list(range(BUDGET))
    assert found[BUDGET - 1].origin == MEAN
    samples = [record for record in found.values() if record.origin == SAMPLE]
    assert len({(record.generation, record.index) for record in samples}) == len(samples)
    recipes = [str(record.recipe) for record in found.values() if record.evaluated]
    assert len(set(recipes)) == len(recipes)


def test_workers_that_die_hang_and_fail_lose_no_candidate_and_score_none_twice(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    faults = {"6": "kill", "11": "hang", "15": "nan", "20": "kill"}
    ending, driver = run(
        folder, max_fevals=BUDGET, scheduler="async", num_workers=3, limit_s=3.0, faults=faults
    )
    assert ending == {"stopped_because": "budget", "evaluations": BUDGET}
    check_whole(folder)
    found = candidates(folder).values()
    assert sum(isinstance(record.outcome, Failed) for record in found) == 1
    log = "\n".join(driver.lines)
    accidents = re.findall(r"worker-\d (died|hung): ", log)
    assert accidents.count("died") == 2
    assert "hung" in accidents
    assert sum(record.measured.attempts - 1 for record in found) == len(accidents), "each was tried again"
    samples: dict[int, list[int]] = {}
    for record in found:
        if record.origin == SAMPLE:
            samples.setdefault(record.generation, []).append(record.index)
    assert all(sorted(each) == list(range(len(each))) for each in samples.values()), "all that was drawn"


def test_a_driver_that_is_killed_keeps_what_it_wrote_and_ends_with_every_number_once(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    for count in (7, 9):
        driver = Driver(folder, max_fevals=BUDGET, scheduler="async", num_workers=3, sleep_s=0.2)
        driver.wait_for_candidates(count)
        driver.kill()
    before = (folder / "journal.jsonl").read_bytes()
    kept = before[: before.rindex(b"\n") + 1]
    ending, _ = run(folder, max_fevals=BUDGET, scheduler="async", num_workers=2)
    assert ending == {"stopped_because": "budget", "evaluations": BUDGET}
    assert (folder / "journal.jsonl").read_bytes().startswith(kept)
    check_whole(folder)
