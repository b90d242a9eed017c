"""Where a search stands, read from its storage path while it runs or after. Changes nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evolve.journal import read_journal
from evolve.report import text
from evolve.report.summary import Summary, display_name, summarise
from evolve.stage_paths import StageState, current_stage, stage_states
from evolve.storage import StoragePath

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """``total`` is the budget in the kept search file, or None; ``running``: is a driver at work?

    Of a search in ``stages`` the rest is about the last one that has begun.
    """

    stages: tuple[StageState, ...]
    summary: Summary
    total: int | None
    running: bool
    silent_s: float | None  # since the last candidate finished
    has_model: bool


def read_status(folder: Path) -> Status:
    """
    Raises:
        JournalError: there is no journal in ``folder``, or it is damaged.
    """
    storage = StoragePath(folder)
    stages = stage_states(storage)
    current = current_stage(stages)
    summary = current.summary or summarise(read_journal(current.storage.journal))
    ends = [record.measured.started_s + record.measured.wall_s for record in summary.candidates]
    return Status(
        stages=stages,
        summary=summary,
        total=current.total,
        running=storage.is_locked(),
        silent_s=max(0.0, time.time() - max(ends)) if ends else None,
        has_model=storage.final_model.is_dir(),
    )


def show(status: Status, console: Console) -> None:
    """Print where the search stands, its best candidates, and the held-out table once there is one."""
    for line in lines(status):
        console.print(line, highlight=False, markup=False)
    if status.summary.scored:
        console.print(text.candidates(status.summary))
    table = status.summary.table
    if table.rows:
        console.print(text.holdout(table, status.summary.best_id))
        for note in text.footnotes(table):
            console.print(note, highlight=False, markup=False)


def lines(status: Status) -> list[str]:
    """The state in a few lines."""
    summary = status.summary
    total = "" if status.total is None else f" of {status.total}"
    state = "running" if status.running else "not running"
    said = text.stage_lines(status.stages) if len(status.stages) > 1 else []
    said.append(f"{state}; {len(summary.evaluated)}{total} candidates done, {len(summary.failures)} failed")
    if summary.repeats:
        said[-1] += f", {summary.repeats} not scored again"
    if status.running and status.silent_s is not None:
        said[-1] += f", the last one {text.duration(status.silent_s)} ago"
    if summary.best is not None:
        best, source = summary.best, summary.best_source
        said.append(
            f"best {best.score:.4f} (candidate {best.record.id + 1}, {display_name(best.record.origin)})"
        )
        if source is not None:
            said[-1] += f"; best source {source.score:.4f} ({display_name(source.record.origin)})"
    left_s = _left_s(status)
    if left_s is not None:
        said.append(f"about {text.duration(left_s)} left")
    if summary.evaluated:
        said.append(f"workers' time: {text.idle_time(summary.work)}")
    if status.has_model:
        said.append("the winner is in final_model/")
    return said + text.failure_lines(summary)


def _left_s(status: Status) -> float | None:
    """Time left at the pace so far; None for a search that does not run or has no known end."""
    done = len(status.summary.evaluated)
    if not status.running or status.total is None or not done:
        return None
    return status.summary.work.elapsed_s / done * max(0, status.total - done)
