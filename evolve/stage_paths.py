"""Where the stages of a search lie and how far they have come, read from its storage path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evolve.frozen_input import kept_searches, kept_stages
from evolve.journal import read_journal
from evolve.ledger import choose_winner
from evolve.report.summary import Summary, summarise
from evolve.storage import StoragePath
from evolve.winners import Winner, references, renamed
from genome.stages import WINNER, Stage


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


def winner_references(storage: StoragePath, stage: Stage) -> dict[str, str]:
    """`evolve.winners.references` of a stage that lies in ``storage``."""
    return references(stage, read_journal(storage.journal).run.inputs if storage.journal.exists() else {})


def earlier_winners(storage: StoragePath, stages: Sequence[Stage], name: str) -> list[Winner]:
    """What the stages before the one with this ``name`` have found, in their order, as that one's recipes
    name them.
    """
    paths = stage_paths(storage, [stage.name for stage in stages])
    known = {stage.name: stage for stage in stages}
    names = {stage: WINNER + stage for stage in paths} | winner_references(paths[name], known[name])
    found = []
    for stage in stages:
        if stage.name == name:
            break
        journal = paths[stage.name].journal
        winner = choose_winner(read_journal(journal).candidates) if journal.exists() else None
        if winner is not None:
            own = winner_references(paths[stage.name], stage)
            found.append(
                Winner(
                    stage=stage.name,
                    reference=names[stage.name],
                    folder=str(paths[stage.name].final_model.resolve()),
                    recipe=renamed(winner.recipe, {own[needed]: names[needed] for needed in own}),
                )
            )
    return found


def winners_before_last(storage: StoragePath) -> list[Winner]:
    """What the stages before the last one have found; empty for an ordinary search."""
    stages = kept_stages(storage)
    return earlier_winners(storage, stages, stages[-1].name) if stages else []
