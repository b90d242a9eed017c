"""`mergevolve explain`: what a search file searches."""

from __future__ import annotations

from pathlib import Path

import click

from evolve.cli.errors import plain_errors


@click.command("explain")
@click.argument("search_file", metavar="SEARCH.yml", type=click.Path(path_type=Path))
def command(search_file: Path) -> None:
    """Show what SEARCH.yml searches: the template that it stands for, and every variable.

    Reads the headers of the models and nothing else; starts nothing.
    """
    with plain_errors():
        from evolve.explain import explain

        click.echo(explain(search_file), nl=False)
