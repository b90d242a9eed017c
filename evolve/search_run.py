"""One search in its storage path, from what passed the preflight to the report."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from evolve import initial, outlook
from evolve.errors import SearchChangedError
from evolve.export import BestConfig, ExportError, is_written, rescore, write_winner
from evolve.forecast import Forecast
from evolve.frozen_input import keep_search_file
from evolve.holdout import holdout_rows, run_holdout
from evolve.journal import Journal, JournalView, read_journal
from evolve.ledger import choose_winner, is_spent
from evolve.observer import Observer
from evolve.optimisers import default_popsize
from evolve.options import SearchOptions
from evolve.outcome import Scored
from evolve.preflight import Ready
from evolve.progress import progress_view
from evolve.replay import check_same_inputs
from evolve.report import text
from evolve.report.summary import display_name, summarise
from evolve.report.write import write_report
from evolve.search import SearchSettings, new_run, run_search
from evolve.search_fleet import make_room, start_fleet
from evolve.storage import StoragePath
from evolve.trackers import WandbTracker
from evolve.winners import Winner
from evolve.worker_log import WorkerLog
from genome.frozen import frozen_search_file
from merge_engine.fingerprint import fingerprint

if TYPE_CHECKING:
    from rich.console import Console

    from evolve.fleet import Fleet
    from evolve.ray_fleet import RayFleet

_SCORER = "scored by"  # among the inputs that the journal keeps
INTERRUPTED = 130  # exit status of a program that Ctrl-C ended


class SearchRun:
    """Searches, scores the winner on held-out items, exports it, reports; or goes on with all that.

    Args:
        options: what was asked for; which search file and which storage path is told by the others.
        storage: held by the caller.
        winners: of the stages before this one.
        keeps_search_file: whether ``ready``'s search file is the one that the storage path keeps.
    """

    def __init__(
        self,
        options: SearchOptions,
        storage: StoragePath,
        console: Console,
        *,
        winners: Sequence[Winner] = (),
        keeps_search_file: bool = True,
    ) -> None:
        self._options = options
        self._console = console
        self._storage = storage
        self._winners = winners
        self._keeps_search_file = keeps_search_file

    def run(self, ready: Ready, expected: Forecast) -> int:
        """The exit status.

        Raises:
            EvolveError: the search could not go on; what it found so far is in the storage path.
        """
        earlier = read_journal(self._storage.journal) if self._storage.journal.exists() else None
        self._note(*outlook.before_start(ready, self._storage.folder, earlier, expected))
        self._note(*initial.notes(ready.initial))
        if earlier is not None:
            self._check_options(earlier)
        if self._keeps_search_file:
            keep_search_file(self._storage, ready.search_file, ready.max_fevals)
        status = 0 if self._is_finished(ready, earlier) else self._work(ready, earlier, expected)
        self._report()
        if status == INTERRUPTED:
            self._say("stopped early; the same command goes on from here")
        return status

    def _is_finished(self, ready: Ready, earlier: JournalView | None) -> bool:
        """Whether an earlier start did it all: the budget, the held-out items, the winner's model."""
        if earlier is None or not is_spent(earlier.candidates, ready.max_fevals):
            return False
        scored = {(record.name, record.candidate_id) for record in earlier.holdout}
        wanted = holdout_rows(earlier.candidates) if ready.suite.holdout is not None else []
        summary = summarise(earlier)
        winner = choose_winner(earlier.candidates)
        return all((row.name, row.candidate.id) in scored for row in wanted) and (
            winner is None
            or not self._options.save_final_model
            or is_written(winner, summary, self._storage.final_model, self._winners)
        )

    def _work(self, ready: Ready, earlier: JournalView | None, expected: Forecast) -> int:
        """Everything that needs workers; returns the exit status."""
        if self._options.on_disk and self._options.ray_address is None:
            for line in make_room(ready, self._options, self._storage):
                self._note(line)
        with self._start_fleet(ready, earlier, expected) as fleet:
            settings = self._settings(ready, fleet, earlier)
            with contextlib.closing(self._open_journal(ready, settings, fleet)) as journal:
                interrupted = self._search(ready, settings, fleet, journal)
                if not interrupted and ready.suite.holdout is not None:
                    self._note("scoring the held-out items ...")
                    rows = holdout_rows(read_journal(self._storage.journal).candidates)
                    interrupted = len(run_holdout(rows, fleet, journal)) < len(rows)
            exported = self._export(fleet, check=not interrupted)
        return INTERRUPTED if interrupted else int(not exported)

    def _check_options(self, earlier: JournalView) -> None:
        """Raises `SearchChangedError` where this command would go on with another search."""
        run, options, folder = earlier.run, self._options, self._storage.folder
        if run.seed != options.seed:
            difference = f"--random-seed: {run.seed} -> {options.seed}"
            raise SearchChangedError(f"{folder} belongs to a search with another seed:", [difference])
        scorer = run.inputs.get(_SCORER, _scored_by(options))
        if scorer != _scored_by(options):
            difference = f"{_SCORER}: {scorer} -> {_scored_by(options)}"
            raise SearchChangedError(f"{folder} belongs to a search with other scores:", [difference])

    def _start_fleet(self, ready: Ready, earlier: JournalView | None, expected: Forecast) -> RayFleet:
        self._note("starting workers ...")
        return start_fleet(
            ready,
            self._options,
            self._storage,
            self._winners,
            batch_size=self._options.batch_size if earlier is None else earlier.run.batch_size,
            worker_bytes=expected.least_bytes,
        )

    def _settings(self, ready: Ready, fleet: RayFleet, earlier: JournalView | None) -> SearchSettings:
        optimizer = ready.search_file.optimizer
        scheduler = ready.search_file.scheduler
        # Where no worker waits for the end of a generation, its size need not suit their number.
        together = fleet.capacity if scheduler == "sync" else 1
        popsize = optimizer.popsize or default_popsize(len(ready.space.start), together)
        done = 0 if earlier is None else earlier.evaluations
        if earlier is not None:
            popsize = earlier.run.popsize
        left = max(0, ready.max_fevals - done)
        self._note(outlook.workers_ready(fleet.facts, fleet.batch_size, popsize, left))
        return SearchSettings(
            seed=self._options.seed,
            popsize=popsize,
            algorithm=optimizer.name,
            sigma0=optimizer.sigma0,
            restarts=optimizer.restarts,
            random_init=ready.search_file.random_init,
            scheduler=scheduler,
            max_fevals=ready.max_fevals,
            time_limit_s=ready.time_limit_s,
        )

    def _open_journal(self, ready: Ready, settings: SearchSettings, fleet: RayFleet) -> Journal:
        path = self._storage.journal
        inputs = {f"model {name}": fingerprint(header) for name, header in ready.headers.items()}
        inputs |= {f"initial recipe {each.file}": each.digest for each in ready.initial}
        inputs["items of the tasks"] = fleet.facts[0].suite_digest
        inputs[_SCORER] = _scored_by(self._options)
        if path.exists():
            journal = Journal.open(path)
            check_same_inputs(journal.view.run, inputs)
            return journal
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        run = new_run(ready.space, settings, batch_size=fleet.batch_size, inputs=inputs, started_at=now)
        return Journal.create(path, run)

    def _search(self, ready: Ready, settings: SearchSettings, fleet: Fleet, journal: Journal) -> bool:
        """Run the search, watched; returns whether somebody stopped it."""
        with self._observers(ready) as observers:
            watching = [WorkerLog(journal), *observers]
            result = run_search(ready.space, settings, fleet, journal, watching, ready.initial)
        return result.stopped_because == "interrupted"

    @contextlib.contextmanager
    def _observers(self, ready: Ready) -> Iterator[Sequence[Observer]]:
        options = self._options
        with contextlib.ExitStack() as closing:
            view = closing.enter_context(
                contextlib.closing(progress_view(options.view, ready.max_fevals, self._console))
            )
            observers: list[Observer] = [BestConfig(self._storage, options.seed, self._winners), view]
            if options.wandb:
                tracker = WandbTracker(
                    self._storage,
                    project=options.wandb_project,
                    entity=options.wandb_entity,
                    settings=frozen_search_file(ready.search_file),
                    warn=self._say,
                )
                observers.append(closing.enter_context(contextlib.closing(tracker)))
            yield observers

    def _export(self, fleet: Fleet, *, check: bool) -> bool:
        """Write the model of the winner on the search items, and check that it scores the same from disk.

        Returns whether what was asked for is there and right.
        """
        summary = summarise(read_journal(self._storage.journal))
        winner = choose_winner(summary.candidates)
        if winner is None or not isinstance(winner.outcome, Scored) or not self._options.save_final_model:
            return True
        folder = self._storage.final_model
        try:
            write_winner(winner, summary, folder, self._winners)
        except ExportError as error:
            self._say(f"WARNING: {error}")
            return False
        self._say(f"wrote {folder}: candidate {winner.id + 1} ({display_name(winner.origin)})")
        difference = rescore(folder, winner.outcome.report, fleet) if check else None
        if difference is not None:
            hint = "its scores are not those of the search; did a source model's files change?"
            self._say(f"WARNING: {folder}: {difference}: {hint}")
        return difference is None

    def _report(self) -> None:
        summary = summarise(read_journal(self._storage.journal))
        if summary.table.rows:
            self._console.print(text.holdout(summary.table, summary.best_id))
            self._say(*text.footnotes(summary.table))
        self._say(f"recipe  {self._storage.best_config}", f"report  {write_report(self._storage)}")

    def _note(self, *lines: str) -> None:
        """Say what is under way, unless only the result was asked for."""
        if self._options.view != "quiet":
            self._say(*lines)

    def _say(self, *lines: str) -> None:
        for line in lines:
            self._console.print(line, markup=False)


def _scored_by(options: SearchOptions) -> str:
    """Where candidates are merged does not change their scores; what runs them does."""
    library = "vllm" if options.vllm else "transformers"
    return library if options.bits is None else f"{library}, {options.bits}-bit weights"
