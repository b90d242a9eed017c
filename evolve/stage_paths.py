"""Where the stages of a search lie and how far they have come, read from its storage path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evolve.frozen_input import kept_searches
from evolve.journal import read_journal
from evolve.ledger import choose_winner
from evolve.report.summary import Summary, summarise
from evolve.storage import StoragePath
from evolve.winners import Winner


@dataclass(frozen=True, slots=True, kw_only=True)
class StageState:
    """One stage of a search; an ordinary search is one stage without a name.

    ``summary``: None before it begins. ``total``: the budget in the kept search file, or None.
    """

    name: str
    storage: StoragePath
    summary: Summary | None
    total: int | None


def stage_paths(storage: StoragePath, names: Sequence[str]) -> dict[str, StoragePath]:
    """The storage path of each stage: the last one has the search's own."""
    return {
        name: storage if number == len(names) - 1 else storage.stage(name)
        for number, name in enumerate(names)
    }


def stage_states(storage: StoragePath) -> tuple[StageState, ...]:
    """All stages of a search that has begun, in their order.

    Raises:
        JournalError: a stage's journal is damaged.
    """
    searches = kept_searches(storage)
    return tuple(
        StageState(
            name=name,
            storage=path,
            summary=summarise(read_journal(path.journal)) if path.journal.exists() else None,
            total=searches[name].budget.candidates if name in searches else None,
        )
        for name, path in stage_paths(storage, list(searches) or [""]).items()
    )


def current_stage(states: Sequence[StageState]) -> StageState:
    """The last stage that has begun; the last one where none has."""
    begun = [state for state in states if state.summary is not None]
    return (begun or states)[-1]


def earlier_winners(paths: Mapping[str, StoragePath], name: str) -> list[Winner]:
    """What the stages before the one with this ``name`` have found, in their order."""
    found = []
    for stage, storage in paths.items():
        if stage == name:
            break
        winner = choose_winner(read_journal(storage.journal).candidates) if storage.journal.exists() else None
        if winner is not None:
            folder = str(storage.final_model.resolve())
            found.append(Winner(stage=stage, folder=folder, recipe=winner.recipe))
    return found


def winners_before_last(storage: StoragePath) -> list[Winner]:
    """What the stages before the last one have found; empty for an ordinary search."""
    names = list(kept_searches(storage))
    return earlier_winners(stage_paths(storage, names), names[-1]) if names else []
