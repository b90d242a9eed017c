"""`mergekit-evolve` and `mergevolve search`: the main command, with the incumbent's options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from evolve.cli.errors import plain_errors
from evolve.options import SearchOptions, View
from fitness.quantisation import Bits

# Options of mergekit-evolve that ask for what is always so here.
_NEEDLESS = {
    "merge_cuda": "a merge runs on the device that holds its model",
    "reshard": "source files are read in place, however they are sharded",
}

_ACCEPTED = "Accepted; not needed."
_DISK_FLAGS = ("on_disk", "in_memory", "load_in_8bit", "load_in_4bit")
_COUNT, _SECONDS = click.IntRange(min=1), click.FloatRange(min=0, min_open=True)
_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command("search", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("search_file", metavar="SEARCH.yml", type=click.Path(path_type=Path))
@click.option(
    "--storage-path", type=_FOLDER, required=True, help="Folder for all of this search; resumes there."
)
@click.option("--max-fevals", type=_COUNT, help="Candidates to score in all.  [default: 100]")
@click.option("--timeout", "timeout_s", type=_SECONDS, help="Seconds after which to stop searching.")
@click.option("--random-seed", "seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--sigma0", type=click.FloatRange(0, 1, min_open=True), help="First step.  [default: 1/6]")
@click.option("--force-population-size", "popsize", type=click.IntRange(min=4), help="Size of a generation.")
@click.option("--batch-size", type=_COUNT, help="Sequences at a time.  [default: what fits]")
@click.option("--num-workers", type=_COUNT, help="Scoring processes.  [default: one per GPU or core]")
@click.option("--num-gpus", type=click.IntRange(min=0), help="GPUs to use; 0: none.  [default: all]")
@click.option(
    "--workers-per-gpu",
    type=_COUNT,
    default=1,
    show_default=True,
    help="More: one merges while another scores.",
)
@click.option("--ray-address", help="A running Ray cluster.  [default: one of our own on this machine]")
@click.option(
    "--candidate-timeout",
    "candidate_timeout_s",
    type=_SECONDS,
    help="Seconds after which a candidate counts as hung.  [default: 20 times the first one's]",
)
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="New attempts for a candidate whose worker died.",
)
@click.option("--task-search-path", "task_search_paths", multiple=True, help="Folder of tasks; repeatable.")
@click.option(
    "--i-understand-the-depths-of-the-evils-i-am-unleashing",
    "allow_benchmarks",
    is_flag=True,
    help="Allow benchmarks' test sets as objective.",
)
@click.option(
    "--trust-remote-code/--no-trust-remote-code", default=False, help="Run code of the models' own."
)
@click.option(
    "--allow-crimes/--no-allow-crimes", default=False, help="Merge models of different architectures."
)
@click.option("--vllm/--no-vllm", default=False, help="Score with vLLM instead of transformers.")
@click.option(
    "--on-disk",
    is_flag=True,
    help="Merge candidates to the disk, and score them there: for models that cannot stay in memory.",
)
@click.option("--in-memory/--no-in-memory", default=None, help="Merge candidates in memory.  [default]")
@click.option(
    "--scratch", type=_FOLDER, help="Folder for candidates on the disk.  [default: a temporary one]"
)
@click.option("--load-in-8bit", is_flag=True, help="Score with 8-bit weights; on disk.")
@click.option("--load-in-4bit", is_flag=True, help="Score with 4-bit weights; on disk.")
@click.option("--save-final-model/--no-save-final-model", default=True, help="Write the winner's model.")
@click.option("--wandb/--no-wandb", default=False, help="Log to Weights & Biases.")
@click.option("--wandb-project")
@click.option("--wandb-entity")
@click.option(
    "--quiet/--progress",
    "quiet",
    default=None,
    help="Only the result, or a live view.  [default: what fits the output]",
)
@click.option(
    "-s",
    "--strategy",
    type=click.Choice(["pool", "buffered", "serial"]),
    help="Accepted; buffered, on disk, means two workers per GPU.",
)
@click.option("--merge-cuda/--no-merge-cuda", default=None, help=_ACCEPTED)
@click.option("--reshard/--no-reshard", default=None, help=_ACCEPTED)
def command(quiet: bool | None, **given: Any) -> None:
    """Search for the best merge that SEARCH.yml describes.

    Started again with the same storage path, the search goes on where it stopped, with the same result as
    if it had never been stopped; a larger --max-fevals extends it.
    """
    for name, reason in _NEEDLESS.items():
        if given.pop(name) is not None:
            _note(f"--{name.replace('_', '-')} is not needed: {reason}")
    strategy = given.pop("strategy")
    given |= _on_disk(**{name: given.pop(name) for name in _DISK_FLAGS}, scratch=given["scratch"])
    given["workers_per_gpu"] = _workers_per_gpu(strategy, given["on_disk"], given["workers_per_gpu"])
    view: View = "auto" if quiet is None else "quiet" if quiet else "live"
    with plain_errors():
        from evolve.run import run

        status = run(SearchOptions(view=view, **given))
    raise SystemExit(status)


def _on_disk(
    *, on_disk: bool, in_memory: bool | None, load_in_8bit: bool, load_in_4bit: bool, scratch: Path | None
) -> dict[str, Any]:
    """What the flags about the disk come to. Raises `click.UsageError` where they contradict each other."""
    if load_in_8bit and load_in_4bit:
        raise click.UsageError("--load-in-8bit and --load-in-4bit: give one of the two")
    bits: Bits | None = 8 if load_in_8bit else 4 if load_in_4bit else None
    if in_memory and on_disk:
        raise click.UsageError("--in-memory and --on-disk: give one of the two")
    if in_memory and bits:
        raise click.UsageError(
            f"--load-in-{bits}bit: weights are quantised when they are read from disk; leave --in-memory out"
        )
    if bits and not on_disk and in_memory is None:
        _note(
            f"--load-in-{bits}bit quantises weights when they are loaded: candidates are merged to the disk"
        )
    on_disk = on_disk or in_memory is False or bits is not None
    if scratch is not None and not on_disk:
        _note("--scratch is not needed: candidates are merged in memory")
    if in_memory:
        _note("--in-memory is not needed: candidates are merged in memory unless --on-disk is given")
    return {"on_disk": on_disk, "bits": bits}


def _workers_per_gpu(strategy: str | None, on_disk: bool, given: int) -> int:
    """The incumbent's strategy `buffered` merges the next candidate while a GPU scores the present one."""
    if strategy == "buffered" and on_disk:
        workers = max(given, 2)
        _note(
            f"--strategy buffered: {workers} workers share each GPU, so that one merges while another scores"
        )
        return workers
    if strategy == "buffered":
        _note("--strategy buffered is not needed: merging in memory takes next to no time")
    elif strategy is not None:
        what = "one worker merges and scores a candidate, and the next goes to the first that is free"
        _note(f"--strategy {strategy} is not needed: {what}")
    return given


def _note(text: str) -> None:
    click.echo(f"note: {text}", err=True)


def main() -> None:
    """Entry point of `mergekit-evolve`."""
    command(prog_name="mergekit-evolve")
