"""The picture of who worked when: a row for each worker, or, of many, how many were at what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evolve.report.figures import BLUE, INK, ORANGE, RED, draw
from evolve.report.worktime import Stretch, WorkerTime, WorkTime

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_ROWS, _MOST_BARS = 24, 800  # of a picture in which every candidate is to be seen
_MOST_SEPARATED = 100  # candidates of a worker; white lines between more would look like idleness
_WORST_ROWS = 12
_BINS = 240
_SCORING, _LOST, _IDLE = "#9ecae1", "#f4b6a6", "#e4e4e4"
_LABELS = {
    BLUE: "forward passes",
    _SCORING: "rest of scoring",
    ORANGE: "merging",
    _LOST: "died at a candidate",
    _IDLE: "idle",
}
_BAR = 0.76  # of a row's height


def timeline(work: WorkTime) -> Figure:
    """When each worker was merging, scoring or idle; of many workers or candidates how many workers were, and
    which were busy least.
    """
    bars = sum(len(worker.works) for worker in work.workers)
    if len(work.workers) <= _MOST_ROWS and bars <= _MOST_BARS:
        return draw(11.0, 1.1 + 0.36 * len(work.workers), lambda figure: _paint_rows(figure, work))
    return draw(11.0, 6.2, lambda figure: _paint_crowd(figure, work))


def _paint_rows(figure: Figure, work: WorkTime) -> None:
    axes = figure.subplots()
    _name_rows(axes, work.workers)
    for row, worker in enumerate(work.workers):
        place = (row - _BAR / 2, _BAR)
        for color, stretches in _parts(worker).items():
            axes.broken_barh([(each.begin_s, each.length_s) for each in stretches], place, color=color, lw=0)
        if len(worker.works) <= _MOST_SEPARATED:
            axes.vlines([each.begin_s for each in worker.works], place[0], sum(place), color="white", lw=0.4)
    axes.set(title="What each worker was doing")
    _finish([axes], work, work.workers)


def _paint_crowd(figure: Figure, work: WorkTime) -> None:
    crowd, rows = figure.subplots(2, 1, sharex=True, height_ratios=(1.3, 1))
    edges = np.linspace(0.0, work.elapsed_s, _BINS + 1)
    floor = np.zeros(_BINS)
    for color, seconds in _spent(work.workers, edges).items():
        top = floor + seconds / (edges[1] - edges[0])
        crowd.stairs(top, edges, baseline=floor, fill=True, color=color, lw=0)
        floor = top
    crowd.set(title="What workers were doing", ylabel="workers", ylim=(0, None))
    worst = sorted(work.workers, key=lambda worker: worker.busy_share)[:_WORST_ROWS]
    _name_rows(rows, worst)
    strips = np.stack([_strip(worker, edges) for worker in worst])
    rows.imshow(
        strips,
        extent=(0.0, work.elapsed_s, len(worst) - 0.5, -0.5),
        aspect="auto",
        interpolation="nearest",
    )
    rows.hlines(np.arange(1, len(worst)) - 0.5, 0.0, work.elapsed_s, color="white", lw=2)
    rows.set(
        title=f"The {len(worst)} that were busy least" if len(work.workers) > len(worst) else "Each worker"
    )
    _finish([crowd, rows], work, worst)


def _name_rows(axes: Axes, workers: Sequence[WorkerTime]) -> None:
    """A row for each, from the top down, with marks where a process died."""
    names = [f"{worker.name}, busy {worker.busy_share:.0%}" for worker in workers]
    axes.set_yticks(range(len(workers)), names, fontsize=9)
    axes.set_ylim(len(workers) - 0.5, -0.5)
    axes.grid(visible=False)
    for row, worker in enumerate(workers):
        deaths = [each.end_s for each in worker.lost]
        axes.plot(deaths, [row] * len(deaths), "x", color=RED, ms=6, mew=1.8, clip_on=False, zorder=5)


def _finish(panels: Sequence[Axes], work: WorkTime, named: Sequence[WorkerTime]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    parts = [_parts(worker).items() for worker in work.workers]
    used = {color for part in parts for color, bars in part if any(bar.length_s for bar in bars)}
    handles: list[Patch | Line2D] = [
        Patch(color=color, label=label) for color, label in _LABELS.items() if color in used
    ]
    if any(worker.lost for worker in named):
        handles.append(Line2D([], [], ls="", marker="x", color=RED, mew=1.8, label="its process died"))
    if work.resumed_s:
        handles.append(Line2D([], [], ls="--", lw=1, color=INK, label="resumed here"))
    for axes in panels:
        for resumed_s in work.resumed_s:
            axes.axvline(resumed_s, color=INK, lw=1, ls="--")
        axes.set_xlim(0.0, work.elapsed_s)
    panels[-1].set_xlabel("seconds of searching")
    panels[0].legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        borderaxespad=0.1,
        ncols=len(handles),
        fontsize=8.5,
        handlelength=1.2,
        columnspacing=1.2,
    )


def _parts(worker: WorkerTime) -> dict[str, Sequence[Stretch]]:
    """By colours, in the order in which they are painted: only the first, idleness, lies under the others."""
    return {
        _IDLE: worker.present,
        _LOST: worker.lost,
        ORANGE: [each.merging for each in worker.works],
        BLUE: [each.forward for each in worker.works],
        _SCORING: [each.rest for each in worker.works],
    }


def _spent(workers: Iterable[WorkerTime], edges: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Seconds of all workers between ``edges`` (B + 1), of shape (B,), by colours."""
    parts = [_parts(worker) for worker in workers]
    seconds = {
        color: _covered_s([each for part in parts for each in part[color]], edges) for color in _LABELS
    }
    others = sum(seconds[color] for color in _LABELS if color != _IDLE)
    return {**seconds, _IDLE: np.maximum(0.0, seconds[_IDLE] - others)}


def _covered_s(stretches: Sequence[Stretch], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds of ``stretches`` between ``edges`` (B + 1), of shape (B,)."""

    def since(moments: list[float]) -> NDArray[np.float64]:
        """Seconds from all moments before an edge to the edge."""
        ordered = np.sort(np.array(moments, dtype=np.float64))
        sums: NDArray[np.float64] = np.concatenate([[0.0], np.cumsum(ordered)])
        before = np.searchsorted(ordered, edges)
        return before * edges - sums[before]

    begun, ended = since([each.begin_s for each in stretches]), since([each.end_s for each in stretches])
    return np.diff(begun - ended)


def _strip(worker: WorkerTime, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """One row of an image, RGB of shape (B, 3): from idle to busy, and from absent to present."""
    from matplotlib.colors import to_rgb

    spent = _spent([worker], edges)
    width_s = edges[1] - edges[0]
    colors = {**{color: to_rgb(color) for color in spent}, "white": to_rgb("white")}
    shares = {color: seconds / width_s for color, seconds in spent.items()}
    shares["white"] = 1.0 - sum(shares.values())
    mixed = np.zeros((len(edges) - 1, 3))
    for color in colors:
        mixed += np.outer(shares[color], colors[color])
    return mixed.clip(0.0, 1.0)
