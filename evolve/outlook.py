"""What is going to happen, said before it happens, one line for each thing that one may want to change."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from evolve.evaluator import Facts
from evolve.forecast import Forecast
from evolve.journal import JournalView
from evolve.ledger import is_spent
from evolve.optimisers.choice import describe
from evolve.preflight import Ready
from evolve.report.text import duration
from evolve.sizing import parts
from evolve.wording import gigabytes, some
from fitness.suite import TaskSpec
from genome.slice_layout import LayoutSpec
from genome.template import Template


def before_start(ready: Ready, folder: Path, earlier: JournalView | None, expected: Forecast) -> list[str]:
    """The lines shown before workers start."""
    header = ready.headers[ready.pattern]
    parameters = sum(info.elements for info in header.tensors.values())
    baselines = len(ready.space.baselines())
    models = f"{len(ready.headers)} of {_count(parameters)} parameters ({ready.dtype})"
    rows = {
        "models": f"{models}: {', '.join(ready.headers)}",
        "space": _space(ready),
        "optimizer": describe(ready.space.kinds, ready.search_file.optimizer.name),
        "candidates": (
            f"{ready.max_fevals}: {baselines} baselines, {_initial(ready)}samples, and the mean"
            f"{_time_limit(ready)}"
        ),
        "tasks": ", ".join(_task(task) for task in ready.suite.tasks),
        "held out": _held_out(ready),
        "memory": _memory(expected),
        "speed": _speed(expected, earlier),
        "results": f"{folder} ({_resume(earlier, ready)})",
    }
    width = max(map(len, rows))
    return [f"{name:<{width}}  {text}" for name, text in rows.items()] + _warnings(ready, expected)


def _memory(expected: Forecast) -> str:
    need = expected.need
    workers = "each worker" if expected.workers is None else f"each of {some(expected.workers, 'worker')}"
    where = f" on its {expected.device}" if need.on_gpu else ""
    aside = f", {gigabytes(need.host_bytes)} of the machine's" if need.on_gpu else ""
    free = "" if expected.workers is None else f"; {gigabytes(expected.free_bytes)} are free"
    return (
        f"about {gigabytes(need.device_bytes)} for {workers}{where} ({parts(need)}){aside}, "
        f"{gigabytes(expected.mapped_bytes)} of mapped source files shared by all on a machine{free}"
    )


def _speed(expected: Forecast, earlier: JournalView | None) -> str:
    """What is to be expected, or of a search that goes on, what it has seen so far."""
    seen_s = [] if earlier is None else [record.measured.wall_s for record in earlier.candidates]
    seen_s = [seconds for seconds in seen_s if seconds > 0]
    who = "one worker" if expected.workers is None else some(expected.workers, "worker")
    if seen_s:
        per_hour = (expected.workers or 1) * 3600 / statistics.median(seen_s)
        return f"about {_rough(per_hour)} candidates an hour with {who}, by what the search has seen so far"
    work = expected.work
    guess = "say " if expected.guessed else ""
    device = f"{expected.device} each" if (expected.workers or 1) > 1 else expected.device
    tokens = f"{guess}{work.texts} texts of {work.prompt_tokens:.0f} + {work.answer_tokens:.0f} tokens"
    rate = f"about {_rough(expected.per_hour)} candidates an hour with {who}"
    return f"{rate} ({device}; {tokens}); measured once the workers are ready"


def workers_ready(facts: Sequence[Facts], batch_size: int, popsize: int, left: int) -> str:
    """One line once the workers have scored their first candidate; ``left`` is how many are to be scored."""
    slowest_s = max(fact.probe_s for fact in facts)
    first = facts[0]
    total_s = slowest_s * math.ceil(left / len(facts))
    return (
        f"{some(len(facts), 'worker')} on {first.device}, {some(first.threads, 'thread')} and "
        f"{gigabytes(max(fact.memory_bytes for fact in facts))} each, batches of {batch_size}, "
        f"generations of {popsize}; "
        f"{first.search_items} items take {slowest_s:.1f} s: about {duration(total_s)} for {left} candidates"
    )


def _warnings(ready: Ready, expected: Forecast) -> list[str]:
    found = []
    if ready.suite.holdout is None:
        found.append(
            "warning: no items are held out, so the winner's score is that of the items it was chosen by, "
            "and optimistic; add `holdout: 0.3` to the search file"
        )
    held_bytes = expected.need.host_bytes * (expected.workers or 1)
    if expected.workers is not None and held_bytes + expected.mapped_bytes > expected.free_bytes:
        sources, workers = gigabytes(expected.mapped_bytes), gigabytes(held_bytes)
        found.append(
            f"warning: the source files ({sources}) do not stay in memory beside the workers ({workers}), so "
            "that every candidate may read them from the disk again; fewer workers (--num-workers) or a "
            "machine with more memory avoid that"
        )
    return found


def _resume(earlier: JournalView | None, ready: Ready) -> str:
    if earlier is None:
        return "a new search"
    done = earlier.evaluations
    if is_spent(earlier.candidates, ready.max_fevals):
        return f"finished with {done} candidates; a larger --max-fevals extends it"
    return f"goes on after {done} candidates"


def _held_out(ready: Ready) -> str:
    holdout = ready.suite.holdout
    if holdout is None:
        return "nothing"
    if isinstance(holdout, float):
        return f"{holdout:.0%} of each task's items, scored once at the end"
    return f"{', '.join(_task(task) for task in holdout)}, scored once at the end"


def _task(task: TaskSpec) -> str:
    weight = "" if task.weight == 1 else f", weight {task.weight:g}"
    return f"{task.name} ({task.metric}{weight})"


def _space(ready: Ready) -> str:
    dimensions = some(len(ready.space.names), "dimension")
    match ready.search_file.genome:
        case Template():
            return f"template, {dimensions}; `mergevolve explain` shows them"
        case LayoutSpec() as layout:
            return f"layout of {some(len(layout.models), 'model')}, {dimensions}"
        case genome:
            ends = [f"{name} in [{low:g}, {high:g}]" for name, (low, high) in genome.bounds.items()]
            return f"{genome.merge_method}, {dimensions}: {', '.join(ends)}"


def _initial(ready: Ready) -> str:
    return f"{some(len(ready.initial), 'initial recipe')}, " if ready.initial else ""


def _time_limit(ready: Ready) -> str:
    return "" if ready.time_limit_s is None else f", for at most {duration(ready.time_limit_s)}"


def _count(number: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _rough(number: float) -> str:
    """Two figures, for what is not known better."""
    digits = 1 - math.floor(math.log10(max(number, 0.1)))
    return f"{round(number, digits):,.{max(digits, 0)}f}"
