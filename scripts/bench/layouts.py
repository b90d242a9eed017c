"""What it costs to go from one path through layers to another, beside what scoring a candidate takes."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evolve.evaluator import WorkerContext
from evolve.evaluator_spec import EvaluatorSpec
from evolve.layouts import Layouts
from evolve.merge_evaluator import MergeEvaluator
from evolve.outcome import Scored
from evolve.search_models import model_facts
from fitness.suite import SuiteSpec, TaskSpec
from genome.errors import RefusedRecipe
from genome.slice_layout import LayoutSpec, Scales
from genome.slice_layout_space import LayoutSpace
from merge_engine.checkpoint_header import open_header
from merge_engine.spec import Recipe, recipe_data

_TASKS = (
    ("demo_arithmetic", "exact_match,none"),
    ("demo_text", "exact_match,none"),
    ("demo_choice", "acc,none"),
)
_CONTEXT = WorkerContext(name="bench", threads=1, device="cpu", memory_share=0.5, logs=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Switching:
    """Medians over random paths, in seconds. ``switch_s``: recipe to wired model, scaled weights included."""

    scales: Scales
    layers: float
    switch_s: float
    score_s: float


def measure(demo: Path, scales: Scales, candidates: int, items: int | None) -> Switching:
    """Random paths near the start (each slot flipped one time in ten) through two models of the demo."""
    models = (str(demo / "text"), str(demo / "base"))
    facts = {model: model_facts(open_header(Path(model))) for model in models}
    space = LayoutSpace(LayoutSpec(models=models, repeats=2, scales=scales), facts)
    evaluator = _evaluator(space, demo, items)
    recipes = _recipes(space, candidates)
    results = [evaluator.evaluate(recipe_data(recipe), "search") for recipe in recipes]
    assert all(isinstance(result.outcome, Scored) for result in results)
    return Switching(
        scales=scales,
        layers=statistics.mean(map(_depth, recipes)),
        switch_s=statistics.median(result.merge_s for result in results),
        score_s=statistics.median(result.score_s for result in results),
    )


def _evaluator(space: LayoutSpace, demo: Path, items: int | None) -> MergeEvaluator:
    suite = SuiteSpec(
        tasks=tuple(TaskSpec(name=name, metric=metric) for name, metric in _TASKS),
        search_paths=(str(demo / "tasks"),),
        limit=items,
    )
    evaluator = EvaluatorSpec(
        model=space.models[0],
        suite=suite,
        dtype="bfloat16",
        seed=0,
        probe=recipe_data(space.decode(space.start)),
        layouts=Layouts(most_layers=space.most_layers, models=space.models),
    )(_CONTEXT)
    evaluator.prepare()
    return evaluator


def _recipes(space: LayoutSpace, count: int) -> list[Recipe]:
    generator = np.random.default_rng(0)
    is_scale = np.array(space.kinds) == "real"
    found: list[Recipe] = []
    while len(found) < count:
        flipped = generator.random(len(space.start)) < 0.1
        random = generator.uniform(space.lower, space.upper)
        vector = np.where(is_scale, random, np.where(flipped, 1.0 - space.start, space.start))
        try:
            found.append(space.decode(vector))
        except RefusedRecipe:
            continue
    return found


def _depth(recipe: Recipe) -> int:
    ranges = [piece.sources[0].layer_range for piece in recipe.slices or ()]
    return sum(end - start for start, end in ranges)
