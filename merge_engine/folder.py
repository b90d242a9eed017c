"""A recipe to a model folder that `transformers` loads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from merge_engine.card import merge_card
from merge_engine.config_layers import Origin, with_layers
from merge_engine.documents import merge_documents
from merge_engine.engine import Engine
from merge_engine.new_folder import copy_files, new_folder
from merge_engine.plan import Plan, TensorJob
from merge_engine.shards import TensorSpec, write_shards
from merge_engine.spec.recipe import Recipe
from merge_engine.synced_files import write_json, write_text
from merge_engine.tied import untied_config
from merge_engine.tokenizer_files import config_aligner, write_tokenizer
from merge_engine.vocabulary.chat_templates import chosen_template
from merge_engine.vocabulary.tokens import json_of

CONFIG_FILE = "mergekit_config.yml"  # the ecosystem's name for the config of a merged model


class Watcher(Protocol):
    """Is told how a merge goes on; `moved` comes from another thread."""

    def begin(self, total_bytes: int) -> None:
        """So many bytes will be read and written."""

    def moved(self, count_bytes: int) -> None:
        """So many more have been."""


# How pictures and sounds are brought to a model of several modalities.
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """How a config is merged.

    seed: root of the random methods. device: where kernels run. allow_crimes: merge models of different
    architectures where their tensors fit. truncate_embeddings: cut embeddings and heads to the smallest
    vocabulary, where a config does not say what becomes of them. shard_bytes: the size of a file of weights.
    copy_tokenizer and write_card: whether the result gets a tokenizer, and a README.md with the config. keep:
    where results of documents that others need stay, under their names; None: they are removed.
    """

    seed: int = 0
    device: str = "cpu"
    allow_crimes: bool = False
    truncate_embeddings: bool = False
    shard_bytes: float = 5e9
    copy_tokenizer: bool = True
    write_card: bool = True
    keep: Path | None = None


def write_model(
    engine: Engine,
    recipe: Recipe,
    out: Path,
    *,
    shard_bytes: float = 5e9,
    copy_tokenizer: bool = True,
    texts: Mapping[str, str] | None = None,
    watcher: Watcher | None = None,
) -> None:
    """Merge ``recipe`` into the new folder ``out``: weights, config, generation config, tokenizer.

    ``texts``: further files by name.

    Tensors are those of ``engine.stream(recipe)``, written as they come. Everything goes into a temporary
    folder beside ``out``, the config last, which is then renamed: a failed or killed merge leaves no ``out``.
    Raises `PlanError` before anything is written, and `OutputError` where ``out`` exists or the disk does not
    take it.
    """
    plan = engine.plan(recipe)
    specs = [TensorSpec(name=job.name, dtype=engine.result_dtype(job), shape=job.shape) for job in plan.jobs]
    with new_folder(Path(out)) as folder:
        if copy_tokenizer:  # first: one that cannot be joined is told before long work
            _write_tokenizer(engine, recipe, plan, folder)
        on_written = _watched(engine, plan, watcher)
        write_shards(folder, specs, engine.stream(recipe), shard_bytes, on_written)
        for name, text in (texts or {}).items():
            write_text(folder / name, text)
        _write_configs(engine, plan, folder)


def write_prototype(engine: Engine, recipe: Recipe, out: Path) -> None:
    """All of `write_model` but the weights: what a resident model is built from that takes them in memory."""
    plan = engine.plan(recipe)
    with new_folder(Path(out)) as folder:
        _write_tokenizer(engine, recipe, plan, folder)
        _write_configs(engine, plan, folder)


def _write_tokenizer(engine: Engine, recipe: Recipe, plan: Plan, folder: Path) -> None:
    folders = [engine.header(reference).folder for reference in recipe.model_references()]
    template = chosen_template(recipe.chat_template, folders)
    write_tokenizer(plan.alignment, template, engine.header, folder)


def _write_configs(engine: Engine, plan: Plan, folder: Path) -> None:
    aligned = config_aligner(plan.alignment, plan.config_source, engine.header)
    source = engine.header(plan.config_source).folder
    code = [file.name for file in source.glob("*.py")]  # of the model's own: copied, never run here
    copy_files(source, folder, [*_PROCESSOR_FILES, *code])
    generation = source / "generation_config.json"
    if generation.is_file():
        write_json(folder / generation.name, aligned(json_of(generation)))
    write_json(folder / "config.json", aligned(merged_config(engine, plan)))


def merge_config(
    text: str, out: Path, options: MergeOptions | None = None, watcher: Watcher | None = None
) -> None:
    """Merge the recipe in a YAML text, or the last of several, into the new folder ``out``.

    Memory: the largest tensor of the result at most twice, 128 MiB, and for methods that prepare what their
    preparation takes for one tensor, however large the models are; where vocabularies are brought together,
    also the embeddings of every source. Raises any `MergeError`.
    """
    options = options or MergeOptions()

    def write(recipe: Recipe, folder: Path) -> None:
        recipe = replace(recipe, truncate_embeddings=options.truncate_embeddings)
        engine = Engine(
            seed=options.seed, device=options.device, once=True, allow_crimes=options.allow_crimes
        )
        card = merge_card(recipe, text, title=folder.name, seed=options.seed)
        write_model(
            engine,
            recipe,
            folder,
            shard_bytes=options.shard_bytes,
            copy_tokenizer=options.copy_tokenizer,
            texts={CONFIG_FILE: text, "README.md": card} if options.write_card else {CONFIG_FILE: text},
            watcher=watcher,
        )

    merge_documents(text, out, write, keep=options.keep)


def _watched(engine: Engine, plan: Plan, watcher: Watcher | None) -> Callable[[str], None]:
    """Tells ``watcher`` what a tensor that was written cost to read and write."""
    if watcher is None:
        return lambda name: None
    moved = {job.name: _traffic_bytes(engine, job) for job in plan.jobs}
    watcher.begin(sum(moved.values()))
    return lambda name: watcher.moved(moved[name])


def _traffic_bytes(engine: Engine, job: TensorJob) -> int:
    infos = [engine.header(ref.model).tensors[ref.name] for ref in job.inputs]
    written = math.prod(job.shape) * engine.result_dtype(job).itemsize
    return sum(info.end - info.begin for info in infos) + written


def merged_config(engine: Engine, plan: Plan) -> dict[str, Any]:
    """The config of the result: that of the base (or first) model, with the result's dtype and layers."""
    config = dict(engine.header(plan.config_source).config)
    if plan.untied:
        config = untied_config(config)
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
