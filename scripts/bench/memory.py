"""The most memory of its own that a process holds while something runs. Linux only."""

from __future__ import annotations

import threading
from types import TracebackType

_INTERVAL_S = 0.005
_MIB = 2**20


class OwnMemoryPeak:
    """Samples this process's anonymous memory (no pages of mapped files) until the block is left."""

    def __init__(self) -> None:
        self._before_bytes = self._peak_bytes = _anonymous_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    @property
    def held_bytes(self) -> int:
        """What was held when the block was entered."""
        return self._before_bytes

    @property
    def above_mib(self) -> float:
        """The peak above what was held when the block was entered."""
        return (self._peak_bytes - self._before_bytes) / _MIB

    def __enter__(self) -> OwnMemoryPeak:
        self._before_bytes = self._peak_bytes = _anonymous_bytes()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(_INTERVAL_S):
            self._peak_bytes = max(self._peak_bytes, _anonymous_bytes())


def _anonymous_bytes() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        (line,) = (line for line in status if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024
