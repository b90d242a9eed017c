"""Tables for the terminal. Rich draws them; in a log or a pipe they come out as plain text."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from evolve.outcome import Failed
from evolve.report.summary import Summary, display_name, is_known
from evolve.statistics import Estimate, HoldoutTable, TableRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from evolve.report.worktime import WorkTime
    from evolve.stage_paths import StageState


def console() -> Console:
    """Where tables and lines go; wide enough for tables in logs, which have no width of their own."""
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 140)


def holdout(table: HoldoutTable, exported: int | None) -> Table:
    """The held-out scores: one row per candidate, each with its 95 % interval.

    ``exported`` is the id of the candidate that was chosen on the search items.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    tasks = next((row.tasks for row in table.rows if row.tasks), ())
    drawn = Table(title="Held-out items, with 95 % intervals", title_justify="left", box=SIMPLE_HEAD)
    drawn.add_column("", no_wrap=True)
    drawn.add_column("score", justify="right", no_wrap=True)
    drawn.add_column("against best source", justify="right", no_wrap=True)
    for task, _ in tasks:
        drawn.add_column(task, justify="right")
    for row in table.rows:
        name = row_name(row, exported)
        if row.score is None:
            drawn.add_row(name, "failed", "", *("" for _ in tasks))
            continue
        versus = versus_text(row.versus_best_source, is_best_source=row.name == table.best_source)
        drawn.add_row(name, estimate(row.score), versus, *(f"{value.value:.3f}" for _, value in row.tasks))
    return drawn


def row_name(row: TableRow, exported: int | None) -> str:
    """A row's name; the best or mean says so if it is what was exported."""
    chosen = row.candidate_id == exported and not is_known(row.name)
    return f"{display_name(row.name)} (exported)" if chosen else display_name(row.name)


def estimate(value: Estimate, *, signed: bool = False) -> str:
    """``0.612 ± 0.031``, or the number alone where there is no interval."""
    number = f"{value.value:+.3f}" if signed else f"{value.value:.3f}"
    return number if value.half_width is None else f"{number} ± {value.half_width:.3f}"


def versus_text(value: Estimate | None, *, is_best_source: bool) -> str:
    """The difference to the best source; a star marks an interval that excludes zero."""
    if value is None:
        return "(the best source)" if is_best_source else "-"
    return estimate(value, signed=True) + (" *" if value.excludes_zero else "  ")


def footnotes(table: HoldoutTable) -> list[str]:
    """What a reader of the held-out table has to know."""
    notes = []
    differences = [row.versus_best_source for row in table.rows if row.versus_best_source is not None]
    if table.best_source is not None and any(difference.excludes_zero for difference in differences):
        name = display_name(table.best_source)
        notes.append(f"* differs from {name}, the best source here, by more than the paired 95 % interval.")
    if table.without_interval:
        tasks = ", ".join(table.without_interval)
        notes.append(f"No interval for {tasks}: the metric is not a mean over items.")
    notes.extend(f"{display_name(row.name)} failed: {row.failure}" for row in table.rows if row.score is None)
    return notes


def candidates(summary: Summary, count: int = 5) -> Table:
    """The best candidates on the search items, best first."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    drawn = Table(title="Best on the search items", title_justify="left", box=SIMPLE_HEAD)
    drawn.add_column("candidate", justify="right")
    drawn.add_column("origin")
    drawn.add_column("score", justify="right")
    originals = (entry for entry in summary.scored if entry.record.copied_from is None)
    ranked = sorted(originals, key=lambda entry: (-entry.score, entry.record.id))[:count]
    for task in ranked[0].report.tasks if ranked else ():
        drawn.add_column(task.task, justify="right")
    for entry in ranked:
        origin, number = display_name(entry.record.origin), str(entry.record.id + 1)
        values = (f"{task.value:.3f}" for task in entry.report.tasks)
        drawn.add_row(number, origin, f"{entry.score:.4f}", *values)
    return drawn


def stage_lines(stages: Sequence[StageState]) -> list[str]:
    """One line for each stage of a search: how far it is, and the best that it found."""
    return [f"stage {stage.name}: {stage_progress(stage)}" for stage in stages]


def stage_progress(stage: StageState) -> str:
    """``40 of 40 candidates done, best 0.6123 (candidate 17)``."""
    if stage.summary is None:
        return "not begun"
    total = "" if stage.total is None else f" of {stage.total}"
    said = f"{len(stage.summary.evaluated)}{total} candidates done"
    best = stage.summary.best
    return said if best is None else f"{said}, best {best.score:.4f} (candidate {best.record.id + 1})"


def failure_lines(summary: Summary) -> list[str]:
    """One line for each reason why candidates failed, with how many."""
    reasons: dict[str, int] = {}
    for record in summary.failures:
        if isinstance(record.outcome, Failed):
            text = f"{record.outcome.stage}: {record.outcome.reason}"
            reasons[text] = reasons.get(text, 0) + 1
    return [f"{count} failed, {reason}" for reason, count in reasons.items()]


def idle_time(work: WorkTime) -> str:
    """``2.1 % idle``, ``2.1 % idle, 0.4 % lost with workers that died``."""
    lost = f", {work.lost_share:.1%} lost with workers that died" if work.lost_share else ""
    return f"{work.idle_share:.1%} idle{lost}".replace("%", " %")


def duration(seconds: float) -> str:
    """``4 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
