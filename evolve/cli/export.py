"""`mergevolve export`: the winner of a search as a model folder."""

from __future__ import annotations

from pathlib import Path

import click

from evolve.cli.errors import plain_errors


@click.command("export")
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def command(folder: Path, out: Path) -> None:
    """Merge the winner of the search with storage path DIR into the model folder OUT."""
    with plain_errors():
        from evolve.errors import EvolveError
        from evolve.export import write_winner
        from evolve.journal import read_journal
        from evolve.ledger import choose_winner
        from evolve.report.summary import summarise
        from evolve.stage_paths import winners_before_last
        from evolve.storage import StoragePath

        storage = StoragePath(folder)
        summary = summarise(read_journal(storage.journal))
        winner = choose_winner(summary.candidates)
        if winner is None:
            raise EvolveError(f"{folder}: no candidate has a score yet, there is nothing to export")
        write_winner(winner, summary, out, winners_before_last(storage))
    click.echo(f"wrote {out}: candidate {winner.id + 1} ({winner.origin})")
