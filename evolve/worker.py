"""One worker process: the evaluator that lives in it, its threads and its log file."""

from __future__ import annotations

import faulthandler
import gc
import os
import socket
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evolve.evaluator import Evaluation, Evaluator, EvaluatorFactory, Facts, WorkerContext
from evolve.outcome import Failed
from evolve.records import Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A worker that can take jobs, and where its process is."""

    facts: Facts
    host: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NotPrepared:
    """Why a worker cannot; ``died``: it was never asked, since its process is gone."""

    reason: str
    traceback: str | None = None
    died: bool = False


class Worker:
    """What the fleet starts in a process of its own. Exceptions come back as values: none of them can be
    lost.
    """

    def __init__(self, factory: EvaluatorFactory, context: WorkerContext) -> None:
        self._factory = factory
        self._context = context
        self._evaluator: Evaluator | None = None
        # Read by OpenMP when torch is imported, which no module does before the factory is called.
        os.environ["OMP_NUM_THREADS"] = str(context.threads)
        if context.folder is not None and context.folder.is_dir():
            os.chdir(context.folder)  # a running cluster's workers start wherever it was started
        _log_to_file(context)

    def prepare(self, batch_size: int | None) -> Prepared | NotPrepared:
        """Build the evaluator; ``batch_size`` is the one that the other workers use already, if they do."""
        try:
            self._evaluator = self._factory(self._context)
            facts = self._evaluator.prepare()
            if batch_size is not None:
                self._evaluator.set_batch_size(batch_size)
            # Tasks and items live as long as this process; looking through them takes a quarter of a second.
            gc.collect()
            gc.freeze()
        except Exception as error:
            traceback.print_exc()
            return NotPrepared(reason=one_line(error), traceback=traceback.format_exc())
        return Prepared(facts=facts, host=socket.gethostname(), pid=os.getpid())

    def set_batch_size(self, batch_size: int) -> None:
        assert self._evaluator is not None, "prepare comes first"
        self._evaluator.set_batch_size(batch_size)

    def evaluate(self, recipe: Mapping[str, Any], split: Split) -> Evaluation:
        assert self._evaluator is not None, "prepare comes first"
        try:
            return self._evaluator.evaluate(recipe, split)
        except Exception as error:
            traceback.print_exc()
            failed = Failed(stage="worker", reason=one_line(error))
            return Evaluation(outcome=failed, traceback=traceback.format_exc())


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception in one line for people: its type and the first line of its message."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _log_to_file(context: WorkerContext) -> None:
    """Send everything that this process prints, C libraries and crashes included, to the worker's own log
    file.
    """
    if context.logs is None or not context.logs.is_dir():
        return
    log = os.open(context.logs / f"{context.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    faulthandler.enable(2)
