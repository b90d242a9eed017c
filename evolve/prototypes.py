"""Models that stand for all candidates: what tasks are built for, and what engines start from."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from evolve.evaluator_spec import EvaluatorSpec
from merge_engine.spec.recipe import Recipe, parse_recipe

if TYPE_CHECKING:
    from merge_engine.engine import Engine


@contextmanager
def prototype(engine: Engine, spec: EvaluatorSpec) -> Iterator[tuple[Path, Sequence[str] | None]]:
    """A folder with the candidates' config and tokenizer, and their tensors' names if it has no weights.

    Where the recipes settle the vocabulary, that is a temporary folder with the result's tokenizer.
    """
    from merge_engine.folder import write_prototype
    from merge_engine.sources import resolve

    recipe = parse_recipe(spec.probe)
    if recipe.vocabulary is None:
        yield resolve(spec.model), None
        return
    with tempfile.TemporaryDirectory(prefix="mergevolve-") as place:
        write_prototype(engine, recipe, Path(place) / "prototype")
        yield Path(place) / "prototype", [job.name for job in engine.plan(recipe).jobs]


@contextmanager
def first_weights(engine: Engine, spec: EvaluatorSpec) -> Iterator[Path]:
    """A model of the candidates' shapes, with weights: a source, or a merge.

    Where candidates differ in their layers, it has as many as the deepest.
    """
    from merge_engine.folder import write_model
    from merge_engine.sources import resolve

    recipe = deepest(engine, spec)
    folder = resolve(spec.model)
    if spec.layouts is None and recipe.vocabulary is None and any(folder.glob("*.safetensors")):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="mergevolve-") as place:
        write_model(engine, recipe, Path(place) / "start")
        yield Path(place) / "start"


def deepest(engine: Engine, spec: EvaluatorSpec) -> Recipe:
    """A recipe with as many layers as any candidate: the model's own again and again, where they differ."""
    if spec.layouts is None:
        return parse_recipe(spec.probe)
    layers = spec.layouts.most_layers
    own = engine.header(spec.model).num_layers or layers
    lengths = [min(own, layers - start) for start in range(0, layers, own)]
    slices = [{"sources": [{"model": spec.model, "layer_range": [0, length]}]} for length in lengths]
    return parse_recipe({"merge_method": "passthrough", "slices": slices, "dtype": spec.dtype})


def merged_bytes(engine: Engine, spec: EvaluatorSpec) -> int:
    """The size of the largest candidate's weights."""
    jobs = engine.plan(deepest(engine, spec)).jobs
    return sum(math.prod(job.shape) * engine.result_dtype(job).itemsize for job in jobs)
