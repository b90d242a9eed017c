"""The journal: nothing lost, nothing twice, torn tails dropped, damage refused, old versions read."""

from __future__ import annotations

import json
import math
import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest

from evolve.errors import JournalError
from evolve.journal import Journal, canonical, read_journal
from evolve.outcome import Failed, Scored
from evolve.records import CandidateRecord, HoldoutRecord, Measured, RunRecord, WorkerRecord
from fitness.results import Report, TaskResult

_GOLDEN = Path(__file__).parent / "golden"

RUN = RunRecord(
    schema=3,
    seed=7,
    popsize=4,
    batch_size=64,
    dimensions=2,
    inputs={"model a": "00ff"},
    versions={"mergevolve": "0.1.0", "cma": "4.5.0"},
    started_at="2026-01-02T03:04:05+00:00",
)
MEASURED = Measured(
    worker="worker-0", started_s=1.5, wall_s=2.25, merge_s=0.25, score_s=2.0, forward_s=1.75, attempts=1
)
REPORT = Report(
    tasks=(
        TaskResult(
            task="sums",
            metric="exact_match,none",
            weight=1.0,
            value=0.1 + 0.2,
            items=(1.0, 0.0),
            item_ids=(4, 9),
        ),
        TaskResult(
            task="prose", metric="perplexity,none", weight=-0.5, value=12.5, items=(None,), item_ids=(0,)
        ),
    )
)
RECIPE = {"merge_method": "linear", "models": [{"model": "modèle", "parameters": {"weight": 1 / 3}}]}
SCORED = CandidateRecord(
    id=0,
    generation=0,
    index=0,
    origin="baseline:uniform",
    recipe=RECIPE,
    outcome=Scored(report=REPORT),
    measured=MEASURED,
)
FAILED = replace(SCORED, id=1, index=1, origin="sample", outcome=Failed(reason="no room", stage="score"))
COPY = replace(SCORED, id=2, index=2, origin="sample", copied_from=0)
REFUSED = replace(
    SCORED, id=3, index=3, origin="sample", recipe={}, outcome=Failed(reason="no layers", stage="decode")
)
WORKER = WorkerRecord(
    worker="worker-0", event="died", at_s=0.5, lost_s=0.25, detail="its process died on a; it is replaced"
)
HOLDOUT = HoldoutRecord(name="best", candidate_id=0, outcome=Scored(report=REPORT), measured=MEASURED)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "journal.jsonl"
    journal = Journal.create(path, RUN)
    for record in (WORKER, FAILED, SCORED, COPY, REFUSED, HOLDOUT):
        journal.append(record)
    journal.close()
    return path


def test_what_goes_in_comes_out(path: Path) -> None:
    view = read_journal(path)
    assert (view.run, view.candidates, view.holdout) == (RUN, (FAILED, SCORED, COPY, REFUSED), (HOLDOUT,))
    assert view.workers == (WORKER,)


def test_only_what_a_worker_did_counts(path: Path) -> None:
    assert [record.evaluated for record in (FAILED, SCORED, COPY, REFUSED)] == [True, True, False, False]
    assert read_journal(path).evaluations == 2


def test_the_present_schema_is_written_byte_by_byte_the_same(path: Path) -> None:
    assert path.read_bytes() == (_GOLDEN / "journal-3.jsonl").read_bytes()


def test_a_journal_of_schema_1_is_read_as_ever() -> None:
    view = read_journal(_GOLDEN / "journal-1.jsonl")
    assert view.run == replace(RUN, schema=1)
    assert (view.candidates, view.holdout) == ((FAILED, SCORED), (HOLDOUT,))


def test_a_journal_of_schema_2_is_read_as_ever() -> None:
    view = read_journal(_GOLDEN / "journal-2.jsonl")
    assert view.run == replace(RUN, schema=2)
    assert (view.candidates, view.holdout) == ((FAILED, SCORED, COPY, REFUSED), (HOLDOUT,))
    assert view.workers == ()


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_torn_last_line_is_dropped(path: Path, cut: int) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert read_journal(path).holdout == ()
    journal = Journal.open(path)
    journal.append(HOLDOUT)
    journal.close()
    assert path.read_bytes() == whole


def test_reading_changes_nothing(path: Path) -> None:
    torn = path.read_bytes()[:-5]
    path.write_bytes(torn)
    read_journal(path)
    assert path.read_bytes() == torn


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"kind":"candidate"',
            '"kind":"candidat"',
            r"line 3 is damaged \(ValueError: unknown kind 'candidat'",
        ),
        ('"id":1,', "", r"line 3 is damaged \(KeyError: 'id'"),
        (
            '"id":1,',
            '"id":1',
            r"line 3 is damaged \(JSONDecodeError: .*from a copy, or remove that line",
        ),
        ('"id":1,', '"id":0,', r"line 4: candidate 0 is there a second time; restore the file"),
        (
            '"schema":3',
            '"schema":4',
            r"has schema version 4, this program reads versions 1, 2, 3: finish the search with",
        ),
        (
            '{"kind":"run"',
            '{"kind":"holdout"',
            r"line 1 is damaged \(KeyError.*or start anew in another storage",
        ),
    ],
)
def test_damage_is_refused_with_the_line(path: Path, old: str, new: str, message: str) -> None:
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(JournalError, match=message):
        read_journal(path)


def test_a_journal_starts_with_its_run_and_has_no_other(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))
    with pytest.raises(JournalError, match="line 1: the first line, and only that, has to be the run's"):
        read_journal(path)
    path.write_text("".join([*lines, lines[0]]))
    with pytest.raises(JournalError, match="line 8: the first line, and only that, has to be the run's"):
        read_journal(path)


def test_no_journal_and_an_empty_one_say_so(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"cannot read the journal .*: No such file"):
        read_journal(tmp_path / "journal.jsonl")
    (tmp_path / "journal.jsonl").touch()
    with pytest.raises(JournalError, match="is empty: no search has started there"):
        read_journal(tmp_path / "journal.jsonl")


def test_a_full_disk_leaves_the_journal_as_it_was_and_usable(path: Path) -> None:
    before = path.read_bytes()
    journal = Journal.open(path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
    try:
        with pytest.raises(JournalError, match=r"cannot write to .*: File too large; .* make room"):
            journal.append(replace(SCORED, id=4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    journal.append(replace(SCORED, id=4))
    journal.close()
    assert [record.id for record in read_journal(path).candidates] == [1, 0, 2, 3, 4]


def test_every_line_is_synced_before_append_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    journal = Journal.open(path)
    journal.append(replace(SCORED, id=4))
    assert synced == [path.stat().st_size]
    journal.append(WORKER)
    assert len(synced) == 1, "nothing hangs on what is said of a worker"
    journal.append(replace(SCORED, id=5), replace(SCORED, id=6))
    assert synced[1:] == [path.stat().st_size], "what finished together waits for the disk together"
    journal.close()
    assert [record.id for record in read_journal(path).candidates[-2:]] == [5, 6]


def test_item_values_that_are_no_numbers_become_missing_ones(path: Path) -> None:
    items = (math.nan, math.inf, 1.0)
    task = replace(REPORT.tasks[0], items=items, item_ids=(0, 1, 2))
    journal = Journal.open(path)
    journal.append(replace(SCORED, id=4, outcome=Scored(report=Report(tasks=(task,)))))
    journal.close()
    outcome = read_journal(path).candidates[-1].outcome
    assert isinstance(outcome, Scored)
    assert outcome.report.tasks[0].items == (None, None, 1.0)


def test_the_canonical_form_has_no_order_no_times_and_no_places() -> None:
    other = replace(MEASURED, worker="worker-1", started_s=9.0, attempts=2)
    one = canonical([RUN, WORKER, SCORED, FAILED, HOLDOUT])
    two = canonical(
        [
            replace(HOLDOUT, measured=other),
            replace(FAILED, measured=other),
            replace(RUN, started_at="later"),
            replace(SCORED, measured=other),
        ]
    )
    assert one == two
    assert canonical([replace(SCORED, recipe={})]) != canonical([SCORED])
    assert "measured" not in json.dumps(one)
