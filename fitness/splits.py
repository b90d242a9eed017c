"""Which items of a task a search may look at, and which only the final report. Pure and seeded."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemSplit:
    """Indices among a task's documents, ascending; the two never share one."""

    search: tuple[int, ...]
    holdout: tuple[int, ...]


def split_items(
    count: int, *, task: str, holdout_share: float | None, limit: float | None, shuffle: bool, seed: int
) -> ItemSplit:
    """Splits ``count`` items by ``(seed, task)`` and keeps ``limit`` of each part.

    Args:
        holdout_share: share in (0, 1) that is held out (at least one item on either side), or None.
        limit: items kept per part: a share if below 1, else a count; None keeps all.
        shuffle: keep items drawn at random instead of the first ones.

    Raises:
        ValueError: there are too few items to hold one out.
    """
    held: set[int] = set()
    if holdout_share is not None:
        if count < 2:
            raise ValueError(f"it has {count} item(s), too few to hold some out")
        size = min(max(round(count * holdout_share), 1), count - 1)
        held = set(_draw(range(count), size, f"{seed}/holdout/{task}"))
    parts = {
        "search": [item for item in range(count) if item not in held],
        "holdout": sorted(held),
    }
    kept = {
        name: _limited(part, limit, f"{seed}/limit/{name}/{task}" if shuffle else None)
        for name, part in parts.items()
    }
    return ItemSplit(search=kept["search"], holdout=kept["holdout"])


def _limited(items: list[int], limit: float | None, draw_by: str | None) -> tuple[int, ...]:
    if limit is None:
        return tuple(items)
    size = min(math.ceil(len(items) * limit) if limit < 1 else int(limit), len(items))
    return tuple(items[:size] if draw_by is None else _draw(items, size, draw_by))


def _draw(items: list[int] | range, size: int, seed: str) -> list[int]:
    # A text seed goes through SHA-512, so it does not depend on the process's hash seed.
    return sorted(random.Random(seed).sample(items, size))
