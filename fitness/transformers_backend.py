"""The backend that scores a resident transformers model on lm-eval tasks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
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
from fitness.model_folder import context_tokens, load_tokenizer
from fitness.requests import Request, Response, longest_tokens, scored_tokens
from fitness.resident import ResidentModel
from fitness.results import Report
from fitness.suite import SuiteSpec
from fitness.suite_tasks import SuiteTasks, generations, responses, windows


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
        tokenizer = load_tokenizer(folder, trust_remote_code)
        encoder = Encoder(tokenizer, context_tokens(self._model.config, tokenizer))
        self._tasks = SuiteTasks(suite, encoder)
        self._batch_size = batch_size or self._fitting_rows(memory_bytes, most_layers)
        self._runners = {
            split: _Runner(tokenizer, self._tasks.requests(split), self._batch_size, self._model)
            for split in self._tasks.splits
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
        return self._tasks.digest()

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
        return self._tasks.report(split, self._respond(split))

    def _respond(self, split: Split) -> list[Response]:
        task, metric = self._tasks.first_metric(split)
        try:
            return self._runners[split].run()
        except ModelError as error:
            raise ScoringError(task, metric, str(error)) from error

    def _fitting_rows(self, memory_bytes: int | None, most_layers: int | None) -> int:
        requests = self._tasks.all_requests()
        facts = ModelFacts.from_config(self._model.config.to_dict(), weight_bytes=self._model.dtype.itemsize)
        facts = replace(facts, layers=most_layers or facts.layers)
        return auto_batch_size(
            facts,
            _free_bytes(self._model.device) if memory_bytes is None else memory_bytes,
            longest_tokens=max(map(longest_tokens, requests)),
            scored_tokens=max(map(scored_tokens, requests)),
        )


class _Runner:
    """All requests of one split, in batches fixed at the start."""

    def __init__(self, tokenizer: object, requests: list[Request], rows: int, model: ResidentModel) -> None:
        self._model = model
        self._requests = requests
        self._generator = Generator(tokenizer, generations(requests), rows, model)
        self._likelihoods = Likelihoods(windows(requests), rows, model)

    def run(self) -> list[Response]:
        """The response to each request, in order."""
        texts = self._generator.run(self._model)
        return responses(self._requests, texts, self._likelihoods.run(self._model))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)
