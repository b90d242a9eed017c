"""What every accident is compared with."""

from __future__ import annotations

from typing import Any

import pytest

from evolve.holdout import HoldoutRow, run_holdout
from evolve.journal import Journal
from evolve.ledger import choose_winner
from evolve.search import SearchSettings, new_run, run_search
from tests.fault.driver import BUDGET, content
from tests.fault.inline_fleet import InlineFleet
from tests.fault.toy import ToyEvaluator, ToyFactory, ToySpace


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The journal of the same search with no accident, no Ray and another number of workers."""
    folder = tmp_path_factory.mktemp("undisturbed")
    settings = SearchSettings(seed=3, popsize=6, max_fevals=BUDGET)
    space = ToySpace()
    run = new_run(space, settings, batch_size=4, inputs={}, started_at="yesterday")
    journal = Journal.create(folder / "journal.jsonl", run)
    fleet = InlineFleet(ToyEvaluator(ToyFactory(scratch=folder)), capacity=3)
    result = run_search(space, settings, fleet, journal)
    winner = choose_winner(record for record in (result.best, result.mean) if record is not None)
    assert winner is not None
    run_holdout([HoldoutRow(name="best", candidate=winner)], fleet, journal)
    journal.close()
    return content(journal.path)
