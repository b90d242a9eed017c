"""What is going to happen, said before it happens, one line for each thing that one may want to change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from evolve.evaluator import Facts
from evolve.journal import JournalView
from evolve.ledger import is_spent
from evolve.optimisers.choice import describe
from evolve.preflight import Ready
from evolve.report.text import duration
from fitness.suite import TaskSpec
from genome.slice_layout import LayoutSpec
from genome.template import Template
from merge_engine.checkpoint_header import CheckpointHeader

# What a worker needs beside the model's weights: Python with torch, transformers and lm-eval in it.
RUNTIME_BYTES = 700_000_000
_SPARE_SHARE, _SPARE_BYTES = 0.1, 256_000_000
_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def before_start(ready: Ready, folder: Path, earlier: JournalView | None, available_bytes: int) -> list[str]:
    """The lines shown before workers start. ``available_bytes`` is this machine's free memory."""
    header = ready.headers[ready.pattern]
    parameters = sum(info.elements for info in header.tensors.values())
    need_bytes = worker_bytes(_resident_elements(ready) * _DTYPE_BYTES[ready.dtype])
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
        "memory": (
            f"about {_gigabytes(need_bytes)} for each worker, {_gigabytes(_mapped_bytes(ready.headers))} of "
            f"mapped source files shared by all; {_gigabytes(available_bytes)} are free"
        ),
        "results": f"{folder} ({_resume(earlier, ready)})",
    }
    width = max(map(len, rows))
    return [f"{name:<{width}}  {text}" for name, text in rows.items()] + _warnings(
        ready, need_bytes, available_bytes
    )


def candidate_bytes(ready: Ready) -> int:
    """The size of a merged model's weights, as deep as the model whose config it has."""
    header = ready.headers[ready.pattern]
    return sum(info.elements for info in header.tensors.values()) * _DTYPE_BYTES[ready.dtype]


def _resident_elements(ready: Ready) -> int:
    """Parameters that a worker holds: one model, or every model whose layers make paths."""
    layouts = isinstance(ready.search_file.genome, LayoutSpec)
    held = list(ready.headers.values()) if layouts else [ready.headers[ready.pattern]]
    return sum(info.elements for header in held for info in header.tensors.values())


def worker_bytes(model_bytes: int) -> int:
    """Memory of one worker: what is resident, a tenth of it or 256 MB to work with, and the libraries."""
    return round(model_bytes + max(_SPARE_SHARE * model_bytes, _SPARE_BYTES) + RUNTIME_BYTES)


def workers_ready(facts: Sequence[Facts], batch_size: int, popsize: int, left: int) -> str:
    """One line once the workers have scored their first candidate; ``left`` is how many are to be scored."""
    slowest_s = max(fact.probe_s for fact in facts)
    first = facts[0]
    total_s = slowest_s * math.ceil(left / len(facts))
    return (
        f"{_some(len(facts), 'worker')} on {first.device}, {_some(first.threads, 'thread')} and "
        f"{_gigabytes(max(fact.memory_bytes for fact in facts))} each, batches of {batch_size}, "
        f"generations of {popsize}; "
        f"{first.search_items} items take {slowest_s:.1f} s: about {duration(total_s)} for {left} candidates"
    )


def _warnings(ready: Ready, need_bytes: int, available_bytes: int) -> list[str]:
    found = []
    if ready.suite.holdout is None:
        found.append(
            "warning: no items are held out, so the winner's score is that of the items it was chosen by, "
            "and optimistic; add `holdout: 0.3` to the search file"
        )
    if need_bytes > available_bytes:
        found.append(
            "warning: one worker may need more memory than is free; expect swapping or a killed worker; "
            "close other programs or take a larger machine"
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
    dimensions = _some(len(ready.space.names), "dimension")
    match ready.search_file.genome:
        case Template():
            return f"template, {dimensions}; `mergevolve explain` shows them"
        case LayoutSpec() as layout:
            return f"layout of {_some(len(layout.models), 'model')}, {dimensions}"
        case genome:
            ends = [f"{name} in [{low:g}, {high:g}]" for name, (low, high) in genome.bounds.items()]
            return f"{genome.merge_method}, {dimensions}: {', '.join(ends)}"


def _initial(ready: Ready) -> str:
    return f"{_some(len(ready.initial), 'initial recipe')}, " if ready.initial else ""


def _time_limit(ready: Ready) -> str:
    return "" if ready.time_limit_s is None else f", for at most {duration(ready.time_limit_s)}"


def _mapped_bytes(headers: Mapping[str, CheckpointHeader]) -> int:
    return sum(info.end - info.begin for header in headers.values() for info in header.tensors.values())


def _some(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _count(number: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.2g} GB" if number >= 1e8 else f"{number / 1e6:.2g} MB"
