"""The log of what went wrong on workers, wherever they run: who, where, at which stage, and the traceback."""

from __future__ import annotations

import datetime
from pathlib import Path

FILE_NAME = "failures.log"


class FailureLog:
    """Appends to ``failures.log`` in ``folder``; nowhere if that is None. A full disk must not stop us."""

    def __init__(self, folder: Path | None) -> None:
        self._file = None if folder is None else folder / FILE_NAME

    def note(self, *, worker: str, host: str, stage: str, what: str, traceback: str | None) -> None:
        """One failure. ``what``: the candidate or the start, and the reason in one line."""
        if self._file is None:
            return
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        lines = [f"{now}  {worker} on {host}, stage {stage}: {what}"]
        lines += [f"    {line}" for line in (traceback or "").rstrip().splitlines()]
        try:
            with self._file.open("a", encoding="utf-8") as log:
                log.write("\n".join(lines) + "\n")
        except OSError:
            return
