"""The three skills of the demo: arithmetic, text and choice. Pure: no files, no torch.

Whether an item may be trained on, searched on, or only reported on follows from a checksum of what the item
asks, with the order of its parts left out. So the three shares cannot overlap, not even by `sort b a` against
`sort a b`.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .vocabulary import KINDS, LETTERS

Share = Literal["training", "search", "heldout"]
_TRAINING: tuple[Share, ...] = ("training",) * 13
_SHARES: tuple[Share, ...] = ("search", "heldout", "heldout", *_TRAINING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question: space-separated words that ask, and space-separated words that answer."""

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One skill; `choice` tasks are scored by likelihood of the choices, the others by generating.

    A choice item costs a short forward pass and the longest judging of lm-eval: few of them are searched on.
    """

    name: str
    draw: Callable[[random.Random], Item]
    output_type: Literal["generate_until", "multiple_choice"]
    search_items: int


def _add(rng: random.Random) -> Item:
    a, b = rng.randrange(9_991), rng.randrange(1, 10)
    return Item(prompt=" ".join(f"{a:04d}+{b}="), answer=" ".join(f"{a + b:04d}"), key=f"{a} {b}")


def _sort(rng: random.Random) -> Item:
    letters = rng.sample(LETTERS, 8)
    answer = " ".join(sorted(letters))
    return Item(prompt=f"sort {' '.join(letters)} =", answer=answer, key=answer)


def _odd(rng: random.Random) -> Item:
    kind, other = rng.sample(sorted(KINDS), 2)
    odd = rng.choice(KINDS[other])
    words = [*rng.sample(KINDS[kind], 3), odd]
    rng.shuffle(words)
    prompt = f"odd {' '.join(words)} ="
    return Item(prompt=prompt, answer=odd, choices=tuple(words), key=" ".join(sorted(words)))


TASKS = (
    Task(name="demo_arithmetic", draw=_add, output_type="generate_until", search_items=1_500),
    Task(name="demo_text", draw=_sort, output_type="generate_until", search_items=1_500),
    Task(name="demo_choice", draw=_odd, output_type="multiple_choice", search_items=200),
)


def share_of(item: Item) -> Share:
    """The share an item belongs to, the same on every machine."""
    return _SHARES[zlib.crc32(item.key.encode()) % len(_SHARES)]


def draw_items(task: Task, share: Share, count: int, seed: int, *, repeats: bool = False) -> list[Item]:
    """`count` items of one share; no prompt twice unless `repeats` (training data)."""
    rng = random.Random(f"{seed} {task.name} {share}")
    items: list[Item] = []
    seen: set[str] = set()
    while len(items) < count:
        item = task.draw(rng)
        if share_of(item) == share and (repeats or item.prompt not in seen):
            seen.add(item.prompt)
            items.append(item)
    return items
