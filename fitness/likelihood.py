"""Log-likelihoods of many continuations at once.

Continuations of one prefix share its forward pass: those of one token (or that differ only in the last one)
read the same row of logits; longer ones follow the cached prefix, where the model's cache allows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from fitness.batching import batches
from fitness.causal_model import CausalModel, ModelTraits
from fitness.errors import ModelError
from fitness.kv_cache import attends_everything, left_padded, right_padded
from fitness.requests import Continuation, Likelihood, Tokens

_LOGIT_CHUNK_BYTES = 64 << 20  # fp32 copies of logits are made this much at a time


@dataclass(frozen=True, slots=True)
class _Row:
    """One sequence to read, and the continuations (their indices) that end with it."""

    tokens: Tokens
    members: tuple[int, ...]


class Likelihoods:
    """Answers `Continuation` requests, in batches made once.

    Args:
        rows: sequences per batch at most.
        traits: of the models that are going to answer.
    """

    def __init__(self, requests: Sequence[Continuation], rows: int, traits: ModelTraits) -> None:
        self._requests = tuple(requests)
        groups: dict[Tokens, list[int]] = {}
        for index, request in enumerate(self._requests):
            groups.setdefault(request.prefix, []).append(index)
        may_share = attends_everything(traits.config) and not traits.stateful
        shared = {
            prefix: members
            for prefix, members in groups.items()
            if may_share and len({self._requests[index].target[:-1] for index in members}) > 1
        }
        alone = [index for index in range(len(requests)) if self._requests[index].prefix not in shared]
        prefixes = [_Row(prefix, tuple(members)) for prefix, members in shared.items()]
        whole = self._whole_rows(alone)
        widest = max((len(row.members) for row in prefixes), default=1)
        self._row_batches = [
            self._row_batch([whole[place] for place in places], traits)
            for places in batches(whole, rows, lambda row: len(row.tokens))
        ]
        self._prefix_batches = [
            self._prefix_batch([prefixes[place] for place in places], traits)
            for places in batches(prefixes, max(rows // widest, 1), lambda row: len(row.tokens))
        ]

    def run(self, model: CausalModel) -> list[Likelihood]:
        """The likelihood of each request, in their order.

        Raises:
            ModelError: the model's logits are NaN.
        """
        found: dict[int, Likelihood] = {}
        for batch in self._row_batches:
            # A row cannot see the padding after it: no mask is needed, and attention takes its fastest path.
            logits = model.forward(batch.ids, None, cache=None, keep=batch.keep)
            found |= batch.targets.likelihoods(logits)
        for shared in self._prefix_batches:
            found |= shared.targets.likelihoods(_after_prefixes(model, shared))
        return [found[index] for index in range(len(self._requests))]

    def _whole_rows(self, members: list[int]) -> list[_Row]:
        rows: dict[Tokens, list[int]] = {}
        for index in members:
            request = self._requests[index]
            rows.setdefault(request.prefix + request.target[:-1], []).append(index)
        return [_Row(tokens, tuple(found)) for tokens, found in rows.items()]

    def _row_batch(self, rows: list[_Row], traits: ModelTraits) -> _RowBatch:
        ids, _ = right_padded([row.tokens for row in rows], traits.pad_id, traits.device)
        first = min(
            len(row.tokens) - max(len(self._requests[index].target) for index in row.members) for row in rows
        )
        spans = [
            _Span(index, place, len(row.tokens) - len(self._requests[index].target) - first)
            for place, row in enumerate(rows)
            for index in row.members
        ]
        return _RowBatch(ids=ids, keep=ids.shape[1] - first, targets=self._targets(spans, traits))

    def _prefix_batch(self, rows: list[_Row], traits: ModelTraits) -> _PrefixBatch:
        ids, mask = left_padded([row.tokens for row in rows], traits.pad_id, traits.device)
        members = [(place, index) for place, row in enumerate(rows) for index in row.members]
        places = torch.tensor([place for place, _ in members], device=traits.device)
        more, more_mask = right_padded(
            [self._requests[index].target[:-1] for _, index in members], traits.pad_id, traits.device
        )
        spans = [_Span(index, row, 0) for row, (_, index) in enumerate(members)]
        return _PrefixBatch(
            ids=ids,
            mask=mask,
            places=places,
            more=more,
            whole_mask=torch.cat([mask.index_select(0, places), more_mask], dim=1),
            targets=self._targets(spans, traits),
        )

    def _targets(self, spans: Sequence[_Span], traits: ModelTraits) -> _Targets:
        targets = [self._requests[span.index].target for span in spans]
        lengths = [len(target) for target in targets]
        rows = [span.row for span, length in zip(spans, lengths, strict=True) for _ in range(length)]
        columns = [
            span.column + step for span, length in zip(spans, lengths, strict=True) for step in range(length)
        ]
        return _Targets(
            indices=tuple(span.index for span in spans),
            starts=np.cumsum([0, *lengths[:-1]]),
            rows=torch.tensor(rows, device=traits.device),
            columns=torch.tensor(columns, device=traits.device),
            tokens=torch.tensor([token for target in targets for token in target], device=traits.device),
        )


@dataclass(frozen=True, slots=True)
class _Span:
    """The logits at ``(row, column)`` predict request ``index``'s first token, the next column its second."""

    index: int
    row: int
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Targets:
    """Which logits belong to which target token, T of them in all: all are looked up at once.

    ``indices``: the requests; ``starts``: where each one's tokens begin, shape (requests,). ``rows``,
    ``columns`` and ``tokens``: int64, shape (T,).
    """

    indices: tuple[int, ...]
    starts: npt.NDArray[np.int64]
    rows: Tensor
    columns: Tensor
    tokens: Tensor

    def likelihoods(self, logits: Tensor) -> dict[int, Likelihood]:
        """``logits``: (rows, columns, vocabulary), any float dtype; log-probabilities are taken in fp32."""
        values, first_choice = self._look_up(logits)
        totals = np.add.reduceat(values, self.starts)
        if np.isnan(totals).any():
            raise ModelError("the model's logits are NaN")
        greedy = np.logical_and.reduceat(first_choice, self.starts)
        return dict(zip(self.indices, map(Likelihood, totals.tolist(), greedy.tolist()), strict=True))

    def _look_up(self, logits: Tensor) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        values, first_choice = [], []
        step = max(_LOGIT_CHUNK_BYTES // (4 * logits.shape[-1]), 1)
        for start in range(0, len(self.tokens), step):
            part = slice(start, start + step)
            tokens = self.tokens[part]
            picked = logits[self.rows[part], self.columns[part]].float()
            values.append(picked.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0])
            first_choice.append(picked.max(dim=-1).indices == tokens)
        return torch.cat(values).double().cpu().numpy(), torch.cat(first_choice).cpu().numpy()


@dataclass(frozen=True, slots=True, kw_only=True)
class _RowBatch:
    """Whole sequences, ``ids`` int64 (rows, tokens), whose logits count at the last ``keep`` places."""

    ids: Tensor
    keep: int
    targets: _Targets


@dataclass(frozen=True, slots=True, kw_only=True)
class _PrefixBatch:
    """Prefixes (``ids``, ``mask``), and the continuations (``more``) that follow them.

    ``places``: the prefix of each continuation, int64 (continuations,). ``whole_mask``: of prefix and
    continuation.
    """

    ids: Tensor
    mask: Tensor
    places: Tensor
    more: Tensor
    whole_mask: Tensor
    targets: _Targets


def _after_prefixes(model: CausalModel, batch: _PrefixBatch) -> Tensor:
    """Logits that predict each continuation's tokens: (continuations, tokens, vocabulary)."""
    cache = DynamicCache(config=model.traits.config)
    at_prefix = model.forward(batch.ids, batch.mask, cache=cache, keep=1)
    cache.reorder_cache(batch.places)
    after = model.forward(batch.more, batch.whole_mask, cache=cache, keep=batch.more.shape[1])
    return torch.cat([at_prefix.index_select(0, batch.places), after], dim=1)
