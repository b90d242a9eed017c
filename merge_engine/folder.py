"""A recipe to a model folder that `transformers` loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merge_engine.config_layers import Origin, with_layers
from merge_engine.documents import merge_documents
from merge_engine.engine import Engine
from merge_engine.new_folder import new_folder
from merge_engine.plan import Plan
from merge_engine.shards import TensorSpec, write_json, write_shards
from merge_engine.spec.recipe import Recipe
from merge_engine.tokenizer_files import config_aligner, write_tokenizer
from merge_engine.vocabulary.chat_templates import chosen_template
from merge_engine.vocabulary.tokens import json_of


def write_model(engine: Engine, recipe: Recipe, out: Path, *, shard_bytes: float = 5e9) -> None:
    """Merge ``recipe`` into the new folder ``out``: weights, config, generation config, tokenizer.

    Tensors are those of ``engine.stream(recipe)``, written as they come. Everything goes into a temporary
    folder beside ``out``, the config last, which is then renamed: a failed or killed merge leaves no ``out``.
    Raises `PlanError` before anything is written, and `OutputError` where ``out`` exists or the disk does not
    take it.
    """
    plan = engine.plan(recipe)
    chosen_template(recipe.chat_template, [])  # refused before any tensor is merged
    specs = [TensorSpec(name=job.name, dtype=engine.result_dtype(job), shape=job.shape) for job in plan.jobs]
    with new_folder(Path(out)) as folder:
        write_shards(folder, specs, engine.stream(recipe), shard_bytes)
        _write_rest(engine, recipe, plan, folder)


def write_prototype(engine: Engine, recipe: Recipe, out: Path) -> None:
    """All of `write_model` but the weights: what a resident model is built from that takes them in memory."""
    with new_folder(Path(out)) as folder:
        _write_rest(engine, recipe, engine.plan(recipe), folder)


def _write_rest(engine: Engine, recipe: Recipe, plan: Plan, folder: Path) -> None:
    folders = [engine.header(reference).folder for reference in recipe.model_references()]
    template = chosen_template(recipe.chat_template, folders)
    write_tokenizer(plan.alignment, template, engine.header, folder)
    aligned = config_aligner(plan.alignment, plan.config_source, engine.header)
    generation = engine.header(plan.config_source).folder / "generation_config.json"
    if generation.is_file():
        write_json(folder / generation.name, aligned(json_of(generation)))
    write_json(folder / "config.json", aligned(merged_config(engine, plan)))


def merge_config(text: str, out: Path, *, seed: int = 0, shard_bytes: float = 5e9) -> None:
    """Merge the recipe in a YAML text, or the last of several, into the new folder ``out``.

    Raises any `MergeError`.
    """

    def write(recipe: Recipe, folder: Path) -> None:
        write_model(Engine(seed=seed), recipe, folder, shard_bytes=shard_bytes)

    merge_documents(text, out, write)


def merged_config(engine: Engine, plan: Plan) -> dict[str, Any]:
    """The config of the result: that of the base (or first) model, with the result's dtype and layers."""
    config = dict(engine.header(plan.config_source).config)
    dtypes = [job.out_dtype for job in plan.jobs if job.out_dtype is not None]
    if dtypes:
        config.pop("torch_dtype", None)
        config["dtype"] = max(dtypes, key=dtypes.count)
    for stack in plan.stacks:
        origins = [
            Origin(config=engine.header(layer.model).config, index=layer.index) for layer in stack.layers
        ]
        config = with_layers(config, stack.path, stack.old_count, origins, main=stack.main)
    return config
