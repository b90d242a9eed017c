"""Points drawn from the search distribution as it is at the moment, one by one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from evolve.optimisers import Optimiser, Vector

Place = tuple[int, int]  # generation, index


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draw:
    """The ``index``-th point drawn from the distribution as it was after ``generation - 1`` tells.

    ``run``: the optimiser's; a point of a run that has ended teaches the next one nothing.
    """

    generation: int
    index: int
    run: int
    vector: Vector

    @property
    def place(self) -> Place:
        return (self.generation, self.index)


class Draws:
    """What is drawn follows from what the optimiser was told, and from nothing else.

    ``generation``: the present one. ``size``: how many outcomes end it, as many as its first ask gave points.

    Args:
        kept: the places of candidates that an earlier session left. Those of the present and of earlier
            generations are found by `at`, and `next` leaves them out.
    """

    def __init__(self, optimiser: Optimiser, kept: Iterable[Place]) -> None:
        self.generation = 0
        self.size = 0
        self._optimiser = optimiser
        self._kept: dict[int, set[int]] = {}
        for generation, index in kept:
            self._kept.setdefault(generation, set()).add(index)
        self._found: dict[Place, Draw] = {}
        self._points: list[Vector] = []
        self._next = 0
        self.begin_generation()

    def begin_generation(self) -> None:
        """The optimiser was told: what is drawn from now on comes from the distribution as it is now."""
        self.generation += 1
        # Asked at once, whether or not any are needed: what an optimiser draws after a tell depends on that.
        self._points = self._optimiser.ask()
        self.size = len(self._points)
        self._next = 0
        for index in sorted(self._kept.get(self.generation, ())):
            self._found[self.generation, index] = self._draw(index)

    def at(self, place: Place) -> Draw | None:
        """The draw of a candidate that was kept, once; None if it cannot have been drawn yet."""
        return self._found.pop(place, None)

    def next(self) -> Draw:
        """The next point of the present generation."""
        while self._next in self._kept.get(self.generation, ()):
            self._next += 1
        draw = self._draw(self._next)
        self._next += 1
        return draw

    def _draw(self, index: int) -> Draw:
        while len(self._points) <= index:
            self._points += self._optimiser.ask()
        run, vector = self._optimiser.run, self._points[index]
        return Draw(generation=self.generation, index=index, run=run, vector=vector)
