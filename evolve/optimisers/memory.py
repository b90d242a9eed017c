"""What an optimiser knows of the points that it gave out, beyond their coordinates."""

from __future__ import annotations

from typing import Generic, TypeVar

from evolve.optimisers.base import Vector

T = TypeVar("T")


class Memory(Generic[T]):
    """Notes on points, by the arrays themselves: of two points with equal coordinates each has its own."""

    def __init__(self) -> None:
        self._notes: dict[int, tuple[Vector, T]] = {}  # holding the array keeps its id from being used again

    def keep(self, point: Vector, note: T) -> None:
        self._notes[id(point)] = (point, note)

    def take(self, point: Vector) -> T:
        """The note on a point, once.

        Raises:
            ValueError: this array was not kept, or its note was taken before.
        """
        if id(point) not in self._notes:
            raise ValueError("only the very arrays that were asked or injected can be told, and those once")
        return self._notes.pop(id(point))[1]
