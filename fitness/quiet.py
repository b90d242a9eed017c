"""Keeps lm-eval and datasets from writing to a worker's log: progress bars, warnings about every task."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator

_LOGGERS = ("lm_eval", "datasets", "lm-eval")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars on standard error, and of the libraries' logs only errors."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
