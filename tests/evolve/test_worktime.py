"""Where workers' time went, read off made journals: busy, idle, lost, and what lies between sessions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest

from evolve.journal import JournalView
from evolve.records import CandidateRecord, Measured, WorkerEventKind, WorkerRecord
from evolve.report import figures, page, text
from evolve.report.summary import summarise
from evolve.report.timeline import timeline
from evolve.report.worktime import Stretch, WorkTime, work_time
from tests.evolve.made import candidate, run_record

_EPOCH_S = 1_700_000_000.0


def at_work(
    number: int, worker: int, begin_s: float, length_s: float, *, merge_s: float = 0.25
) -> CandidateRecord:
    """A candidate that the driver heard of a tenth of a second after it was done."""
    measured = Measured(
        worker=f"worker-{worker}",
        started_s=_EPOCH_S + begin_s,
        wall_s=length_s + 0.1,
        merge_s=merge_s,
        score_s=length_s - merge_s,
        forward_s=(length_s - merge_s) / 2,
        attempts=1,
    )
    return replace(candidate(number), measured=measured)


def event(kind: WorkerEventKind, worker: int, at_s: float, lost_s: float = 0.0) -> WorkerRecord:
    return WorkerRecord(
        worker=f"worker-{worker}", event=kind, at_s=_EPOCH_S + at_s, lost_s=lost_s, detail="on a machine"
    )


def stretches(found: Sequence[Stretch]) -> list[tuple[float, float]]:
    return [(pytest.approx(each.begin_s), pytest.approx(each.end_s)) for each in found]


def present(found: WorkTime) -> dict[str, list[tuple[float, float]]]:
    return {worker.name: stretches(worker.present) for worker in found.workers}


def test_what_is_not_merging_or_scoring_is_idle() -> None:
    records = [at_work(0, 0, 0.0, 4.0), at_work(1, 1, 0.0, 2.0), at_work(2, 0, 5.0, 5.0)]
    found = work_time(records, [event("started", 0, -3.0), event("started", 1, -2.0)])
    assert found.elapsed_s == pytest.approx(10.0)
    assert present(found) == {"worker-0": [(0.0, 10.0)], "worker-1": [(0.0, 10.0)]}
    assert [worker.busy_share for worker in found.workers] == pytest.approx([0.9, 0.2])
    assert found.idle_share == pytest.approx(0.45)
    first = found.workers[0].works[0]
    assert stretches([first.merging, first.forward, first.rest]) == [
        (0.0, 0.25),
        (0.25, 2.125),
        (2.125, 4.0),
    ]


def test_a_worker_that_joins_later_or_leaves_is_idle_only_while_it_is_there() -> None:
    records = [at_work(0, 0, 0.0, 10.0), at_work(1, 1, 0.0, 4.0), at_work(2, 2, 7.0, 3.0)]
    events = [
        event("started", 0, -1.0),
        event("started", 1, -1.0),
        event("lost", 1, 5.0),
        event("started", 2, 6.0),
    ]
    found = work_time(records, events)
    assert present(found) == {"worker-0": [(0.0, 10.0)], "worker-1": [(0.0, 5.0)], "worker-2": [(6.0, 10.0)]}
    assert found.idle_share == pytest.approx(2.0 / 19.0)


def test_what_died_with_a_worker_is_lost_and_its_replacement_is_absent_until_it_is_ready() -> None:
    records = [at_work(0, 0, 0.0, 20.0), at_work(1, 1, 0.0, 2.0), at_work(2, 1, 12.0, 8.0)]
    events = [
        event("started", 0, -1.0),
        event("started", 1, -1.0),
        event("died", 1, 8.0, lost_s=6.0),
        event("started", 1, 12.0),
    ]
    found = work_time(records, events)
    assert present(found)["worker-1"] == [(0.0, 8.0), (12.0, 20.0)]
    assert stretches(found.workers[1].lost) == [(2.0, 8.0)]
    assert (found.idle_share, found.lost_share) == (pytest.approx(0.0), pytest.approx(6.0 / 36.0))
    assert text.idle_time(found) == "0.0 % idle, 16.7 % lost with workers that died"


def two_sessions(pause_s: float) -> list[CandidateRecord]:
    """Three seconds on two workers; after the pause four more, on one that was there before and a new one."""
    later_s = 3.0 + pause_s
    return [
        at_work(0, 0, 0.0, 3.0),
        at_work(1, 1, 0.0, 2.0),
        at_work(2, 0, later_s, 4.0),
        at_work(3, 2, later_s + 1.0, 3.0),
    ]


def test_time_between_two_sessions_is_nobodys_however_short() -> None:
    events = [
        *(event("started", worker, -1.0) for worker in (0, 1)),
        *(event("started", worker, 7.5) for worker in (2, 0)),
    ]
    found = work_time(two_sessions(5.0), events)
    assert found.elapsed_s == pytest.approx(7.0)
    assert found.resumed_s == pytest.approx((3.0,))
    assert present(found) == {
        "worker-0": [(0.0, 3.0), (3.0, 7.0)],
        "worker-1": [(0.0, 3.0)],
        "worker-2": [(3.0, 7.0)],
    }
    assert found.idle_share == pytest.approx(2.0 / 14.0)


def test_a_session_without_any_candidate_leaves_no_trace() -> None:
    events = [
        *(event("started", worker, -1.0) for worker in (0, 1)),
        *(event("started", worker, 4.0) for worker in (0, 1)),
        *(event("started", worker, 7.5) for worker in (0, 2)),
    ]
    found = work_time(two_sessions(5.0), events)
    assert found.elapsed_s == pytest.approx(7.0)
    assert present(found)["worker-0"] == [(0.0, 3.0), (3.0, 7.0)]


def test_journals_that_do_not_say_when_workers_came_show_long_pauses_as_sessions() -> None:
    found = work_time(two_sessions(5000.0), [])
    assert found.elapsed_s == pytest.approx(7.0)
    assert present(found) == {
        "worker-0": [(0.0, 3.0), (3.0, 7.0)],
        "worker-1": [(0.0, 3.0)],
        "worker-2": [(4.0, 7.0)],
    }


def test_an_old_journal_that_is_gone_on_with_keeps_its_first_session() -> None:
    events = [event("started", worker, 7.5) for worker in (0, 2)]
    found = work_time(two_sessions(5.0), events)
    assert found.elapsed_s == pytest.approx(7.0)
    assert present(found)["worker-0"] == [(0.0, 3.0), (3.0, 7.0)]
    assert present(found)["worker-2"] == [(3.0, 7.0)]


def test_no_work_takes_no_time() -> None:
    found = work_time([], [event("started", 0, 0.0)])
    assert (found.workers, found.elapsed_s, found.idle_share) == ((), 0.0, 0.0)


def test_workers_stand_in_the_order_of_their_numbers() -> None:
    found = work_time([at_work(number, number, 0.0, 1.0) for number in (10, 2, 0)], [])
    assert [worker.name for worker in found.workers] == ["worker-0", "worker-2", "worker-10"]


def view_of(workers: int, each: int) -> JournalView:
    """The second worker is idle for three quarters of the time, and its first process dies."""
    records = [
        at_work(worker * each + turn, worker, 2.0 * turn, 0.5 if worker == 1 else 1.5)
        for worker in range(workers)
        for turn in range(each)
    ]
    events = [event("started", worker, -1.0) for worker in range(workers)]
    events += [event("died", 1, 1.5, lost_s=0.5), event("started", 1, 1.75)]
    return JournalView(run=run_record(), candidates=tuple(records), holdout=(), workers=tuple(events))


@pytest.mark.parametrize(("workers", "each"), [(2, 20), (400, 5), (2, 3000)])
def test_the_picture_stays_small_and_shows_worker_and_death(workers: int, each: int) -> None:
    found = summarise(view_of(workers, each)).work
    drawn = figures.svg(timeline(found), "workers")
    assert len(drawn) < 250_000
    assert "worker-1, busy" in drawn
    for label in ("merging", "forward passes", "rest of scoring", "idle", "its process died"):
        assert f">{label}<" in drawn
    assert ("resumed here" in drawn) == bool(found.resumed_s)


def test_the_page_says_how_much_of_the_time_workers_were_idle() -> None:
    html = page.render(summarise(view_of(2, 20)), page.Path("run"))
    (note,) = re.findall(r"Of the workers.{1,6} time: (.*) % idle, .* % lost with workers that died\.", html)
    assert float(note) == pytest.approx(48.6)
