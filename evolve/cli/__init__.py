"""The command line. Commands import what they need when they run: ``--help`` must not wait for torch."""

from __future__ import annotations

import click

from evolve import __version__
from evolve.cli import explain, export, merge, report, search, status


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mergevolve")
def main() -> None:
    """Find the best way to merge language models."""


for _module in (search, explain, merge, status, report, export):
    main.add_command(_module.command)
