"""Feeding a fleet: no more jobs in flight than it has room for, none started once the search has to stop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from evolve.fleet import Done, Fleet, Job
from evolve.interrupt import Interrupt
from evolve.observer import Observer

_POLL_S = 0.5  # how long Ctrl-C may go unnoticed


def run_jobs(
    jobs: Sequence[Job],
    fleet: Fleet,
    interrupt: Interrupt,
    observers: Sequence[Observer],
    *,
    on_done: Callable[[list[Done]], None],
    may_start: Callable[[], bool] = lambda: True,
) -> None:
    """Run ``jobs``, in any order; ``on_done`` is called with those that have finished since its last call.

    When ``may_start`` says no, no more are started and those in flight are waited for; on an interruption
    they are dropped.
    """
    waiting = deque(jobs)
    running = 0

    def may_go_on() -> bool:
        return bool(waiting) and not interrupt.requested and may_start()

    def fill() -> None:
        nonlocal running
        while running < fleet.capacity and may_go_on():
            fleet.submit(waiting.popleft())
            running += 1

    fill()
    while (running or may_go_on()) and not interrupt.requested:  # a fleet may be without workers for a while
        finished = wait_for_jobs(fleet, observers)
        running -= len(finished)
        fill()  # before `on_done` writes to the slow disk: no worker should wait for that
        if finished:
            on_done(finished)


def wait_for_jobs(fleet: Fleet, observers: Sequence[Observer]) -> list[Done]:
    """What has finished, none for half a second at most; the observers hear what happened to workers."""
    finished = fleet.wait(_POLL_S)
    for event in fleet.events():
        for observer in observers:
            observer.on_worker(event)
    return finished
