"""`mergevolve status`, on journals of searches that run, ended, or never began."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from evolve.errors import JournalError
from evolve.journal import JournalView
from evolve.status import lines, read_status, show
from tests.evolve.made import run_record, view, written


def shown(folder: Path) -> str:
    screen = io.StringIO()
    show(read_status(folder), Console(file=screen, width=140))
    return screen.getvalue()


def test_a_finished_search_shows_its_best_and_the_held_out_table(tmp_path: Path) -> None:
    written(tmp_path, view(40))
    text = shown(tmp_path)
    assert "not running; 40 of 80 candidates done, 1 failed" in text
    assert "1 failed, merge: weights are not finite" in text
    assert "best 2.3000 (candidate 39, sample); best source 1.1000 (source math)" in text
    assert "workers' time: 12.8 % idle" in text  # 1.3 s of work every 1.5 s
    assert "Held-out items" in text
    assert "source math" in text


def test_a_running_search_is_told_by_its_lock_and_given_a_time(tmp_path: Path) -> None:
    storage = written(tmp_path, view(40, with_holdout=False))
    with storage.lock():
        status = read_status(tmp_path)
        assert status.running
        text = "\n".join(lines(status))
    assert text.startswith("running; 40 of 80 candidates done")
    # Forty candidates on two workers took half a minute, so forty more will.
    assert "about 30 s left" in text
    assert not read_status(tmp_path).running


def test_asking_leaves_the_lock_to_the_next_driver_and_the_folder_as_it_was(tmp_path: Path) -> None:
    storage = written(tmp_path, view(12))
    with storage.lock():
        pass
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    read_status(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with storage.lock():
        pass


def test_copies_are_no_candidates_done_and_no_places_in_the_ranking(tmp_path: Path) -> None:
    whole = view(40)
    best = max(whole.candidates, key=lambda record: record.id)
    copies = tuple(replace(best, id=40 + number, copied_from=best.id) for number in range(5))
    written(tmp_path, replace(whole, candidates=(*whole.candidates, *copies)))
    text = shown(tmp_path)
    assert "not running; 40 of 80 candidates done, 1 failed, 5 not scored again" in text
    assert "41" not in text[text.index("Best on the search items") : text.index("Held-out items")]


def test_a_search_without_candidates_yet(tmp_path: Path) -> None:
    written(tmp_path, JournalView(run=run_record(), candidates=(), holdout=()))
    assert shown(tmp_path).strip() == "not running; 0 of 80 candidates done, 0 failed"


def test_a_folder_without_a_journal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot read the journal"):
        read_status(tmp_path)
