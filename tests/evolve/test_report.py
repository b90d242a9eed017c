"""The report: what is read off a journal, the pictures, the page."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from evolve.journal import JournalView
from evolve.outcome import Failed
from evolve.records import Measured
from evolve.report import figures, page, text
from evolve.report.summary import display_name, summarise
from evolve.report.weights import REST, panels
from evolve.report.write import write_picture, write_report
from evolve.storage import StoragePath
from merge_engine.spec import parse_recipe
from tests.evolve.made import candidate, holdout, recipe, run_record, scored, view, written


def panel_values(data: object) -> dict[tuple[str, str], np.ndarray]:
    return {(panel.parameter, panel.filter): panel.values for panel in panels(parse_recipe(data))}


def test_panels_lay_slices_out_over_the_layers() -> None:
    found = panel_values(recipe(1.0, layers=4, group=2))
    assert set(found) == {("weight", "self_attn"), ("weight", REST), ("density", "")}
    np.testing.assert_allclose(found["weight", "self_attn"], [[0.4, 0.4, 0.9, 0.9], [1.4, 1.4, 0.9, 0.9]])
    np.testing.assert_allclose(found["density", ""], [[0.3, 0.3, 0.6, 0.6], [0.9, 0.9, 0.6, 0.6]])


def test_panels_of_a_gradient_have_a_column_for_each_node() -> None:
    found = panel_values(
        {
            "merge_method": "slerp",
            "base_model": "a",
            "models": [{"model": "a"}, {"model": "b"}],
            "parameters": {"t": [0.0, 0.25, 1.0]},
        }
    )
    np.testing.assert_allclose(found["t", ""], [[0.0, 0.25, 1.0]])


def test_panels_leave_switches_out_and_mark_what_is_not_set() -> None:
    first = {"model": "a", "layer_range": [0, 1], "parameters": {"weight": 0.5}}
    second = {"model": "b", "layer_range": [1, 3], "parameters": {"weight": 0.7}}
    found = panel_values(
        {
            "merge_method": "linear",
            "slices": [{"sources": [first]}, {"sources": [second]}],
            "parameters": {"normalize": True},
        }
    )
    nan = np.nan
    np.testing.assert_allclose(found["weight", ""], [[0.5, nan, nan], [nan, 0.7, 0.7]])
    assert list(found) == [("weight", "")]


def test_the_latest_held_out_record_of_a_name_counts() -> None:
    content = view(12)
    later = holdout("best", 5, scored(0.9, 0.9, 0.9))
    summary = summarise(replace(content, holdout=(*content.holdout, later)))
    assert summary.table.rows[0].candidate_id == 5
    assert [row.name for row in summary.table.rows].count("best") == 1


@pytest.mark.parametrize(
    ("origin", "name"),
    [
        ("sample", "sample"),
        ("baseline:uniform", "uniform"),
        ("baseline:task_arithmetic", "task arithmetic"),
        ("baseline:source:org/model-7b", "source model-7b"),
        ("baseline:source:./models/math/+adapters/lora", "source math+lora"),
    ],
)
def test_origins_have_readable_names(origin: str, name: str) -> None:
    assert display_name(origin) == name


@pytest.mark.parametrize(
    ("seconds", "said"), [(4.4, "4 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations(seconds: float, said: str) -> None:
    assert text.duration(seconds) == said


class Tags(HTMLParser):
    """Checks that tags nest, and collects what a browser would load."""

    VOID = frozenset({"meta", "br", "use", "path"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing_from_elsewhere() -> None:
    html = page.render(summarise(view(40)), Path("demo-run"))
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    assert all(link.startswith(("#", "data:")) for link in tags.links)
    assert html.count("<svg") == 4
    ids = re.findall(r' id="([^"]+)"', html)
    for link in set(tags.links):
        assert link.startswith("data:") or link[1:] in ids
    for expected in (
        "Held-out items",
        "weight · self_attn",
        "mergekit-evolve demo-run/search.yml",
        "merge_method: ties",
    ):
        assert expected in html


def test_the_same_journal_gives_the_same_page() -> None:
    assert page.render(summarise(view(20)), Path("x")) == page.render(summarise(view(20)), Path("x"))


def test_names_and_reasons_are_escaped() -> None:
    content = view(12)
    nasty = "<script>alert(1)</script>"
    failed = candidate(11, outcome=Failed(reason=nasty, stage="score"))
    sources = (holdout(f"baseline:source:{nasty}", 0, scored(0.5, 0.5, 0.5)),)
    changed = replace(content, candidates=(*content.candidates[:-1], failed), holdout=sources)
    html = page.render(summarise(changed), Path(nasty.replace("/", "")))
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_a_search_without_any_score_still_has_a_page() -> None:
    failures = tuple(
        candidate(number, outcome=Failed(reason="no memory", stage="score")) for number in range(3)
    )
    html = page.render(summarise(JournalView(run=run_record(), candidates=failures, holdout=())), Path("run"))
    assert "No candidate has a score yet (3 failed)" in html
    assert "3 failed, score: no memory" in html
    empty = summarise(JournalView(run=run_record(), candidates=(), holdout=()))
    assert "No candidate has a score yet (0 failed)" in page.render(empty, Path("run"))


def test_without_held_out_items_the_page_warns() -> None:
    assert "optimistic" in page.render(summarise(view(20, with_holdout=False)), Path("run"))


def test_the_headline_names_score_and_difference() -> None:
    line = page.headline(summarise(view(40)))
    assert line.startswith("Best of 40 candidates on the search items: 2.3000 (sample).")
    assert re.search(r"On held-out items: 2\.160 ± 0\.1\d+, \+1\.\d+ ± 0\.1\d+ against source", line)


def test_the_table_marks_the_exported_row_and_significance() -> None:
    summary = summarise(view(40))
    best = summary.table.rows[0]
    assert text.row_name(best, best.candidate_id) == "best (exported)"
    assert text.row_name(best, 0) == "best"
    assert text.versus_text(best.versus_best_source, is_best_source=False).endswith("*")
    assert text.row_name(summary.table.rows[2], 0) == "source math"
    assert any("paired 95 % interval" in note for note in text.footnotes(summary.table))


def test_pictures_are_drawn_without_touching_the_callers_figures() -> None:
    import matplotlib.pyplot as plt

    before = dict(plt.rcParams)
    picture = figures.png(figures.overview(summarise(view(20))))
    assert picture.startswith(b"\x89PNG")
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == before


def test_report_and_picture_are_written_from_the_journal(tmp_path: Path) -> None:
    storage = written(tmp_path / "run", view(12))
    assert write_report(StoragePath(storage.folder)) == storage.report
    assert storage.report.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    write_picture(storage, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_copies_take_no_time_and_appear_nowhere_as_work() -> None:
    whole = view(20)
    copy = replace(whole.candidates[5], id=20, copied_from=5, measured=Measured.nothing(9e9))
    summary = summarise(replace(whole, candidates=(*whole.candidates, copy)))
    before = summarise(whole)
    assert summary.work == before.work
    assert (len(summary.evaluated), summary.repeats) == (20, 1)
    assert summary.best_id == before.best_id
    assert "1 with the recipe of an earlier candidate" in page.render(summary, Path("run"))


@pytest.mark.parametrize(
    ("origin", "name"),
    [
        ("initial:runs/one/best_config.yaml", "initial one"),
        ("initial:mine.yml", "initial mine.yml"),
        ("baseline:source:/x/stages/params/final_model", "source params"),
        ("baseline:source:./models/math/", "source math"),
        ("baseline:source:final_model", "source final_model"),
    ],
)
def test_what_every_storage_path_has_is_called_by_its_folder(origin: str, name: str) -> None:
    assert display_name(origin) == name
