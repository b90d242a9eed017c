"""Greedy decoding of many prompts at once.

A lean loop instead of ``model.generate``: each row has its own stop strings and length, rows that are
finished leave the batch, and text is decoded only where the last token can have completed a stop string.

The model's own ``generation_config.json`` only says which tokens end an answer; its sampling settings and
penalties are not used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fitness.batching import batches
from fitness.errors import ModelError
from fitness.kv_cache import left_padded, roomy_cache
from fitness.requests import Generation
from fitness.resident import ResidentModel

# Dropping rows copies the cache once; below this share of finished rows the copy costs more than it saves.
_DROP_SHARE = 0.25

_REMEMBERED_TEXTS = 2**16


@dataclass(frozen=True, slots=True)
class _Batch:
    """Requests that run together; ``ids`` and ``mask``, int64 (requests, tokens), hold their prompts."""

    places: tuple[int, ...]  # among all requests
    requests: tuple[Generation, ...]
    ids: Tensor
    mask: Tensor


class Generator:
    """Answers `Generation` requests with text, in batches fixed at the start.

    Args:
        rows: requests per batch at most.
        model: whose padding and device the prompts are prepared for.
    """

    def __init__(
        self, tokenizer: Any, requests: Sequence[Generation], rows: int, model: ResidentModel
    ) -> None:
        self._count = len(requests)
        self._stopping = StopWords(tokenizer, (request.stops for request in requests))
        self._batches = []
        for places in batches(requests, rows, lambda request: len(request.prompt)):
            own = tuple(requests[place] for place in places)
            ids, mask = left_padded([request.prompt for request in own], model.pad_id, model.device)
            self._batches.append(_Batch(tuple(places), own, ids, mask))

    def run(self, model: ResidentModel) -> list[str]:
        """The text of each request, in their order, cut before its stop string.

        Raises:
            ModelError: the model's logits are NaN.
        """
        texts = [""] * self._count
        for batch in self._batches:
            answers = _decode(model, batch, self._stopping)
            for place, request, tokens in zip(batch.places, batch.requests, answers, strict=True):
                texts[place] = self._stopping.cut(tokens, request.stops)
        return texts


class StopWords:
    """Knows, for each set of stop strings, after which tokens the text is worth looking at."""

    def __init__(self, tokenizer: Any, stop_sets: Iterable[tuple[str, ...]]) -> None:
        # Candidates often give the same answers.
        self._texts: Callable[[tuple[int, ...]], str] = functools.lru_cache(_REMEMBERED_TEXTS)(
            lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True))
        )
        self._watched: dict[tuple[str, ...], frozenset[int]] = {}
        self._ending: dict[tuple[str, ...], frozenset[int]] = {}
        self._noted: dict[tuple[str, ...], frozenset[int]] = {}
        pieces: list[str] | None = None
        for stops in stop_sets:
            if stops in self._watched:
                continue
            pieces = pieces or [tokenizer.decode([token]) for token in range(len(tokenizer))]
            self._watched[stops] = _completing_tokens(pieces, stops)
            self._ending[stops] = frozenset(
                token
                for token, text in tokenizer.added_tokens_decoder.items()
                if str(text) in (*stops, tokenizer.eos_token)
            )
            self._noted[stops] = self._watched[stops] | self._ending[stops]

    def noted(self, stops: tuple[str, ...]) -> frozenset[int]:
        """The tokens after which `reached` can be true."""
        return self._noted[stops]

    def ending(self, stops: tuple[str, ...]) -> frozenset[int]:
        """The special tokens whose own text is a stop string or ends a sequence."""
        return self._ending[stops]

    def reached(self, tokens: list[int], stops: tuple[str, ...]) -> bool:
        """Whether the text of ``tokens`` holds a stop string now; it held none before the last token."""
        if tokens[-1] in self._ending[stops]:
            return True
        if tokens[-1] not in self._watched[stops]:
            return False
        text = self._text(tokens)
        return any(stop in text for stop in stops)

    def cut(self, tokens: list[int], stops: tuple[str, ...]) -> str:
        """The text of ``tokens``, without special tokens, up to the first stop string."""
        text = self._text(tokens)
        for stop in stops:
            text = text.split(stop, 1)[0]
        return text

    def _text(self, tokens: list[int]) -> str:
        return self._texts(tuple(tokens))


def _completing_tokens(pieces: list[str], stops: tuple[str, ...]) -> frozenset[int]:
    """Tokens that can complete a stop string: those whose text has its last character.

    A blank at the end can come from the way tokens are joined, and half a character has no text of its own
    (shown as U+FFFD): there, every token, or every such token, counts.
    """
    if any(stop[-1] == " " for stop in stops):
        return frozenset(range(len(pieces)))
    last = {stop[-1] for stop in stops} | {"\ufffd"}
    return frozenset(token for token, text in enumerate(pieces) if not last.isdisjoint(text))


def _decode(model: ResidentModel, batch: _Batch, stopping: StopWords) -> list[list[int]]:
    """The new tokens of each request, without the end-of-sequence token."""
    requests = batch.requests
    longest = max(request.max_new_tokens for request in requests)
    cache = roomy_cache(model.config, room=longest)
    logits = model.forward(batch.ids, batch.mask, cache=cache, keep=1)[:, -1]
    if torch.isnan(logits).any():
        raise ModelError("the model's logits are NaN")
    mask = torch.cat([batch.mask, batch.mask.new_ones(len(requests), longest)], dim=1)
    width = batch.ids.shape[1]
    answers = [_Answer(request, stopping.noted(request.stops)) for request in requests]
    rows = answers  # the answer that each row of the batch is at
    while True:
        chosen = logits.max(dim=-1).indices  # on a CPU three times as fast as argmax, and the same
        for answer, token in zip(rows, chosen.tolist(), strict=True):
            if not answer.finished:
                answer.take(token, model.end_ids, stopping)
        kept = [place for place, answer in enumerate(rows) if not answer.finished]
        if not kept:
            return [answer.tokens for answer in answers]
        if len(kept) <= len(rows) * (1 - _DROP_SHARE):
            rows = [rows[place] for place in kept]
            chosen, mask = _select(kept, chosen, mask, cache)
        width += 1
        logits = model.forward(chosen[:, None], mask[:, :width], cache=cache, keep=1)[:, -1]


@dataclass(slots=True)
class _Answer:
    """One request's answer so far; ``noted``: the tokens after which it may have reached a stop string."""

    request: Generation
    noted: frozenset[int]
    tokens: list[int] = field(default_factory=list)
    finished: bool = False

    def take(self, token: int, end_ids: Container[int], stopping: StopWords) -> None:
        """Add the next token, unless it ends the answer."""
        if token in end_ids:
            self.finished = True
            return
        self.tokens.append(token)
        if len(self.tokens) >= self.request.max_new_tokens or (
            token in self.noted and stopping.reached(self.tokens, self.request.stops)
        ):
            self.finished = True


def _select(places: list[int], chosen: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
    index = torch.tensor(places, device=chosen.device)
    cache.reorder_cache(index)
    return chosen.index_select(0, index), mask.index_select(0, index)
