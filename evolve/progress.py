"""What a person sees while a search runs: a live line on a terminal, a short line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from evolve.fleet import WorkerEvent
from evolve.observer import Observer, SearchResult
from evolve.options import View
from evolve.outcome import Failed
from evolve.records import CandidateRecord, RunRecord
from evolve.report.summary import display_name
from evolve.report.text import duration

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LOG_INTERVAL_S = 10.0


class Tally:
    """Counts of one session, from which both views are drawn. ``clock`` gives seconds that never run back."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.done = 0
        self.repeated = 0  # recipes that were scored before
        self.failed = 0
        self.best: CandidateRecord | None = None
        self.best_score = float("-inf")
        self.workers: set[str] = set()
        self._clock = clock
        self._started_at = clock()
        self._done_before = 0

    def start(self, replayed: tuple[CandidateRecord, ...]) -> None:
        """Count what earlier sessions did; the speed is measured from now on."""
        for record in replayed:
            self.add(record)
        self._done_before = self.done
        self._started_at = self._clock()

    def add(self, record: CandidateRecord) -> None:
        if record.copied_from is not None:
            self.repeated += 1
            return
        self.done += record.evaluated
        if isinstance(record.outcome, Failed):
            self.failed += 1
        elif record.outcome.report.score > self.best_score:
            self.best, self.best_score = record, record.outcome.report.score

    def worker(self, event: WorkerEvent) -> None:
        if event.kind == "started":
            self.workers.add(event.worker)
        else:
            self.workers.discard(event.worker)

    @property
    def seconds_each(self) -> float | None:
        """Wall seconds per candidate in this session, all workers together; None before the first."""
        fresh = self.done - self._done_before
        return (self._clock() - self._started_at) / fresh if fresh else None

    def line(self) -> str:
        """``24/200 · best 0.6123 (candidate 17) · 1.5 s each · 4 min 24 s left · 2 workers · 1 failed``."""
        parts = [f"{self.done}/{self.total}"]
        if self.best is not None:
            origin = self.best.origin
            name = f"candidate {self.best.id + 1}" if origin == "sample" else display_name(origin)
            parts.append(f"best {self.best_score:.4f} ({name})")
        each = self.seconds_each
        if each is not None:
            parts.append(f"{each:.2f} s each")
            parts.append(f"{duration(each * max(0, self.total - self.done))} left")
        if self.workers:
            parts.append(f"{len(self.workers)} worker{'s' if len(self.workers) > 1 else ''}")
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.repeated:
            parts.append(f"{self.repeated} not scored again")
        return " · ".join(parts)


class Progress(Observer):
    """A view that may be closed early; what it needs to be closed for is its own affair."""

    def close(self) -> None:
        """Give the screen back, also where the search ended in an error. May be called twice."""


def progress_view(view: View, total: int, console: Console) -> Progress:
    """The view that was asked for; ``auto`` is the live one on a terminal and the log anywhere else."""
    if view == "quiet":
        return Progress()
    if view == "live" or (view == "auto" and console.is_terminal):
        return LiveProgress(Tally(total), console)
    return LogProgress(Tally(total), lambda line: console.print(line, markup=False))


class LogProgress(Progress):
    """At most one line every ten seconds, and one for every worker that is lost; for logs and CI."""

    def __init__(
        self, tally: Tally, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tally = tally
        self._write = write
        self._clock = clock
        self._last = float("-inf")

    def on_start(self, run: RunRecord, replayed: tuple[CandidateRecord, ...]) -> None:
        self._tally.start(replayed)

    def on_candidate(self, record: CandidateRecord) -> None:
        self._tally.add(record)
        if self._clock() - self._last >= LOG_INTERVAL_S:
            self._last = self._clock()
            self._write(self._tally.line())

    def on_worker(self, event: WorkerEvent) -> None:
        self._tally.worker(event)
        if event.kind != "started":
            self._write(f"{event.worker} {event.kind}: {event.detail}")

    def on_finish(self, result: SearchResult) -> None:
        self._write(f"{self._tally.line()} · stopped: {result.stopped_because}")


class LiveProgress(Progress):
    """A bar and a line that redraw themselves; gone from the screen when the search ends."""

    def __init__(self, tally: Tally, console: Console) -> None:
        from rich.live import Live

        self._tally = tally
        self._console = console
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=4, transient=True)

    def on_start(self, run: RunRecord, replayed: tuple[CandidateRecord, ...]) -> None:
        self._tally.start(replayed)
        self._live.start()

    def on_candidate(self, record: CandidateRecord) -> None:
        self._tally.add(record)
        if isinstance(record.outcome, Failed) and record.copied_from is None:
            self._say(f"candidate {record.id + 1} failed ({record.outcome.stage}): {record.outcome.reason}")

    def on_worker(self, event: WorkerEvent) -> None:
        self._tally.worker(event)
        if event.kind != "started":
            self._say(f"{event.worker} {event.kind}: {event.detail}")

    def on_finish(self, result: SearchResult) -> None:
        self.close()
        self._say(f"{self._tally.line()} · stopped: {result.stopped_because}")

    def close(self) -> None:
        self._live.stop()

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)

    def _draw(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        rows = Table.grid()
        rows.add_row(ProgressBar(total=self._tally.total, completed=self._tally.done, width=60))
        rows.add_row(self._tally.line())
        return rows
