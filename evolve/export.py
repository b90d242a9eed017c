"""What a search hands back: best_config.yaml while it runs, final_model/ with its model card at the end."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evolve import __version__
from evolve.dispatch import run_jobs
from evolve.errors import EvolveError, StorageError
from evolve.fleet import Done, Fleet, Job
from evolve.interrupt import Interrupt
from evolve.ledger import choose_winner
from evolve.observer import Observer
from evolve.outcome import Scored
from evolve.records import CandidateRecord, RunRecord
from evolve.report.summary import Summary, display_name
from evolve.report.text import estimate
from evolve.storage import StoragePath, write_atomically
from evolve.winners import Winner, documents, folders, renamed
from fitness.results import Report
from merge_engine.card import front_matter
from merge_engine.spec import dump_yaml, parse_recipe


class ExportError(EvolveError):
    """The winner's model could not be written; nothing half-written is left, the results are safe."""


class BestConfig(Observer):
    """Keeps best_config.yaml at the best candidate so far: the file is never worse than the journal."""

    def __init__(self, storage: StoragePath, seed: int, winners: Sequence[Winner] = ()) -> None:
        self._storage = storage
        self._seed = seed
        self._winners = winners
        self._best: CandidateRecord | None = None

    def on_start(self, run: RunRecord, replayed: tuple[CandidateRecord, ...]) -> None:
        self._take(replayed)

    def on_candidate(self, record: CandidateRecord) -> None:
        self._take((record,))

    def _take(self, records: Sequence[CandidateRecord]) -> None:
        known = () if self._best is None else (self._best,)
        best = choose_winner((*known, *records))
        if best is not None and best is not self._best:
            self._best = best
            write_atomically(self._storage.best_config, config_text(best, self._seed, self._winners))


def config_text(record: CandidateRecord, seed: int, winners: Sequence[Winner] = ()) -> str:
    """A candidate's recipe as a merge config, with the search file's own names of the models.

    Where it merges the winners of earlier stages, their recipes stand before it, as documents with names, so
    that the file needs nothing but the original models.
    """
    score = f"{record.outcome.report.score:.6f}" if isinstance(record.outcome, Scored) else "none"
    origin = display_name(record.origin)
    return (
        f"# candidate {record.id + 1} ({origin}) of a mergevolve search with seed {seed}\n"
        f"# score on the search items: {score}\n"
        f"# merge it with: mergevolve merge best_config.yaml OUT\n"
    ) + recipe_text(record, winners)


def recipe_text(record: CandidateRecord, winners: Sequence[Winner]) -> str:
    """A candidate's recipe as YAML: one document, or several in the order in which they run."""
    return "---\n".join(dump_yaml(document) for document in documents(record.recipe, winners))


def write_winner(
    record: CandidateRecord, summary: Summary, out: Path, winners: Sequence[Winner] = ()
) -> None:
    """Merge the candidate into the model folder ``out``, with a model card, exactly as the search scored it.

    A folder that an earlier call wrote is replaced once the new one is complete.

    Raises:
        ExportError: the disk is full, ``out`` holds something else, or a source model is gone.
    """
    from merge_engine.engine import Engine
    from merge_engine.errors import MergeError
    from merge_engine.folder import write_model

    _check_replaceable(out)
    fresh = out.with_name(f".{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        # The search has asked whether it may merge models of different architectures.
        engine = Engine(seed=summary.run.seed, once=True, allow_crimes=True)
        write_model(engine, parse_recipe(renamed(record.recipe, folders(winners))), fresh)
        write_atomically(fresh / "README.md", model_card(record, summary, out.name, winners))
        _replace(out, fresh)
    except (MergeError, StorageError, OSError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise ExportError(_export_failure(out, error)) from error


def is_written(record: CandidateRecord, summary: Summary, out: Path, winners: Sequence[Winner] = ()) -> bool:
    """Whether ``out`` is what `write_winner` would write now; its card, written last, tells."""
    card = out / "README.md"
    if not card.is_file():
        return False
    return card.read_text(encoding="utf-8") == model_card(record, summary, out.name, winners)


def model_card(record: CandidateRecord, summary: Summary, title: str, winners: Sequence[Winner] = ()) -> str:
    """The README.md of the exported model: front matter for the hub, how it came about, what it scored."""
    recipe = parse_recipe(record.recipe)
    models = _original_models(record, winners)
    sources = "\n".join(f"- `{model}`" for model in models)
    return f"""{front_matter(models)}# {title}

A merge of the models below, found by an evolutionary search with mergevolve {__version__}
(candidate {record.id + 1}, {display_name(record.origin)}; {len(summary.evaluated)} were scored).

{sources}

Method: `{recipe.merge_method}`.

## Scores

{_scores(record, summary)}

## Recipe

```yaml
{recipe_text(record, winners)}```

## Reproduce

Save the recipe as `recipe.yml`, then `mergevolve merge recipe.yml OUT --random-seed {summary.run.seed}`.
Versions: {", ".join(f"{name} {version}" for name, version in sorted(summary.run.versions.items()))}.
"""


def _original_models(record: CandidateRecord, winners: Sequence[Winner]) -> list[str]:
    """What everything was merged from, in order of appearance; earlier winners are no originals."""
    recipes = [parse_recipe(document) for document in documents(record.recipe, winners)]
    made = {recipe.name for recipe in recipes if recipe.name is not None}
    references = [reference for recipe in recipes for reference in recipe.model_references()]
    return [name for name in dict.fromkeys(references) if name.partition("+")[0] not in made]


def _scores(record: CandidateRecord, summary: Summary) -> str:
    """A Markdown table: the winner on the search items, and every row that was scored on held-out items."""
    report = record.outcome.report if isinstance(record.outcome, Scored) else None
    tasks = [f"{task.task} ({task.metric})" for task in report.tasks] if report else []
    lines = [_cells(["", "score", *tasks]), _cells(["---"] * (2 + len(tasks)))]
    if report:
        lines.append(
            _cells(["search items", f"{report.score:.4f}", *(f"{task.value:.4f}" for task in report.tasks)])
        )
    for row in summary.table.rows:
        if row.score is not None:
            same_tasks = report and [name for name, _ in row.tasks] == [task.task for task in report.tasks]
            values = [estimate(value) for _, value in row.tasks] if same_tasks else [""] * len(tasks)
            lines.append(_cells([f"held-out items: {display_name(row.name)}", estimate(row.score), *values]))
    return "\n".join(lines)


def _cells(values: Sequence[str]) -> str:
    return "| " + " | ".join(values) + " |"


def _check_replaceable(out: Path) -> None:
    """Only a folder with a model card of ours is ever replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    card = out / "README.md"
    if not card.is_file() or "mergevolve" not in card.read_text(encoding="utf-8", errors="replace"):
        raise ExportError(
            f"{out} exists and was not written by mergevolve; name a new folder, or move it away"
        )


def _replace(out: Path, fresh: Path) -> None:
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.replace(old)
    fresh.replace(out)
    shutil.rmtree(old, ignore_errors=True)


def _export_failure(out: Path, error: Exception) -> str:
    full = _no_space(error)
    what = "no space left on the device" if full else str(error)
    remedy = "make room" if full else "mend that"
    return (
        f"cannot write the model {out}: {what}. Nothing half-written is left, the search's results are safe; "
        f"{remedy} and try again (mergevolve export STORAGE_PATH OUT writes the winner anywhere)"
    )


def _no_space(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        error = error.__cause__
    return False


def rescore(folder: Path, expected: Report, fleet: Fleet) -> str | None:
    """Score a written model through a worker and compare it, item by item, with what the search saw.

    Returns:
        what differs, in one sentence; None where every item is identical.
    """
    found: list[Done] = []
    job = Job(id=0, recipe=passthrough(folder), split="search")
    with Interrupt() as interrupt:
        run_jobs([job], fleet, interrupt, (), on_done=found.extend)
    if not found:
        return "scoring it from disk was interrupted"
    outcome = found[0].evaluation.outcome
    if not isinstance(outcome, Scored):
        return f"scoring it from disk failed: {outcome.reason}"
    differences = differing_items(expected, outcome.report)
    if not differences:
        return None
    listed = ", ".join(f"{count} items of {task}" for task, count in differences.items())
    return f"read back from disk, it scores differently on {listed}"


def passthrough(folder: Path) -> dict[str, Any]:
    """The recipe that is a model folder as it stands."""
    return {"merge_method": "passthrough", "models": [{"model": str(folder.resolve())}]}


def differing_items(expected: Report, found: Report) -> Mapping[str, int]:
    """By task, how many items scored differently; tasks without a difference are left out."""
    differences: dict[str, int] = {}
    for one, other in zip(expected.tasks, found.tasks, strict=True):
        count = sum(a != b for a, b in zip(one.items, other.items, strict=True))
        if count or one.value != other.value:
            differences[one.task] = count
    return differences
