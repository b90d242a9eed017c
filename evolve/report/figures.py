"""The pictures of a report, drawn with matplotlib and returned as figures; `svg` and `png` serialise them.

Colours are from the Okabe-Ito palette, which stays distinguishable to colour-blind readers.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evolve.report.summary import ScoredCandidate, Summary, is_known, short_model
from evolve.report.text import row_name
from evolve.report.weights import Panel
from evolve.statistics import HoldoutTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GREY, INK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8c8c8c", "#222222"
_STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": True,
    "legend.edgecolor": "white",
    "legend.framealpha": 0.9,
    "svg.fonttype": "none",
    "svg.hashsalt": "mergevolve",
}


def draw(width_in: float, height_in: float, painter: Callable[[Figure], None]) -> Figure:
    """A new figure of the given size in inches, painted in the report's style; touches no global state."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        FigureCanvasAgg(figure)
        painter(figure)
    return figure


def svg(figure: Figure, title: str) -> str:
    """The figure as an SVG element for an HTML page: no XML header, no date, no ids that would repeat."""
    import html

    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    element = text[text.index("<svg") :]
    element = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", element)
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    return element.replace("<svg", f'<svg role="img" aria-label="{html.escape(title, quote=True)}"', 1)


def png(figure: Figure, dpi: int = 144) -> bytes:
    """The figure as a PNG file's bytes."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def overview(summary: Summary) -> Figure:
    """The main picture: the search on the left and, if held-out items were scored, what came out of it."""
    table = summary.table

    def paint(figure: Figure) -> None:
        ratios = (1.35, 1) if table.rows else (1,)
        search, *holdout = figure.subplots(1, len(ratios), squeeze=False, width_ratios=ratios)[0]
        _paint_search(search, summary)
        for axes in holdout:
            _paint_holdout(axes, table, summary.best_id)
        figure.legend(*search.get_legend_handles_labels(), loc="outside lower left", ncols=6, fontsize=8.5)

    return draw(11.5 if table.rows else 8.5, 4.6, paint)


def _paint_search(axes: Axes, summary: Summary) -> None:
    from matplotlib.ticker import MaxNLocator

    scored = summary.scored
    kinds = (
        ("candidate", BLUE, "o", 22, lambda origin: not is_known(origin) and origin != "mean"),
        ("mean of the search distribution", GREEN, "^", 42, lambda origin: origin == "mean"),
        ("known before the search", ORANGE, "D", 46, is_known),
    )
    for label, color, marker, size, belongs in kinds:
        chosen = [entry for entry in scored if belongs(entry.record.origin)]
        if chosen:
            axes.scatter(
                [entry.record.id + 1 for entry in chosen],
                [entry.score for entry in chosen],
                s=size,
                c=color,
                marker=marker,
                alpha=0.75 if marker == "o" else 1,
                linewidths=0,
                label=label,
                zorder=3,
            )
    if scored:
        best = np.maximum.accumulate([entry.score for entry in scored])
        axes.step(
            [entry.record.id + 1 for entry in scored],
            best,
            where="post",
            color=INK,
            lw=1.6,
            label="best so far",
        )
    if summary.best_source is not None:
        axes.axhline(summary.best_source.score, color=ORANGE, lw=1, ls="--", label="best source model")
    if summary.failures:
        floor = axes.get_ylim()[0]
        numbers = [record.id + 1 for record in summary.failures]
        axes.scatter(
            numbers, [floor] * len(numbers), marker="x", c=RED, s=36, label="failed", clip_on=False, zorder=4
        )
    axes.set(title="Search", xlabel="candidate", ylabel="score on search items (weighted sum)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _paint_holdout(axes: Axes, table: HoldoutTable, exported: int | None) -> None:
    rows = [row for row in reversed(table.rows) if row.score is not None]
    for height, row in enumerate(rows):
        assert row.score is not None
        color = ORANGE if is_known(row.name) else GREEN if row.name == "mean" else BLUE
        axes.errorbar(
            row.score.value, height, xerr=row.score.half_width, fmt="o", color=color, capsize=3, lw=1.8
        )
    axes.set_yticks(range(len(rows)), [row_name(row, exported) for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.set(title="Held-out items", xlabel="score (weighted sum), with 95 % interval")


def tasks(summary: Summary) -> Figure:
    """One panel per task: every candidate's value, and that of the best candidate so far."""
    scored = summary.scored
    leaders = _leaders(scored)
    labels = [(task.task, task.metric) for task in scored[0].report.tasks]
    columns = min(3, len(labels))
    lines = -(-len(labels) // columns)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(lines, columns, squeeze=False, sharex=True).ravel()
        numbers = [entry.record.id + 1 for entry in scored]
        for position, (axes, (task, metric)) in enumerate(zip(grid, labels, strict=False)):
            values = [entry.report.tasks[position].value for entry in scored]
            colors = [ORANGE if is_known(entry.record.origin) else BLUE for entry in scored]
            axes.scatter(numbers, values, s=14, c=colors, alpha=0.55, linewidths=0)
            best = [leader.report.tasks[position].value for leader in leaders]
            axes.step(numbers, best, where="post", color=INK, lw=1.4)
            axes.set(title=task, ylabel=metric, xlabel="candidate")
        for axes in grid[len(labels) :]:
            axes.set_visible(False)

    return draw(3.8 * columns, 2.9 * lines, paint)


def _leaders(scored: Sequence[ScoredCandidate]) -> list[ScoredCandidate]:
    """For each candidate, the one with the best score up to there."""
    leaders: list[ScoredCandidate] = []
    for entry in scored:
        leaders.append(leaders[-1] if leaders and leaders[-1].score >= entry.score else entry)
    return leaders


def weights(panels: Sequence[Panel]) -> Figure:
    """One heatmap per parameter and filter: models down, layers of the merged model across."""
    height = sum(0.75 + 0.34 * len(panel.models) for panel in panels)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(
            len(panels), 1, squeeze=False, height_ratios=[len(panel.models) + 1.6 for panel in panels]
        ).ravel()
        for axes, panel in zip(grid, panels, strict=True):
            _paint_panel(figure, axes, panel)

    return draw(9.0, max(1.6, height), paint)


def _paint_panel(figure: Figure, axes: Axes, panel: Panel) -> None:
    low, high = float(np.nanmin(panel.values)), float(np.nanmax(panel.values))
    signed = low < 0
    edge = max(abs(low), abs(high)) or 1.0
    image = axes.imshow(
        panel.values,
        aspect="auto",
        interpolation="nearest",
        cmap="RdBu_r" if signed else "Blues",
        vmin=-edge if signed else 0.0,
        vmax=edge,
    )
    axes.set_yticks(range(len(panel.models)), [short_model(model) for model in panel.models])
    layers = panel.values.shape[1]
    axes.set_xticks(range(0, layers, max(1, layers // 16)))
    axes.set(title=panel.title, xlabel="layer" if layers > 1 else "")
    if layers == 1:
        axes.set_xticks([0], ["all layers"])
    axes.grid(visible=False)
    if panel.values.size <= 120:
        _write_numbers(axes, panel, edge)
    figure.colorbar(image, ax=axes, pad=0.015, fraction=0.05)


def _write_numbers(axes: Axes, panel: Panel, edge: float) -> None:
    for (row, column), value in np.ndenumerate(panel.values):
        if np.isfinite(value):
            color = "white" if abs(value) > 0.6 * edge else INK
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=7.5)
