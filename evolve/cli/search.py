"""`mergekit-evolve` and `mergevolve search`: the main command, with the incumbent's options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from evolve.cli.errors import plain_errors
from evolve.options import SearchOptions, View

# Options of mergekit-evolve that ask for what is always so here.
_NEEDLESS = {
    "strategy": "every candidate goes to the first free worker",
    "in_memory": "candidates are always merged in memory",
    "merge_cuda": "a merge runs on the device that holds its model",
    "reshard": "source files are read in place, however they are sharded",
}

# Options of mergekit-evolve that cannot be honoured, and what to do instead.
_REFUSED = {
    "load_in_8bit": "not built yet; leave it out: candidates are scored in the models' own dtype",
    "load_in_4bit": "not built yet; leave it out: candidates are scored in the models' own dtype",
}

_ACCEPTED, _LATER = "Accepted; not needed.", "Not built yet."
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
@click.option("-s", "--strategy", type=click.Choice(["pool", "buffered", "serial"]), help=_ACCEPTED)
@click.option("--in-memory/--no-in-memory", default=None, help=_ACCEPTED)
@click.option("--merge-cuda/--no-merge-cuda", default=None, help=_ACCEPTED)
@click.option("--reshard/--no-reshard", default=None, help=_ACCEPTED)
@click.option("--load-in-8bit", is_flag=True, help=_LATER)
@click.option("--load-in-4bit", is_flag=True, help=_LATER)
def command(quiet: bool | None, **given: Any) -> None:
    """Search for the best merge that SEARCH.yml describes.

    Started again with the same storage path, the search goes on where it stopped, with the same result as
    if it had never been stopped; a larger --max-fevals extends it.
    """
    for name, remedy in _REFUSED.items():
        if given.pop(name):
            raise click.UsageError(f"--{name.replace('_', '-')}: {remedy}")
    for name, reason in _NEEDLESS.items():
        if given.pop(name) is not None:
            click.echo(f"note: --{name.replace('_', '-')} is not needed: {reason}", err=True)
    view: View = "auto" if quiet is None else "quiet" if quiet else "live"
    with plain_errors():
        from evolve.run import run

        status = run(SearchOptions(view=view, **given))
    raise SystemExit(status)


def main() -> None:
    """Entry point of `mergekit-evolve`."""
    command(prog_name="mergekit-evolve")
