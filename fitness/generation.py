"""Greedy decoding of many prompts at once.

A lean loop instead of ``model.generate``: each row has its own stop strings and length, rows that are
finished leave the batch, and text is decoded only where the last token can have completed a stop string.

The model's own ``generation_config.json`` only says which tokens end an answer; its sampling settings and
penalties are not used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitness.batching import batches, equal_batches
from fitness.causal_model import CausalModel, ModelTraits
from fitness.errors import ModelError
from fitness.kv_cache import left_padded, roomy_cache
from fitness.requests import Generation

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
        traits: of the models that are going to answer. Prompts of stateful ones stand beside others of their
            own length only.
    """

    def __init__(
        self, tokenizer: Any, requests: Sequence[Generation], rows: int, traits: ModelTraits
    ) -> None:
        self._count = len(requests)
        self._stopping = StopWords(tokenizer, (request.stops for request in requests))
        self._batches = []
        cut = equal_batches if traits.stateful else batches
        for places in cut(requests, rows, lambda request: len(request.prompt)):
            own = tuple(requests[place] for place in places)
            ids, mask = left_padded([request.prompt for request in own], traits.pad_id, traits.device)
            self._batches.append(_Batch(tuple(places), own, ids, mask))

    def run(self, model: CausalModel) -> list[str]:
        """The text of each request, in their order, cut before its stop string.

        Raises:
            ModelError: the model's logits are NaN.
        """
        texts = [""] * self._count
        for batch in self._batches:
            decode = _decode_stateful if model.traits.stateful else _decode
            answers = decode(model, batch, self._stopping)
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


def _decode_stateful(model: CausalModel, batch: _Batch, stopping: StopWords) -> list[list[int]]:
    """As `_decode`, by transformers' own loop, which drops no rows."""
    longest = max(request.max_new_tokens for request in batch.requests)
    vocabulary = model.traits.config.get_text_config().vocab_size
    rows = _Rows(batch.requests, longest, vocabulary, model.traits.end_ids, stopping)

    def take(chosen: Tensor) -> list[bool]:
        rows.take(chosen)
        still_open = set(rows.open())
        return [row not in still_open for row in range(len(rows))]

    model.generate(batch.ids, longest, take)
    return rows.answers


def _decode(model: CausalModel, batch: _Batch, stopping: StopWords) -> list[list[int]]:
    """The new tokens of each request, without the end-of-sequence token."""
    requests = batch.requests
    longest = max(request.max_new_tokens for request in requests)
    cache = roomy_cache(model.traits.config, room=longest)
    logits = model.forward(batch.ids, batch.mask, cache=cache, keep=1)[:, -1]
    if torch.isnan(logits).any():
        raise ModelError("the model's logits are NaN")
    rows = _Rows(requests, longest, logits.shape[-1], model.traits.end_ids, stopping)
    mask = torch.cat([batch.mask, batch.mask.new_ones(len(requests), longest)], dim=1)
    width = batch.ids.shape[1]
    while True:
        chosen = logits.max(dim=-1).indices  # on a CPU three times as fast as argmax, and the same
        rows.take(chosen)
        kept = rows.open()
        if not kept:
            return rows.answers
        if len(kept) <= len(rows) * (1 - _DROP_SHARE):
            index = torch.tensor(kept, device=chosen.device)
            rows.keep(kept)
            cache.reorder_cache(index)
            chosen, mask = chosen.index_select(0, index), mask.index_select(0, index)
        width += 1
        logits = model.forward(chosen[:, None], mask[:, :width], cache=cache, keep=1)[:, -1]


class _Rows:
    """The answers that a batch is at, one token longer at each step; only those that may be at their end are
    looked at.

    ``answers``: for each request its tokens, once it has ended.
    """

    def __init__(
        self,
        requests: Sequence[Generation],
        longest: int,
        vocabulary: int,
        end_ids: Collection[int],
        stopping: StopWords,
    ) -> None:
        self.answers: list[list[int]] = [[] for _ in requests]
        self._requests = requests
        self._end_ids = end_ids
        self._stopping = stopping
        self._places: list[int | None] = list(range(len(requests)))  # of each row's request; None: has ended
        # On the host, as numpy arrays: a GPU would be asked for many small things otherwise.
        self._tokens = np.zeros((len(requests), longest), dtype=np.int64)
        self._steps = 0
        self._limits = np.array([request.max_new_tokens for request in requests])
        stop_sets = list(dict.fromkeys(request.stops for request in requests))
        self._noted = np.zeros((len(stop_sets), vocabulary), dtype=np.bool_)
        for row, stops in enumerate(stop_sets):
            self._noted[
                row, [token for token in (*stopping.noted(stops), *end_ids) if token < vocabulary]
            ] = True
        self._kinds = np.array([stop_sets.index(request.stops) for request in requests])

    def __len__(self) -> int:
        return len(self._places)

    def open(self) -> list[int]:
        """The rows whose answers have not ended."""
        return [row for row, place in enumerate(self._places) if place is not None]

    def take(self, chosen: Tensor) -> None:
        """Each row's next token, int64 (rows,)."""
        tokens = chosen.cpu().numpy()
        self._tokens[:, self._steps] = tokens
        self._steps += 1
        rows = np.flatnonzero(self._noted[self._kinds, tokens] | (self._limits <= self._steps))
        for row, answer in zip(rows.tolist(), self._tokens[rows, : self._steps].tolist(), strict=True):
            place = self._places[row]
            if place is not None and self._has_ended(self._requests[place], answer):
                self.answers[place] = answer
                self._places[row] = None

    def _has_ended(self, request: Generation, tokens: list[int]) -> bool:
        """Whether ``tokens`` are the whole answer, once the last one is taken off if it only ends it."""
        if tokens[-1] in self._end_ids:
            tokens.pop()
            return True
        return self._steps >= request.max_new_tokens or self._stopping.reached(tokens, request.stops)

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but these."""
        self._places = [self._places[row] for row in rows]
        self._tokens, self._limits, self._kinds = self._tokens[rows], self._limits[rows], self._kinds[rows]
