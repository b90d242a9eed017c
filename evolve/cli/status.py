"""`mergevolve status`: where a search stands."""

from __future__ import annotations

from pathlib import Path

import click

from evolve.cli.errors import plain_errors


@click.command("status")
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
def command(folder: Path) -> None:
    """Show where the search with storage path DIR stands, during it and after. Changes nothing."""
    with plain_errors():
        from evolve.report.text import console
        from evolve.status import read_status, show

        show(read_status(folder), console())
