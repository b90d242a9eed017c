"""Errors that are meant for people end a command with their message, not with a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

BAD_INPUT, FAILED = 2, 1


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn the rooms' own errors into a message on stderr and an exit status: 2 for bad input, else 1."""
    from evolve.errors import EvolveError
    from evolve.preflight import PreflightError
    from merge_engine.errors import MergeError, PlanError, RecipeError

    try:
        yield
    except (PreflightError, RecipeError, PlanError) as error:
        _fail(error, BAD_INPUT)
    except (EvolveError, MergeError) as error:
        _fail(error, FAILED)


def _fail(error: Exception, status: int) -> NoReturn:
    click.echo(f"error: {error}", err=True)
    raise SystemExit(status)
