"""`mergevolve report`: pictures and tables of a search."""

from __future__ import annotations

from pathlib import Path

import click

from evolve.cli.errors import plain_errors


@click.command("report")
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--png",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the main picture to this PNG file.",
)
def command(folder: Path, png: Path | None) -> None:
    """Write DIR/report.html anew from the journal of the search with storage path DIR."""
    with plain_errors():
        from evolve.report.write import write_picture, write_report
        from evolve.storage import StoragePath

        click.echo(f"wrote {write_report(StoragePath(folder))}")
        if png is not None:
            write_picture(StoragePath(folder), png)
            click.echo(f"wrote {png}")
