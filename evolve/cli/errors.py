"""Errors that are meant for people end a command with their message, not with a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import click

BAD_INPUT, FAILED = 2, 1


@contextmanager
def plain_errors(source: Path | None = None) -> Iterator[None]:
    """Turn the rooms' own errors into a message on stderr and an exit status: 2 for bad input, else 1.

    ``source`` is the file that a recipe's problems are in.
    """
    from evolve.errors import EvolveError, PreflightError
    from merge_engine.errors import MergeError, PlanError, RecipeError

    try:
        yield
    except PreflightError as error:
        _fail(str(error), BAD_INPUT)
    except (RecipeError, PlanError) as error:
        where = "" if source is None else f"{source}: "
        _fail("\n  ".join(f"{where}{error}".splitlines()), BAD_INPUT)
    except (EvolveError, MergeError) as error:
        _fail(str(error), FAILED)


def _fail(message: str, status: int) -> NoReturn:
    click.echo(f"error: {message}", err=True)
    raise SystemExit(status)
