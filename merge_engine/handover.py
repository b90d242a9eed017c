"""Tensors handed from the thread that makes them to the one that writes them, no more at once than fit."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

from torch import Tensor

Named = tuple[str, Tensor]


class Handover:
    """A queue of tensors bounded by their bytes. One thread gives, one takes.

    ``limit_bytes``: how much may wait or be in the taker's hands; a single larger tensor goes alone.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._changed = threading.Condition()
        self._waiting: deque[Named] = deque()
        self._held_bytes = 0
        self._ended = self._broken = False

    def give(self, name: str, tensor: Tensor) -> bool:
        """Wait for room and add a tensor; false where the taker has gone."""
        with self._changed:
            self._changed.wait_for(lambda: self._broken or self._has_room(tensor.nbytes))
            if self._broken:
                return False
            self._waiting.append((name, tensor))
            self._held_bytes += tensor.nbytes
            self._changed.notify_all()
            return True

    def end(self) -> None:
        """No more will be given: what waits may still be taken."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Neither side goes on: the taker's next request is the end, the giver waits no longer."""
        with self._changed:
            self._broken = self._ended = True
            self._waiting.clear()
            self._changed.notify_all()

    def taken(self) -> Iterator[Named]:
        """The tensors in order. Each counts as held until the next one is asked for."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ended)
                if not self._waiting:
                    return
                name, tensor = self._waiting.popleft()
            size = tensor.nbytes
            yield name, tensor
            del tensor
            with self._changed:
                self._held_bytes -= size
                self._changed.notify_all()

    def _has_room(self, size: int) -> bool:
        return self._held_bytes == 0 or self._held_bytes + size <= self._limit_bytes
