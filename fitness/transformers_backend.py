"""The backend that scores a resident transformers model on lm-eval tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fitness.backend import Split
from fitness.batching import ModelFacts, auto_batch_size
from fitness.encoding import Encoder
from fitness.errors import ModelError, ScoringError
from fitness.generation import Generator
from fitness.likelihood import Likelihoods
from fitness.requests import (
    Continuation,
    Generation,
    Request,
    Response,
    Rolling,
    longest_tokens,
    scored_tokens,
)
from fitness.resident import ResidentModel, context_tokens
from fitness.results import Report
from fitness.suite import SuiteSpec
from fitness.tasks import BuiltTask, build_suite


class TransformersBackend:
    """A `fitness.backend.Backend`: one resident model, the suite's tasks built and tokenised once.

    Args:
        folder: a model folder: config, tokenizer, and (for the names only) safetensors files.
        dtype: of the weights, as a checkpoint names it ("bfloat16").
        device: where the model lives ("cpu", "cuda:0").
        batch_size: rows per forward pass; None chooses what fits ``memory_bytes``. Scores depend on it in the
            last digits: choose once, then give the same to every worker of a search.
        memory_bytes: what batches may take; None takes the memory that is free now.
        most_layers: None: every candidate is as deep as the folder's model and is written into its storage. A
            number: candidates have up to so many layers, their tensors are kept as they come, and `tensors`
            is empty.
        checkpoint_names, trust_remote_code: as in `ResidentModel`.

    Raises:
        ModelError: the model cannot be built.
        SuiteError: tasks cannot be built for it.
    """

    def __init__(
        self,
        folder: Path,
        suite: SuiteSpec,
        *,
        dtype: str,
        device: str = "cpu",
        batch_size: int | None = None,
        memory_bytes: int | None = None,
        most_layers: int | None = None,
        checkpoint_names: Collection[str] | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self._model = ResidentModel(
            folder,
            dtype=getattr(torch, dtype),
            device=torch.device(device),
            checkpoint_names=checkpoint_names,
            rewires=most_layers is not None,
            trust_remote_code=trust_remote_code,
        )
        tokenizer = _tokenizer(folder, trust_remote_code)
        encoder = Encoder(tokenizer, context_tokens(self._model.config, tokenizer))
        self._tasks = build_suite(suite, encoder)
        self._batch_size = batch_size or self._fitting_rows(memory_bytes, most_layers)
        self._runners = {
            split: _Runner(tokenizer, tasks, self._batch_size, self._model)
            for split, tasks in self._tasks.items()
        }
        self._loaded = False

    @property
    def forward_s(self) -> float:
        """Seconds spent in the model's forward passes so far."""
        return self._model.forward_s

    @property
    def batch_size(self) -> int:
        """Rows per forward pass."""
        return self._batch_size

    @property
    def suite_digest(self) -> str:
        """A digest of every item and of the tokens that the model is asked, on both splits."""
        digest = hashlib.blake2b(digest_size=16)
        for split, tasks in self._tasks.items():
            for task in tasks:
                asked = [
                    (instance.doc, request)
                    for instance, request in zip(task.instances, task.requests, strict=True)
                ]
                digest.update(repr((split, task.name, task.item_ids, asked)).encode())
        return digest.hexdigest()

    def tensors(self) -> Mapping[str, Tensor]:
        """The resident storage by checkpoint name, tied weights once."""
        return self._model.tensors()

    def load(self, stream: Iterable[tuple[str, Tensor]]) -> None:
        """See `fitness.backend.Backend.load`. After an error, nothing is scored before the next load."""
        self._loaded = False
        self._model.load(stream)
        self._loaded = True

    def score(self, split: Split) -> Report:
        """See `fitness.backend.Backend.score`."""
        if not self._loaded:
            raise ModelError("no weights are loaded")
        if split not in self._tasks:
            raise ValueError("this suite holds out no items: set its holdout")
        responses = self._respond(split)
        results = []
        for task in self._tasks[split]:
            own, responses = responses[: len(task.requests)], responses[len(task.requests) :]
            results += task.results(own)
        return Report(tasks=tuple(results))

    def _respond(self, split: Split) -> list[Response]:
        try:
            return self._runners[split].run()
        except ModelError as error:
            first = self._tasks[split][0]
            raise ScoringError(first.name, first.specs[0].metric, str(error)) from error

    def _fitting_rows(self, memory_bytes: int | None, most_layers: int | None) -> int:
        requests = [request for tasks in self._tasks.values() for task in tasks for request in task.requests]
        facts = ModelFacts.from_config(self._model.config.to_dict(), weight_bytes=self._model.dtype.itemsize)
        facts = replace(facts, layers=most_layers or facts.layers)
        return auto_batch_size(
            facts,
            _free_bytes(self._model.device) if memory_bytes is None else memory_bytes,
            longest_tokens=max(map(longest_tokens, requests)),
            scored_tokens=max(map(scored_tokens, requests)),
        )


class _Runner:
    """All requests of one split, across its tasks, so that batches are full."""

    def __init__(
        self, tokenizer: object, tasks: Sequence[BuiltTask], rows: int, model: ResidentModel
    ) -> None:
        self._model = model
        self._requests: list[Request] = [request for task in tasks for request in task.requests]
        self._generator = Generator(
            tokenizer, [request for request in self._requests if isinstance(request, Generation)], rows, model
        )
        self._likelihoods = Likelihoods(
            [window for request in self._requests for window in _windows(request)],
            rows,
            model,
        )

    def run(self) -> list[Response]:
        """The response to each request, in order."""
        texts = iter(self._generator.run(self._model))
        likelihoods = iter(self._likelihoods.run(self._model))
        responses: list[Response] = []
        for request in self._requests:
            if isinstance(request, Generation):
                responses.append(next(texts))
            elif isinstance(request, Continuation):
                responses.append(next(likelihoods))
            else:
                responses.append(sum(next(likelihoods).log_probability for _ in request.windows))
        return responses


def _windows(request: Request) -> tuple[Continuation, ...]:
    if isinstance(request, Rolling):
        return request.windows
    return (request,) if isinstance(request, Continuation) else ()


def _tokenizer(folder: Path, trust_remote_code: bool) -> object:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: no tokenizer that transformers can load: {error}") from error


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)
