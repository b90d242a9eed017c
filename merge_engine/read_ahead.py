"""What is merged next is read into the operating system's page cache meanwhile, some way ahead."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from types import TracebackType

from merge_engine.checkpoint_header import CheckpointHeader, TensorInfo
from merge_engine.plan_types import TensorJob

WINDOW_BYTES = 2**29  # what a disk reads while torch is imported; of the page cache, not of this process


class ReadAhead:
    """Reads the inputs of ``steps``, a thread of its own, while the block runs.

    header: of a model, by its reference. At most `WINDOW_BYTES` that have not been passed are asked for, or
    one larger step. Nothing is done where the operating system takes no such advice.
    """

    def __init__(
        self, steps: Sequence[Sequence[TensorJob]], header: Callable[[str], CheckpointHeader]
    ) -> None:
        self._steps = steps
        self._header = header
        self._changed = threading.Condition()
        self._asked: list[int] = []  # bytes of the steps so far
        self._passed = 0
        self._ended = not hasattr(os, "posix_fadvise")
        self._thread = threading.Thread(target=self._read, daemon=True, name="read ahead")

    def __enter__(self) -> ReadAhead:
        self._thread.start()
        return self

    def passed(self) -> None:
        """One more step has been merged."""
        with self._changed:
            self._passed += 1
            self._changed.notify_all()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()

    def _read(self) -> None:
        for step in self._steps:
            infos = [info for job in step for info in self._inputs(job)]
            with self._changed:
                self._changed.wait_for(self._may_go_on)
                if self._ended:
                    return
                self._asked.append(sum(info.end - info.begin for info in infos))
            for info in infos:
                _ask_for(info)

    def _may_go_on(self) -> bool:
        return self._ended or sum(self._asked[self._passed :]) < WINDOW_BYTES

    def _inputs(self, job: TensorJob) -> list[TensorInfo]:
        plain = [ref for given in job.inputs for ref in (given, *given.donors)]
        return [self._header(ref.model).tensors[ref.name] for ref in plain]


def _ask_for(info: TensorInfo) -> None:
    try:
        with info.file.open("rb") as file:
            os.posix_fadvise(file.fileno(), info.begin, info.end - info.begin, os.POSIX_FADV_WILLNEED)
    except OSError:
        return  # whoever reads it will tell
