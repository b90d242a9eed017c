"""One search in its storage path, from what passed the preflight to the report."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from evolve import initial, outlook
from evolve.errors import SearchChangedError
from evolve.evaluator_spec import DiskSettings, EvaluatorSpec
from evolve.export import BestConfig, ExportError, is_written, rescore, write_winner
from evolve.forecast import Forecast, candidate_bytes, forecast
from evolve.frozen_input import keep_search_file
from evolve.holdout import holdout_rows, run_holdout
from evolve.journal import Journal, JournalView, read_journal
from evolve.layouts import layouts_of
from evolve.ledger import choose_winner, is_spent
from evolve.machine import this_machine
from evolve.observer import Observer
from evolve.optimisers import default_popsize
from evolve.options import SearchOptions
from evolve.outcome import Scored
from evolve.preflight import Ready, vllm_settings
from evolve.progress import progress_view
from evolve.replay import check_same_inputs
from evolve.report import text
from evolve.report.summary import display_name, summarise
from evolve.report.write import write_report
from evolve.scratch import check_room, remove_left_overs, scratch_root
from evolve.search import SearchSettings, new_run, run_search
from evolve.storage import StoragePath
from evolve.trackers import WandbTracker
from evolve.winners import LocatedFactory, Winner, folders, renamed
from evolve.worker_log import WorkerLog
from fitness.vllm_settings import VllmSettings
from genome.frozen import frozen_search_file
from merge_engine.fingerprint import fingerprint
from merge_engine.spec import recipe_data

if TYPE_CHECKING:
    from rich.console import Console

    from evolve.evaluator import EvaluatorFactory
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

    def run(self, ready: Ready) -> int:
        """The exit status.

        Raises:
            EvolveError: the search could not go on; what it found so far is in the storage path.
        """
        earlier = read_journal(self._storage.journal) if self._storage.journal.exists() else None
        expected = forecast(ready, self._options, this_machine())
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
            self._make_room(ready)
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
        from evolve.ray_fleet import FleetSettings, RayFleet

        options = self._options
        batch_size = options.batch_size if earlier is None else earlier.run.batch_size
        self._storage.logs.mkdir(exist_ok=True)
        self._note("starting workers ...")
        # The driver has nothing to do until they are ready; imported later, pycma would keep them waiting.
        threading.Thread(target=importlib.import_module, args=("cma",), daemon=True).start()
        return RayFleet(
            self._factory(ready, batch_size),
            FleetSettings(
                num_workers=options.wanted_workers,
                address=options.ray_address,
                device=None if options.num_gpus is None else "cuda" if options.num_gpus else "cpu",
                logs=self._storage.logs,
                candidate_limit_s=options.candidate_timeout_s,
                retries=options.retries,
                gpus_per_worker=ready.search_file.vllm.tensor_parallel_size if options.vllm else 1,
                workers_per_gpu=options.workers_per_gpu,
                worker_bytes=expected.least_bytes,
                batch_size=batch_size,
            ),
        )

    def _factory(self, ready: Ready, batch_size: int | None) -> EvaluatorFactory:
        """What workers need to know. They are told where the winners of earlier stages lie."""
        options, lie = self._options, folders(self._winners)
        layouts = layouts_of(ready)
        spec = EvaluatorSpec(
            model=str(renamed(ready.pattern, lie)),
            suite=ready.suite,
            dtype=ready.dtype,
            seed=options.seed,
            probe=renamed(recipe_data(ready.space.decode(ready.space.start)), lie),
            batch_size=batch_size,
            trust_remote_code=options.trust_remote_code,
            allow_crimes=options.allow_crimes,
            layouts=None if layouts is None else replace(layouts, models=tuple(renamed(layouts.models, lie))),
            vllm=self._vllm(ready) if options.vllm else None,
            disk=self._disk() if options.on_disk else None,
        )
        return LocatedFactory(factory=spec, folders=lie) if lie else spec

    def _make_room(self, ready: Ready) -> None:
        """On this machine, before any worker starts; each looks for itself, too.

        Raises:
            ScratchError: there is not room enough, even without what earlier searches left.
        """
        disk, options = self._disk(), self._options
        root = scratch_root(disk.scratch)
        removed = remove_left_overs(root)
        if removed:
            self._note(f"removed {len(removed)} scratch folders that killed workers left below {root}")
        check_room(root, candidate_bytes(ready), options.wanted_workers or 1, disk.owner)
        self._note(f"candidates are merged to the disk, below {root}, and removed once they are scored")

    def _vllm(self, ready: Ready) -> VllmSettings:
        """Engines that share a GPU share what engines may take of it."""
        settings = vllm_settings(ready.search_file.vllm)
        each = settings.gpu_memory_utilization / self._options.workers_per_gpu
        return replace(settings, gpu_memory_utilization=each)

    def _disk(self) -> DiskSettings:
        options = self._options
        return DiskSettings(
            scratch=None if options.scratch is None else options.scratch.absolute(),
            owner=str(self._storage.folder.absolute()),
            bits=options.bits,
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
