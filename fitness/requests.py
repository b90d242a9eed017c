"""What a model is asked, as token ids: made once per worker, run for every candidate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Tokens: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """How likely is ``target`` after ``prefix``? Neither is empty; together they fit the model."""

    prefix: Tokens
    target: Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Rolling:
    """How likely is a whole text? ``windows`` cover it, each token scored once."""

    windows: tuple[Continuation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What follows ``prompt``, greedily, up to the first of ``stops`` or ``max_new_tokens``?"""

    prompt: Tokens
    max_new_tokens: int
    stops: tuple[str, ...]


Request: TypeAlias = Continuation | Rolling | Generation


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Natural log of a target's probability; ``greedy``: each of its tokens was the model's first choice."""

    log_probability: float
    greedy: bool


Response: TypeAlias = Likelihood | float | str  # of a Continuation | Rolling | Generation


def longest_tokens(request: Request) -> int:
    """The longest sequence that the model sees for this request, in tokens."""
    if isinstance(request, Generation):
        return len(request.prompt) + request.max_new_tokens
    windows = request.windows if isinstance(request, Rolling) else (request,)
    return max((len(window.prefix) + len(window.target) for window in windows), default=0)


def scored_tokens(request: Request) -> int:
    """The positions of one sequence whose logits are needed at the same time."""
    if isinstance(request, Generation):
        return 1
    windows = request.windows if isinstance(request, Rolling) else (request,)
    return max((len(window.target) for window in windows), default=0)
