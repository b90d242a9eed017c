"""Schedulers on simulated workers: how much of their time they work, and what deaths cost."""

from __future__ import annotations

import os
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from bench.fleet import Plan, measure_simulated  # noqa: E402
from bench.simulated_fleet import Conditions, SimulatedFleet  # noqa: E402

from evolve.dispatch import run_jobs  # noqa: E402
from evolve.fleet import Done, Job  # noqa: E402
from evolve.interrupt import Interrupt  # noqa: E402
from evolve.journal import Journal, read_journal  # noqa: E402
from evolve.outcome import Failed  # noqa: E402
from evolve.report.summary import summarise  # noqa: E402
from evolve.search import SearchSettings, new_run, run_search  # noqa: E402
from evolve.worker_log import WorkerLog  # noqa: E402
from tests.fault.toy import ToySpace  # noqa: E402

_WORKERS = 48


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def plan(scheduler: str, popsize: int) -> Plan:
    return Plan(scheduler=scheduler, popsize=popsize, candidates=_WORKERS * 12)


@pytest.mark.parametrize("popsize", [5, _WORKERS, 2 * _WORKERS + 1])
def test_candidate_by_candidate_no_worker_waits_whatever_the_generation(tmp_path: Path, popsize: int) -> None:
    timing = measure_simulated(Conditions(workers=_WORKERS), plan("async", popsize), tmp_path)
    assert timing.steady.done > 0.999


def test_where_workers_die_only_their_work_and_their_start_is_lost(tmp_path: Path) -> None:
    conditions = Conditions(workers=_WORKERS, deaths_per_minute=0.5, start_s=20.0)
    shares = measure_simulated(conditions, plan("async", 13), tmp_path).steady
    assert shares.lost > 0.01
    assert shares.starting > 0.05
    assert shares.done > 0.97 * (1 - shares.lost - shares.starting)


def test_whole_generations_keep_workers_waiting_less_the_larger_they_are(tmp_path: Path) -> None:
    shares = [
        measure_simulated(Conditions(workers=_WORKERS), plan("sync", times * _WORKERS), tmp_path).steady
        for times in (1, 4)
    ]
    assert 0.5 < shares[0].done < 0.8 < shares[1].done < 0.95


def test_the_report_finds_in_the_journal_what_the_workers_did(tmp_path: Path) -> None:
    fleet = SimulatedFleet(Conditions(workers=6, deaths_per_minute=0.5, start_s=20.0))
    settings = SearchSettings(seed=0, popsize=12, max_fevals=100)
    path = tmp_path / "journal.jsonl"
    started = new_run(ToySpace(), settings, batch_size=1, inputs={}, started_at="now")
    with closing(Journal.create(path, started)) as journal:
        run_search(ToySpace(), settings, fleet, journal, [WorkerLog(journal)])
    work = summarise(read_journal(path)).work
    shares = fleet.shares(0.0, work.elapsed_s)
    there = 1 - shares.starting
    assert len(work.workers) == 6
    assert work.resumed_s == ()
    assert shares.starting > 0.05
    assert shares.lost > 0.01
    assert work.idle_share == pytest.approx(shares.idle / there, abs=1e-3)
    assert work.lost_share == pytest.approx(shares.lost / there, abs=1e-3)


def run(fleet: SimulatedFleet, count: int) -> list[Done]:
    jobs = [Job(id=number, recipe={"number": number}, split="search") for number in range(count)]
    found: list[Done] = []
    with Interrupt() as interrupt:
        run_jobs(jobs, fleet, interrupt, (), on_done=found.extend)
    return found


def test_every_job_is_done_once_and_takes_the_time_that_it_takes_anywhere() -> None:
    calm = run(SimulatedFleet(Conditions(workers=4)), 60)
    deadly = run(SimulatedFleet(Conditions(workers=3, deaths_per_minute=2.0, start_s=5.0, retries=50)), 60)
    assert Counter(done.job.id for done in calm) == Counter(range(60)) == Counter(d.job.id for d in deadly)
    times = {done.job.id: done.wall_s for done in calm}
    assert {done.job.id: done.wall_s for done in deadly} == pytest.approx(times)
    assert max(done.attempts for done in deadly) > 1
    assert [done.evaluation.outcome for done in sorted(calm, key=lambda done: done.job.id)] == [
        done.evaluation.outcome for done in sorted(deadly, key=lambda done: done.job.id)
    ]


def test_jobs_that_kill_every_worker_fail_and_the_shares_add_up() -> None:
    fleet = SimulatedFleet(Conditions(workers=3, deaths_per_minute=600.0, start_s=1.0, retries=1))
    found = run(fleet, 6)
    assert [done.attempts for done in found] == [2] * 6
    assert all(isinstance(done.evaluation.outcome, Failed) for done in found)
    shares = fleet.shares(0.0, fleet.now_s)
    assert shares.done == 0.0
    assert shares.lost + shares.starting + shares.idle == pytest.approx(1.0)


def test_a_slow_driver_costs_what_it_would_cost_in_earnest() -> None:
    seconds = iter(range(10_000))
    fleet = SimulatedFleet(Conditions(workers=8, mean_s=2.0), clock=lambda: float(next(seconds)))
    run(fleet, 80)
    assert fleet.shares(0.0, fleet.now_s).idle > 0.4
    assert sum(fleet.busy_s()) == pytest.approx(160.0, rel=0.1)
