"""What a person sees while a search runs."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from evolve.fleet import WorkerEvent
from evolve.observer import SearchResult
from evolve.outcome import Failed
from evolve.progress import LiveProgress, LogProgress, Progress, Tally, progress_view
from tests.evolve.made import candidate, run_record, scored

FAILURE = Failed(reason="weights are not finite", stage="merge")
FINISHED = SearchResult(best=None, mean=None, evaluations=0, stopped_because="budget")


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def started(name: str) -> WorkerEvent:
    return WorkerEvent(worker=name, kind="started", at_s=0.0, detail="ready")


def test_the_line_says_what_is_done_and_what_is_left() -> None:
    clock = Clock()
    tally = Tally(20, clock)
    tally.start((candidate(0, "baseline:uniform", scored(0.5, 0.5)),))
    tally.worker(started("worker-0"))
    tally.worker(started("worker-1"))
    tally.add(candidate(1, outcome=FAILURE))
    tally.add(candidate(2, outcome=scored(0.75, 0.5)))
    clock.now_s += 6.0
    expected = "3/20 · best 1.2500 (candidate 3) · 3.00 s each · 51 s left · 2 workers · 1 failed"
    assert tally.line() == expected


def test_a_resumed_search_is_not_credited_with_earlier_speed() -> None:
    clock = Clock()
    tally = Tally(20, clock)
    tally.start(tuple(candidate(number) for number in range(10)))
    clock.now_s += 5.0
    assert tally.seconds_each is None
    tally.add(candidate(10))
    assert tally.seconds_each == 5.0


def test_copies_are_counted_apart_and_refused_recipes_cost_nothing() -> None:
    tally = Tally(20, Clock())
    tally.add(candidate(0, outcome=scored(0.5, 0.5)))
    tally.add(replace(candidate(1, outcome=scored(0.5, 0.5)), copied_from=0))
    tally.add(replace(candidate(2, outcome=FAILURE), copied_from=0))
    tally.add(replace(candidate(3, outcome=Failed(reason="no layers", stage="decode")), recipe={}))
    assert tally.done == 1
    assert tally.line().startswith("1/20 · best 1.0000 (candidate 1) · ")
    assert tally.line().endswith(" · 1 failed · 2 not scored again")


def test_a_baseline_is_called_by_its_name() -> None:
    tally = Tally(20, Clock())
    tally.add(candidate(0, "baseline:source:models/math", scored(0.5, 0.5)))
    assert "(source math)" in tally.line()


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end() -> None:
    clock = Clock()
    lines: list[str] = []
    view = LogProgress(Tally(100, clock), lines.append, clock)
    view.on_start(run_record(), ())
    for number in range(50):
        view.on_candidate(candidate(number))
        clock.now_s += 1.0
    assert [line.split(" ")[0] for line in lines] == ["1/100", "11/100", "21/100", "31/100", "41/100"]
    view.on_finish(FINISHED)
    assert lines[-1].startswith("50/100")
    assert lines[-1].endswith("stopped: budget")


def test_a_log_tells_of_every_worker_that_is_lost_but_not_of_starts() -> None:
    lines: list[str] = []
    view = LogProgress(Tally(100, Clock()), lines.append, Clock())
    view.on_worker(started("worker-0"))
    view.on_worker(
        WorkerEvent(worker="worker-0", kind="died", at_s=0.0, detail="its process died; it is replaced")
    )
    assert lines == ["worker-0 died: its process died; it is replaced"]


def test_the_live_view_draws_itself_and_gives_the_screen_back() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    view = LiveProgress(Tally(4, Clock()), console)
    view.on_start(run_record(), ())
    view.on_worker(started("worker-0"))
    view.on_candidate(candidate(0))
    view.on_candidate(candidate(1, outcome=FAILURE))
    view.on_finish(FINISHED)
    view.close()
    text = screen.getvalue()
    assert "candidate 2 failed (merge): weights are not finite" in text
    assert "2/4" in text
    assert "\x1b[?25h" in text  # the cursor is back


@pytest.mark.parametrize(
    ("view", "terminal", "expected"),
    [
        ("auto", True, LiveProgress),
        ("auto", False, LogProgress),
        ("live", False, LiveProgress),
        ("log", True, LogProgress),
        ("quiet", True, Progress),
    ],
)
def test_the_view_fits_the_output(view: str, terminal: bool, expected: type[Progress]) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal)
    assert type(progress_view(view, 10, console)) is expected  # type: ignore[arg-type]
