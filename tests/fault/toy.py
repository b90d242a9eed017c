"""A search that costs nothing: two weights, a parabola for a score, and an evaluator that fails on demand."""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evolve.evaluator import Evaluation, Evaluator, Facts, WorkerContext
from evolve.outcome import Scored
from evolve.records import Split
from fitness.results import Report, TaskResult
from genome.box import Kind
from genome.errors import RefusedRecipe
from merge_engine.errors import Problem
from merge_engine.spec.recipe import InputModel, Recipe

_MODELS = ("a", "b", "c")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyBaseline:
    name: str
    recipe: Recipe
    vector: NDArray[np.float64] | None


class ToySpace:
    """One weight in [0, 1] for each of three models."""

    names = _MODELS
    kinds: tuple[Kind, ...] = ("real",) * 3
    lower = np.zeros(3)
    upper = np.ones(3)
    start = np.full(3, 1 / 3)

    def decode(self, vector: NDArray[np.float64]) -> Recipe:
        models = tuple(
            InputModel(model=model, parameters={"weight": float(weight)})
            for model, weight in zip(_MODELS, vector, strict=True)
        )
        return Recipe(merge_method="linear", models=models)

    def encode(self, recipe: Recipe) -> NDArray[np.float64] | None:
        return np.array([model.parameters["weight"] for model in recipe.models or ()], dtype=np.float64)

    def baselines(self) -> Sequence[ToyBaseline]:
        sources = [
            ToyBaseline(name=f"source:{model}", recipe=self.decode(vector), vector=vector)
            for model, vector in zip(_MODELS, np.eye(3), strict=True)
        ]
        uniform = ToyBaseline(name="uniform", recipe=self.decode(self.start), vector=None)
        return [*sources, uniform]


class CoarseSpace(ToySpace):
    """The same three weights in steps of 1/4: equal recipes come up again and again; one is refused."""

    kinds: tuple[Kind, ...] = ("integer", "integer", "categorical")
    upper = np.array([4.0, 4.0, 2.0])
    start = np.array([2.0, 2.0, 2.0])

    def decode(self, vector: NDArray[np.float64]) -> Recipe:
        if not vector[0] and not vector[1]:
            raise RefusedRecipe([Problem("models", "a and b have no weight")])
        return super().decode(vector / 4)

    def encode(self, recipe: Recipe) -> NDArray[np.float64] | None:
        vector = 4 * np.asarray(super().encode(recipe))
        inside = np.all(vector % 1 == 0) and np.all(vector <= self.upper)
        return vector if inside else None

    def baselines(self) -> Sequence[ToyBaseline]:
        start = ToyBaseline(name="start", recipe=self.decode(self.start), vector=self.start)
        corner = ToyBaseline(name="corner", recipe=self.decode(self.upper), vector=self.upper)
        return [start, corner, ToyBaseline(name="again", recipe=start.recipe, vector=None)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyFactory:
    """Builds evaluators that take ``sleep_s`` for each candidate.

    ``faults`` maps the number of an evaluation (over all workers, counted by files in ``scratch``) to what
    goes wrong in it; ``start_fault`` is the message with which every start fails.
    """

    scratch: Path
    sleep_s: float = 0.0
    faults: Mapping[str, str] = field(default_factory=dict)
    start_fault: str = ""

    def __call__(self, context: WorkerContext) -> Evaluator:
        return ToyEvaluator(self, context)


class ToyEvaluator:
    def __init__(self, factory: ToyFactory, context: WorkerContext | None = None) -> None:
        self._factory = factory
        self._context = context

    def prepare(self) -> Facts:
        if self._factory.start_fault:
            raise FileNotFoundError(self._factory.start_fault)
        return Facts(
            device="cpu",
            threads=self._context.threads if self._context else 1,
            batch_size=4,
            memory_bytes=0,
            probe_s=self._factory.sleep_s,
            search_items=2,
            suite_digest="",
        )

    def set_batch_size(self, batch_size: int) -> None:
        assert batch_size == 4

    def evaluate(self, recipe: Mapping[str, Any], split: Split) -> Evaluation:
        if self._factory.faults:
            _fail(self._factory.faults.get(self._number(), ""))
        time.sleep(self._factory.sleep_s)
        weights = [model["parameters"]["weight"] for model in recipe["models"]]
        errors = [weight - target for weight, target in zip(weights, (0.8, 0.3, 0.1), strict=True)]
        value = -math.fsum(error * error for error in errors)
        return Evaluation(outcome=Scored(report=_report(value)), merge_s=0.0, score_s=0.0, forward_s=0.0)

    def _number(self) -> str:
        for number in itertools.count():
            try:
                (self._factory.scratch / f"evaluation-{number}").touch(exist_ok=False)
            except FileExistsError:
                continue
            return str(number)
        raise AssertionError("unreachable")


def _fail(fault: str) -> None:
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "hang":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "nan":
        Scored(report=_report(math.nan))
    elif fault == "raise":
        raise RuntimeError("the task's scorer divides by zero")


def _report(value: float) -> Report:
    result = TaskResult(
        task="toy", metric="acc,none", weight=1.0, value=value, items=(value, None), item_ids=(0, 1)
    )
    return Report(tasks=(result,))
