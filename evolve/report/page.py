"""report.html: one file without any outside resource, which opens wherever it is copied."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from evolve.report import figures, text
from evolve.report.summary import Summary, display_name
from evolve.report.timeline import timeline
from evolve.report.weights import panels
from evolve.stage_paths import StageState, current_stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
  max-width: 70rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: 0.2rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 0.6rem; border-bottom: 1px solid #ddd; padding-bottom: 0.2rem; }
p.lead { font-size: 1.1rem; color: #444; margin-top: 0; }
p.note { color: #555; font-size: 0.9rem; max-width: 60rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.9rem 0.25rem 0; text-align: right; border-bottom: 1px solid #eee; }
th:first-child, td:first-child { text-align: left; }
td.text { text-align: left; overflow-wrap: anywhere; }
pre { background: #f6f6f6; padding: 0.8rem 1rem; overflow-x: auto; font-size: 0.85rem; }
figure { margin: 0.5rem 0; overflow-x: auto; }
svg { max-width: 100%; height: auto; font-family: "DejaVu Sans", Verdana, sans-serif; }
tr.winner td { background: #eef6fb; }
</style>
</head>
<body>
$body
</body>
</html>
""")


def render(summary: Summary, storage_path: Path, stages: Sequence[StageState] = ()) -> str:
    """The whole page for a search; ``storage_path`` is named in the commands that it shows.

    Of a search in ``stages`` it shows how far each is, and all of the last one that has begun: ``summary``.
    """
    name = storage_path.resolve().name
    sections = [
        f"<h1>Merge search: {escape(name)}</h1>",
        *_stages_section(stages),
        f'<p class="lead">{escape(headline(summary))}</p>',
        *_search_section(summary),
        *_holdout_section(summary),
        *_winner_section(summary),
        *_workers_section(summary),
        *_facts_section(summary),
        *_commands_section(storage_path),
    ]
    return _PAGE.substitute(title=escape(f"Merge search: {name}"), body="\n".join(sections))


def headline(summary: Summary) -> str:
    """The result in one or two sentences."""
    best = summary.best
    if best is None:
        return f"No candidate has a score yet ({len(summary.failures)} failed)."
    origin = display_name(best.record.origin)
    sentences = [
        f"Best of {len(summary.evaluated)} candidates on the search items: {best.score:.4f} ({origin})."
    ]
    row = next((row for row in summary.table.rows if row.name == "best"), None)
    if row is not None and row.score is not None:
        sentences.append(f"On held-out items: {text.estimate(row.score)}")
        if row.versus_best_source is not None and summary.table.best_source is not None:
            against = display_name(summary.table.best_source)
            sentences[-1] += f", {text.estimate(row.versus_best_source, signed=True)} against {against}"
        sentences[-1] += "."
    return " ".join(sentences)


def _stages_section(stages: Sequence[StageState]) -> list[str]:
    """A row for each stage; those that are over have a report of their own beside their journal."""
    if len(stages) < 2:
        return []
    shown = current_stage(stages)
    rows = []
    for stage in stages:
        link = escape(stage.name)
        if stage.summary is not None and stage is not stages[-1]:
            link = f'<a href="stages/{link}/report.html">{link}</a>'
        here = " (below)" if stage is shown else ""
        progress = escape(text.stage_progress(stage))
        rows.append(f'<tr><td>{link}{here}</td><td class="text">{progress}</td></tr>')
    return ["<h2>Stages</h2>", f"<table><tbody>{''.join(rows)}</tbody></table>"]


def _search_section(summary: Summary) -> list[str]:
    if not summary.candidates:
        return []
    parts = ["<h2>Score over candidates</h2>", _picture(figures.overview(summary), "Score over candidates")]
    if summary.scored:
        note = "Line: the best candidate so far. Orange: known before. Axes: the task's own metric."
        parts += [
            "<h2>Each task</h2>",
            _picture(figures.tasks(summary), "Each task over candidates"),
            _note(note),
        ]
    parts += [_note(line) for line in text.failure_lines(summary)]
    return parts


def _holdout_section(summary: Summary) -> list[str]:
    table = summary.table
    if not table.rows:
        note = "No held-out items were scored. Scores on the items that the search chose by are optimistic."
        return ["<h2>Held-out items</h2>", _note(note)]
    tasks = next((row.tasks for row in table.rows if row.tasks), ())
    head = ["", "score", "against best source", *(task for task, _ in tasks)]
    rows = []
    for row in table.rows:
        cells = [text.row_name(row, summary.best_id)]
        if row.score is None:
            cells += ["failed", "", *("" for _ in tasks)]
        else:
            is_best_source = row.name == table.best_source
            cells += [
                text.estimate(row.score),
                text.versus_text(row.versus_best_source, is_best_source=is_best_source),
            ]
            cells += [text.estimate(value) for _, value in row.tasks]
        rows.append(_row(cells, "winner" if row.candidate_id == summary.best_id else ""))
    headings = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return [
        "<h2>Held-out items</h2>",
        f"<table><thead><tr>{headings}</tr></thead><tbody>{''.join(rows)}</tbody></table>",
        _note("Mean ± half of the 95 % interval. The search never saw these items."),
        *(_note(line) for line in text.footnotes(table)),
    ]


def _winner_section(summary: Summary) -> list[str]:
    from merge_engine.spec.recipe import parse_recipe
    from merge_engine.spec.yaml_io import dump_yaml

    if summary.best is None:
        return []
    recipe = summary.best.record.recipe
    drawn = panels(parse_recipe(recipe))
    parts = ["<h2>The best recipe</h2>"]
    if drawn:
        parts.append(_picture(figures.weights(drawn), "Parameters of the best recipe by layer"))
    parts.append(f"<pre>{escape(dump_yaml(recipe))}</pre>")
    return parts


def _workers_section(summary: Summary) -> list[str]:
    if not summary.evaluated:
        return []
    work = summary.work
    return [
        "<h2>Workers</h2>",
        _picture(timeline(work), "What each worker was doing over time"),
        _note(f"Of the workers' time: {text.idle_time(work)}. Idle is a worker without a candidate."),
    ]


def _facts_section(summary: Summary) -> list[str]:
    run, work = summary.run, summary.work
    seconds = [record.measured.wall_s for record in summary.evaluated]
    facts: dict[str, Any] = {
        "candidates": f"{len(summary.evaluated)} scored, of which failed {len(summary.failures)}",
        "not scored again": f"{summary.repeats} with the recipe of an earlier candidate",
        "dimensions": run.dimensions,
        "candidates in a generation": run.popsize,
        "seed": run.seed,
        "batch size": run.batch_size,
        "searching time": text.duration(work.elapsed_s),
        "workers' time": text.idle_time(work),
        "seconds per candidate and worker": f"{sum(seconds) / len(seconds):.2f}" if seconds else "-",
        "started": run.started_at,
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(run.versions.items())),
    }
    rows = "".join(
        f'<tr><td>{escape(key)}</td><td class="text">{escape(str(value))}</td></tr>'
        for key, value in facts.items()
    )
    return ["<h2>The run</h2>", f"<table><tbody>{rows}</tbody></table>"]


def _commands_section(storage_path: Path) -> list[str]:
    import shlex

    folder = shlex.quote(str(storage_path))
    commands = (
        f"# go on, or extend the search with a larger --max-fevals (add the options of the first start)\n"
        f"mergekit-evolve {folder}/search.yml --storage-path {folder}\n\n"
        f"# merge the winner again, here or with mergekit-yaml\n"
        f"mergevolve merge {folder}/best_config.yaml OUT\n"
    )
    return ["<h2>Go on from here</h2>", f"<pre>{escape(commands)}</pre>"]


def _picture(figure: Figure, title: str) -> str:
    return f"<figure>{figures.svg(figure, title)}</figure>"


def _note(line: str) -> str:
    return f'<p class="note">{escape(line)}</p>'


def _row(cells: list[str], css: str) -> str:
    return f'<tr class="{css}">' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
