"""Weights & Biases, with the incumbent's metric names. What fails here never stops the search."""

from __future__ import annotations

import functools
import secrets
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from evolve.observer import GenerationSummary, Observer, SearchResult
from evolve.outcome import Scored
from evolve.records import CandidateRecord, RunRecord
from evolve.storage import StoragePath, write_atomically
from fitness.results import TaskResult

_RUN_ID_NAME = "wandb_run_id"
_Handler = TypeVar("_Handler", bound=Callable[..., None])


def _harmless(handler: _Handler) -> _Handler:
    """Turn whatever goes wrong inside ``handler`` into one warning and the end of tracking."""

    @functools.wraps(handler)
    def guarded(self: WandbTracker, *arguments: Any) -> None:
        if self.failed:
            return
        try:
            handler(self, *arguments)
        except Exception as error:
            self.failed = True
            self._warn(f"Weights & Biases is switched off for this run: {type(error).__name__}: {error}")

    return guarded  # type: ignore[return-value]


class WandbTracker(Observer):
    """Logs each generation; started again on the same storage path, it goes on with the same W&B run.

    Args:
        storage: keeps the W&B run's id, and the run's local files under ``wandb/``.
        project, entity: where the run appears; None for W&B's own defaults.
        settings: what the run was started with, shown as its config.
        warn: takes one line for the person at the terminal.
    """

    def __init__(
        self,
        storage: StoragePath,
        *,
        project: str | None,
        entity: str | None,
        settings: Mapping[str, Any],
        warn: Callable[[str], None],
    ) -> None:
        self.failed = False
        self._storage = storage
        self._project = project
        self._entity = entity
        self._settings = dict(settings)
        self._warn = warn
        self._run: Any = None
        self._published: int | None = None  # candidate id of the last artifact

    @_harmless
    def on_start(self, run: RunRecord, replayed: tuple[CandidateRecord, ...]) -> None:
        import wandb

        self._run = wandb.init(
            project=self._project,
            entity=self._entity,
            id=self._run_id(),
            resume="allow",
            dir=str(self._storage.folder),
            config={**self._settings, "random_seed": run.seed, "dimensions": run.dimensions},
        )

    @_harmless
    def on_generation(self, summary: GenerationSummary) -> None:
        import wandb

        values: dict[str, Any] = {
            "evaluations": summary.evaluations,
            "mean_std": float(summary.std.mean()),
            "mean_genome": _table(wandb, summary.mean_recipe),
            **dict(_population(summary.candidates)),
        }
        if summary.best is not None and isinstance(summary.best.outcome, Scored):
            values["best_score"] = summary.best.outcome.report.score
            values["best_genome"] = _table(wandb, summary.best.recipe)
        self._run.log(values)
        self._publish(summary.best)

    @_harmless
    def on_finish(self, result: SearchResult) -> None:
        self._publish(result.best)
        self._run.finish()

    def close(self) -> None:
        """End the W&B run where the search stopped in an error."""
        if self._run is not None and not self.failed:
            _harmless(lambda tracker: tracker._run.finish())(self)

    def _run_id(self) -> str:
        path = self._storage.folder / _RUN_ID_NAME
        if not path.exists():
            write_atomically(path, secrets.token_hex(4) + "\n")
        return path.read_text(encoding="utf-8").strip()

    def _publish(self, best: CandidateRecord | None) -> None:
        """Attach best_config.yaml to the run if it is a new one."""
        import wandb

        if best is None or best.id == self._published or not self._storage.best_config.exists():
            return
        artifact = wandb.Artifact("best_config", type="merge_config")
        artifact.add_file(str(self._storage.best_config))
        self._run.log_artifact(artifact)
        self._published = best.id


def _population(candidates: Sequence[CandidateRecord]) -> Iterator[tuple[str, float]]:
    """The generation's mean and spread, overall and for each task."""
    reports = [record.outcome.report for record in candidates if isinstance(record.outcome, Scored)]
    if not reports:
        return
    scores = [report.score for report in reports]
    yield "population/score_mean", statistics.fmean(scores)
    yield "population/score_std", statistics.pstdev(scores)
    for column in zip(*(report.tasks for report in reports), strict=True):
        yield from _task_values(column)


def _task_values(column: Sequence[TaskResult]) -> Iterator[tuple[str, float]]:
    name = f"population/{column[0].task}_{column[0].metric}"
    values = [task.value for task in column]
    yield f"{name}_mean", statistics.fmean(values)
    yield f"{name}_max", max(values)
    yield f"{name}_min", min(values)


def _table(wandb: Any, recipe: Mapping[str, Any]) -> Any:
    """A recipe's numbers as a W&B table."""
    return wandb.Table(
        columns=["parameter", "value"], data=[[name, value] for name, value in numbers(recipe)]
    )


def numbers(data: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number in plain recipe data with its path, e.g. ``slices[0].sources[1].parameters.weight``."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from numbers(value, f"{path}.{key}" if path else str(key))
    elif isinstance(data, list | tuple):
        for position, value in enumerate(data):
            yield from numbers(value, f"{path}[{position}]")
    elif isinstance(data, int | float) and not isinstance(data, bool):
        yield path, float(data)
