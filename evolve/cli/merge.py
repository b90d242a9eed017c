"""`mergevolve merge`: a merge config, a model folder. The options are those of mergekit-yaml 0.1.5."""

from __future__ import annotations

import functools
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from evolve.cli.errors import plain_errors
from evolve.cli.merge_progress import MergeProgress

if TYPE_CHECKING:
    from merge_engine.plan_types import TensorJob
    from merge_engine.read_ahead import ReadAhead

# Options of mergekit-yaml that ask for what is always so here.
_NEEDLESS = {
    "low_cpu_memory": "tensors go to the device one group at a time and are written as they are done",
    "read_to_gpu": "inputs are read ahead in memory and go to the device as they are merged",
    "multi_gpu": "one device merges faster than disks read",
    "lazy_unpickle": "pickled weights are always read tensor by tensor, and nothing in them is run",
    "clone_tensors": "every tensor of the result is written by itself",
    "trust_remote_code": "merging runs no code of a model",
    "async_write": "writing always goes on while the next tensors are merged",
    "write_threads": "one thread writes, as fast as the disk takes it",
    "lora_merge_cache": "adapters are applied as tensors are read; no merged copy is kept",
    "lora_merge_dtype": "adapters are applied in float32",
    "safe_serialization": "weights are always written as safetensors",
}

# Options of mergekit-yaml that cannot be honoured, and what to do instead.
_REFUSED = {
    "no_safe_serialization": "pickled weights are not written; leave it out: transformers reads safetensors",
}

_Command = TypeVar("_Command", bound=Callable[..., Any])
_SIZES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}


def _size(context: click.Context, option: click.Parameter, text: str) -> float:
    """A number of bytes such as 500M, 5B or 5GB."""
    number = text.upper().rstrip("KMGBT")
    unit = text.upper()[len(number) :]
    unit = unit if unit in _SIZES else unit.removesuffix("B")
    try:
        size = float(number) * _SIZES[unit]
    except (KeyError, ValueError):
        size = 0.0
    if not 0.0 < size < float("inf"):
        raise click.BadParameter(f"{text!r} is no size; give bytes such as 500M, 5B or 5GB")
    return size


def _switch(name: str, help: str, *, default: bool | None = False) -> Callable[[_Command], _Command]:
    return click.option(f"--{name}/--no-{name}", default=default, help=help)


def _needless(name: str) -> Callable[[_Command], _Command]:
    return click.option(f"--{name}/--no-{name}", default=None, help="Accepted; not needed.")


@click.command("merge", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--cuda/--no-cuda", default=False, help="Merge on the first GPU.")
@click.option("--device", help="Merge on this device, for example cuda:1.  [default: cpu]")
@click.option("--gpu-rich", is_flag=True, help="The same as --cuda.")
@click.option("-j", "--num-threads", type=click.IntRange(min=1), help="Threads.  [default: all cores]")
@click.option("--random-seed", "seed", type=int, default=0, show_default=True, help="Seed of random methods.")
@_switch("allow-crimes", "Merge models of different architectures where their tensors fit.")
@_switch(
    "unsafe-truncate-embeddings",
    "Cut embeddings to the smallest vocabulary, whatever their tokens are; a tokenizer_source is better.",
)
@click.option("--out-shard-size", "shard_bytes", callback=_size, default="5B", show_default=True,
              help="Largest file of weights, in bytes.")  # fmt: skip
@_switch("copy-tokenizer", "Give the result a tokenizer.", default=True)
@_switch("write-model-card", "Give the result a README.md with the config.", default=True)
@click.option("--transformers-cache", type=click.Path(file_okay=False), help="Folder of downloads.")
@click.option("-I", "--intermediate-dir", "keep", type=click.Path(file_okay=False, path_type=Path),
              help="Keep the results of named documents here.  [default: they are removed]")  # fmt: skip
@_switch("quiet", "Show no progress and no remarks.")
@click.option("-v", "verbose", count=True, help="Tell more.")
@_needless("low-cpu-memory")
@_needless("read-to-gpu")
@_needless("multi-gpu")
@_needless("lazy-unpickle")
@_needless("clone-tensors")
@_needless("trust-remote-code")
@_needless("async-write")
@_needless("safe-serialization")
@click.option("--write-threads", type=int, help="Accepted; not needed.")
@click.option("--lora-merge-cache", help="Accepted; not needed.")
@click.option("--lora-merge-dtype", help="Accepted; not needed.")
def command(config: Path, out: Path, **given: Any) -> None:
    """Merge CONFIG (a merge config as mergekit-yaml reads it) into the new model folder OUT."""
    _check_options(given)
    logging.basicConfig(level=max(logging.DEBUG, logging.WARNING - 10 * given["verbose"]))
    if given["transformers_cache"]:
        os.environ["HF_HUB_CACHE"] = str(given["transformers_cache"])
    device = given["device"] or ("cuda" if given["cuda"] or given["gpu_rich"] else "cpu")
    with plain_errors(config):
        text = config.read_text(encoding="utf-8")
        truncate = given["unsafe_truncate_embeddings"]
        ahead = _check(text, out, allow_crimes=given["allow_crimes"], truncate=truncate, quiet=given["quiet"])
        with ahead:  # importing torch takes as long as reading a gigabyte
            from merge_engine.folder import MergeOptions, merge_config

            _prepare_torch(device, given["num_threads"])
        options = MergeOptions(
            seed=given["seed"],
            device=device,
            allow_crimes=given["allow_crimes"],
            truncate_embeddings=truncate,
            shard_bytes=given["shard_bytes"],
            copy_tokenizer=given["copy_tokenizer"],
            write_card=given["write_model_card"],
            keep=given["keep"],
        )
        signal.signal(signal.SIGTERM, _end)
        with MergeProgress(quiet=given["quiet"]) as progress:
            merge_config(text, out, options, progress)
    if not given["quiet"]:
        click.echo(f"wrote {out}: {progress.summary()}")


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """As Ctrl-C: everything that was begun is removed on the way out."""
    raise SystemExit(128 + number)


def _check_options(given: dict[str, Any]) -> None:
    refused = {**given, "no_safe_serialization": given["safe_serialization"] is False}
    for name, instead in _REFUSED.items():
        if refused[name]:
            raise click.UsageError(f"--{name.replace('_', '-')}: {instead}")
    for name, reason in _NEEDLESS.items():
        if given[name] and not given["quiet"]:
            click.echo(f"note: --{name.replace('_', '-')} is not needed: {reason}", err=True)


def _check(text: str, out: Path, *, allow_crimes: bool, truncate: bool, quiet: bool) -> ReadAhead:
    """Refuse in a moment, before anything heavy is loaded, what can be told from the headers.

    What of the config has no effect is told, unless ``quiet``. Returns what reads the first tensors.
    """
    from merge_engine.documents import read_documents
    from merge_engine.new_folder import check_free
    from merge_engine.plan import make_plan
    from merge_engine.read_ahead import ReadAhead
    from merge_engine.sources import open_source

    documents = read_documents(text)
    check_free(out)
    header = functools.cache(open_source)
    jobs: list[TensorJob] = []
    for document in documents:
        for remark in () if quiet else document.remarks:
            click.echo(f"note: {remark}", err=True)
        if not document.needs:
            recipe = replace(document.recipe, truncate_embeddings=truncate)
            jobs += make_plan(recipe, header, allow_crimes=allow_crimes).jobs
    return ReadAhead([[job] for job in jobs], header)


def _prepare_torch(device: str, threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise click.UsageError(f"device {device!r} cannot be used: {reason}") from error
