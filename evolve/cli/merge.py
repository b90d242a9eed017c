"""`mergevolve merge`: one recipe, one model folder."""

from __future__ import annotations

from pathlib import Path

import click

from evolve.cli.errors import plain_errors


@click.command("merge")
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--random-seed", type=int, default=0, show_default=True, help="Seed of the random methods (dare_*)."
)
def command(config: Path, out: Path, random_seed: int) -> None:
    """Merge CONFIG (a merge config as mergekit-yaml reads it) into the model folder OUT."""
    with plain_errors(config):
        from merge_engine.folder import merge_config

        merge_config(config.read_text(encoding="utf-8"), out, seed=random_seed)
    click.echo(f"wrote {out}")
