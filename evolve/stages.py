"""Searches one after another in one storage path, each of which may merge the winners of those before it.

The last stage's storage path is the search's own; the others lie inside it under ``stages/<name>/``. A stage
is an ordinary search whose recipes name the earlier winners as its file does. Once a later stage has begun, a
stage is closed: what it found is an input from then on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from evolve.errors import EvolveError, PreflightError
from evolve.forecast import forecast
from evolve.frozen_input import keep_stages
from evolve.machine import this_machine
from evolve.options import SearchOptions
from evolve.preflight import Ready, inspect, inspect_without_models, max_fevals
from evolve.report.write import write_report
from evolve.search_run import SearchRun
from evolve.stage_paths import earlier_winners, stage_paths, winner_references
from evolve.storage import StoragePath
from evolve.winners import renamed
from genome.build import keeps_layers
from genome.errors import SearchFileError
from genome.search_file import SearchFile
from genome.stages import Stage, read_stages, with_winners
from merge_engine.errors import Problem, RecipeError
from merge_engine.spec import dump_yaml, load_yaml

if TYPE_CHECKING:
    from rich.console import Console


def named_stages(options: SearchOptions, text: str) -> tuple[Stage, ...]:
    """The stages of a search file; none where it is an ordinary one, or no YAML at all.

    Raises:
        PreflightError: the list of stages, or the winners that they name, make no sense.
    """
    try:
        return read_stages(load_yaml(text))
    except RecipeError:
        return ()
    except SearchFileError as error:
        raise PreflightError(options.search_file, error.problems) from None


def run_stages(options: SearchOptions, stages: Sequence[Stage], console: Console) -> int:
    """Run what is left of each stage in turn. Returns the exit status; raises as `evolve.run.run`."""
    return _Stages(options, stages, console).run()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outlook:
    """A stage before it begins. ``likeness``: a model with the config and the layers that its winner will
    have; None where that depends on what it finds.
    """

    search_file: SearchFile
    likeness: str | None


class _Stages:
    def __init__(self, options: SearchOptions, stages: Sequence[Stage], console: Console) -> None:
        self._options = options
        self._stages = stages
        self._console = console
        self._storage = StoragePath(options.storage_path)
        self._paths = stage_paths(self._storage, [stage.name for stage in stages])

    def run(self) -> int:
        outlooks = self._inspect()
        with self._storage.lock():
            kept = {
                name: (known.search_file, max_fevals(known.search_file)) for name, known in outlooks.items()
            }
            closed = [stage.name for number, stage in enumerate(self._stages) if self._is_closed(number)]
            keep_stages(self._storage, kept, frozenset(closed))
            for number, stage in enumerate(self._stages):
                if stage.name in closed and self._paths[stage.name].final_model.exists():
                    continue
                status = self._run(number, stage)
                write_report(self._storage)
                if status:
                    return status
        return 0

    def _is_closed(self, number: int) -> bool:
        later = self._stages[number + 1 :]
        return any(self._paths[stage.name].journal.exists() for stage in later)

    def _run(self, number: int, stage: Stage) -> int:
        storage = self._paths[stage.name]
        is_last = number == len(self._stages) - 1
        is_needed = any(stage.name in later.needs for later in self._stages)
        options = replace(self._options, save_final_model=is_needed or self._options.save_final_model)
        if options.view != "quiet":
            title = f"stage {stage.name} ({number + 1} of {len(self._stages)})"
            self._console.print(title, style="bold", markup=False)
        with contextlib.nullcontext() if is_last else storage.lock():
            ready = self._ready(stage)
            winners = earlier_winners(self._storage, self._stages, stage.name)
            run = SearchRun(options, storage, self._console, winners=winners, keeps_search_file=not is_last)
            status = run.run(ready, forecast(ready, options, this_machine()))
        if not status and is_needed and not storage.final_model.exists():
            raise EvolveError(
                f"stage {stage.name}: no candidate has a score, so there is no winner for the stages after "
                f"it; the reasons are in {storage.report}"
            )
        return status

    def _ready(self, stage: Stage) -> Ready:
        """The stage's search, now that the winners are there."""
        names = winner_references(self._paths[stage.name], stage)
        lie = {names[needed]: str(self._paths[needed].final_model.resolve()) for needed in stage.needs}
        text = dump_yaml(with_winners(stage.data, names.__getitem__))
        try:
            return inspect(self._options, text, lambda reference: str(renamed(reference, lie)))
        except PreflightError as error:
            raise PreflightError(self._options.search_file, list(_placed(stage, error))) from None

    def _inspect(self) -> Mapping[str, _Outlook]:
        """Look at all stages before any work, with stand-ins for winners that are not there yet.

        Raises:
            PreflightError: with the problems of all stages, each once.
        """
        problems = list(_option_problems(self._options))
        outlooks: dict[str, _Outlook] = {}
        for stage in self._stages:
            if any(name not in outlooks for name in stage.needs):
                continue  # its winner's stage has problems of its own
            try:
                outlooks[stage.name] = self._outlook(stage, outlooks)
            except PreflightError as error:
                problems += _placed(stage, error)
        if problems:
            raise PreflightError(self._options.search_file, list(dict.fromkeys(problems)))
        return outlooks

    def _outlook(self, stage: Stage, earlier: Mapping[str, _Outlook]) -> _Outlook:
        text = dump_yaml(stage.data)
        likeness = {name: self._likeness(name, earlier[name]) for name in stage.needs}
        known = {name: folder for name, folder in likeness.items() if folder is not None}
        if len(known) < len(likeness):
            search_file = inspect_without_models(self._options, text)
            return _Outlook(search_file=search_file, likeness=None)
        locate = _located(known)
        ready = inspect(self._options, text, locate)
        keeps = keeps_layers(ready.search_file, ready.space)
        return _Outlook(search_file=ready.search_file, likeness=locate(ready.pattern) if keeps else None)

    def _likeness(self, name: str, known: _Outlook) -> str | None:
        folder = self._paths[name].final_model
        return str(folder) if folder.exists() else known.likeness


def _located(folders: Mapping[str, str]) -> Callable[[str], str]:
    return lambda reference: str(with_winners(reference, lambda name: folders[name]))


def _placed(stage: Stage, error: PreflightError) -> Iterator[Problem]:
    for problem in error.problems:
        yield Problem(stage.where(problem.where), problem.what, problem.remedy)


def _option_problems(options: SearchOptions) -> Iterator[Problem]:
    remedy = "leave it out, and give the stages a budget each"
    if options.max_fevals is not None:
        what = "the search file has stages, and each counts its own candidates"
        yield Problem("--max-fevals", what, f"{remedy}: `budget: {{candidates: 200}}`")
    if options.timeout_s is not None:
        what = "the search file has stages, and each has its own time"
        yield Problem("--timeout", what, f"{remedy}: `budget: {{hours: 2}}`")
