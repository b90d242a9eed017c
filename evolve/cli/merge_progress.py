"""How a merge goes on: a bar with GB/s and the time left where somebody looks, silence elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class MergeProgress:
    """`merge_engine.folder.Watcher`: counts bytes read and written, over all documents of a config."""

    def __init__(self, *, quiet: bool) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("merging"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not sys.stderr.isatty(),
            transient=True,
        )
        self._task = self._bar.add_task("merging", total=None)
        self._total_bytes = self._moved_bytes = 0
        self._began_s = time.perf_counter()

    def begin(self, total_bytes: int) -> None:
        self._total_bytes += total_bytes
        self._bar.update(self._task, total=self._total_bytes)

    def moved(self, count_bytes: int) -> None:
        self._moved_bytes += count_bytes
        self._bar.advance(self._task, count_bytes)

    def summary(self) -> str:
        """Bytes, seconds and their quotient so far."""
        seconds = time.perf_counter() - self._began_s
        gigabytes = self._moved_bytes / 1e9
        return f"{gigabytes:.2f} GB read and written in {seconds:.1f} s, {gigabytes / seconds:.2f} GB/s"

    def __enter__(self) -> MergeProgress:
        self._bar.start()
        self._began_s = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
