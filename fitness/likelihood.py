"""Log-likelihoods of many continuations at once.

Continuations of one prefix share its forward pass: those of one token (or that differ only in the last one)
read the same row of logits; longer ones follow the cached prefix, where the model's cache allows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from fitness.batching import batches
from fitness.errors import ModelError
from fitness.kv_cache import attends_everything, left_padded, right_padded
from fitness.requests import Continuation, Likelihood, Tokens
from fitness.resident import ResidentModel

_LOGIT_CHUNK_BYTES = 64 << 20  # fp32 copies of logits are made this much at a time


@dataclass(frozen=True, slots=True)
class _Row:
    """One sequence to read, and the continuations (their indices) that end with it."""

    tokens: Tokens
    members: tuple[int, ...]


class Likelihoods:
    """Answers `Continuation` requests, in batches fixed at the start."""

    def __init__(self, requests: Sequence[Continuation], rows: int, *, share_prefixes: bool) -> None:
        self._requests = tuple(requests)
        groups: dict[Tokens, list[int]] = {}
        for index, request in enumerate(self._requests):
            groups.setdefault(request.prefix, []).append(index)
        shared = {
            prefix: members
            for prefix, members in groups.items()
            if share_prefixes and len({self._requests[index].target[:-1] for index in members}) > 1
        }
        alone = [index for index in range(len(requests)) if self._requests[index].prefix not in shared]
        self._prefixes = [_Row(prefix, tuple(members)) for prefix, members in shared.items()]
        self._rows = self._whole_rows(alone)
        widest = max((len(row.members) for row in self._prefixes), default=1)
        self._prefix_batches = tuple(
            batches(self._prefixes, max(rows // widest, 1), lambda row: len(row.tokens))
        )
        self._row_batches = tuple(batches(self._rows, rows, lambda row: len(row.tokens)))

    def _whole_rows(self, members: list[int]) -> list[_Row]:
        rows: dict[Tokens, list[int]] = {}
        for index in members:
            request = self._requests[index]
            rows.setdefault(request.prefix + request.target[:-1], []).append(index)
        return [_Row(tokens, tuple(found)) for tokens, found in rows.items()]

    def run(self, model: ResidentModel) -> list[Likelihood]:
        """The likelihood of each request, in their order.

        Raises:
            ModelError: the model's logits are NaN.
        """
        found: dict[int, Likelihood] = {}
        for batch in self._row_batches:
            found |= self._run_rows(model, [self._rows[index] for index in batch])
        for batch in self._prefix_batches:
            found |= self._run_prefixes(model, [self._prefixes[index] for index in batch])
        return [found[index] for index in range(len(self._requests))]

    def _run_rows(self, model: ResidentModel, rows: list[_Row]) -> dict[int, Likelihood]:
        # A row cannot see the padding after it: no mask is needed, and attention takes its fastest path.
        ids, _ = right_padded([row.tokens for row in rows], model.pad_id, model.device)
        width = ids.shape[1]
        first = min(
            len(row.tokens) - max(len(self._requests[index].target) for index in row.members) for row in rows
        )
        logits = model.forward(ids, None, cache=None, keep=width - first)
        gather = _Gather()
        for place, row in enumerate(rows):
            for index in row.members:
                target = self._requests[index].target
                gather.add(index, place, len(row.tokens) - len(target) - first, target)
        return gather.likelihoods(logits)

    def _run_prefixes(self, model: ResidentModel, rows: list[_Row]) -> dict[int, Likelihood]:
        ids, mask = left_padded([row.tokens for row in rows], model.pad_id, model.device)
        cache = DynamicCache(config=model.config)
        at_prefix = model.forward(ids, mask, cache=cache, keep=1)
        members = [(place, index) for place, row in enumerate(rows) for index in row.members]
        places = torch.tensor([place for place, _ in members], device=model.device)
        targets = [self._requests[index].target for _, index in members]
        more, more_mask = right_padded([target[:-1] for target in targets], model.pad_id, model.device)
        cache.reorder_cache(places)
        mask = torch.cat([mask.index_select(0, places), more_mask], dim=1)
        after = model.forward(more, mask, cache=cache, keep=more.shape[1])
        logits = torch.cat([at_prefix.index_select(0, places), after], dim=1)
        gather = _Gather()
        for row, ((_, index), target) in enumerate(zip(members, targets, strict=True)):
            gather.add(index, row, 0, target)
        return gather.likelihoods(logits)


class _Gather:
    """Collects which logits belong to which target, to look all of them up at once."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int]] = []  # (request index, tokens)
        self._rows: list[int] = []
        self._columns: list[int] = []
        self._tokens: list[int] = []

    def add(self, index: int, row: int, column: int, target: Tokens) -> None:
        """The logits at ``(row, column)`` predict the target's first token, the next column the second."""
        self._spans.append((index, len(target)))
        self._rows += [row] * len(target)
        self._columns += range(column, column + len(target))
        self._tokens += target

    def likelihoods(self, logits: Tensor) -> dict[int, Likelihood]:
        """``logits``: (rows, columns, vocabulary), any float dtype; log-probabilities are taken in fp32."""
        values, first_choice = self._look_up(logits)
        found, start = {}, 0
        for index, length in self._spans:
            total = math.fsum(values[start : start + length])
            if math.isnan(total):
                raise ModelError("the model's logits are NaN")
            found[index] = Likelihood(total, all(first_choice[start : start + length]))
            start += length
        return found

    def _look_up(self, logits: Tensor) -> tuple[list[float], list[bool]]:
        rows, columns, tokens = (
            torch.tensor(part, device=logits.device) for part in (self._rows, self._columns, self._tokens)
        )
        values: list[float] = []
        first_choice: list[bool] = []
        step = max(_LOGIT_CHUNK_BYTES // (4 * logits.shape[-1]), 1)
        for start in range(0, len(self._tokens), step):
            part = slice(start, start + step)
            picked = logits[rows[part], columns[part]].float()
            scores = picked.log_softmax(dim=-1).gather(1, tokens[part, None])[:, 0]
            values += scores.tolist()
            first_choice += (picked.argmax(dim=-1) == tokens[part]).tolist()
        return values, first_choice


def can_share_prefixes(model: ResidentModel) -> bool:
    """Whether several tokens may follow a cached prefix in one forward pass of this model."""
    return attends_everything(model.config)
