"""A suite's tasks, built and tokenised once, that any number of transformers models can be scored on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from fitness.backend import Split
from fitness.batching import ModelFacts, auto_batch_size
from fitness.causal_model import CausalModel, ModelTraits
from fitness.encoding import Encoder
from fitness.errors import ModelError, ScoringError
from fitness.generation import Generator
from fitness.likelihood import Likelihoods
from fitness.model_folder import context_tokens, load_tokenizer
from fitness.requests import Request, Response, longest_tokens, scored_tokens
from fitness.results import Report
from fitness.suite import SuiteSpec
from fitness.suite_tasks import SuiteTasks, generations, responses, windows


class SuiteRunner:
    """Asks models of the same traits what the suite's tasks ask, in batches fixed at the start.

    Args:
        folder: whose tokenizer the models have.
        traits: of the models.
        dtype: of their weights and of what they remember of a text.
        batch_size: rows per forward pass; None chooses what fits ``memory_bytes``. Scores depend on it in the
            last digits: choose once, then give the same to every worker of a search.
        memory_bytes: what batches may take.
        most_layers: of the deepest model; None: all are as deep as the config says.

    Raises:
        SuiteError: tasks cannot be built for such a model.
        ModelError: the folder has no tokenizer.
    """

    def __init__(
        self,
        folder: Path,
        suite: SuiteSpec,
        traits: ModelTraits,
        *,
        dtype: torch.dtype,
        batch_size: int | None,
        memory_bytes: int,
        most_layers: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        tokenizer = load_tokenizer(folder, trust_remote_code)
        self.tasks = SuiteTasks(suite, Encoder(tokenizer, context_tokens(traits.config, tokenizer)))
        self._traits = traits
        self.batch_size = batch_size or self._fitting_rows(dtype, memory_bytes, most_layers)
        self._splits = {
            split: _Split(tokenizer, self.tasks.requests(split), self.batch_size, traits)
            for split in self.tasks.splits
        }

    def score(self, model: CausalModel, split: Split) -> Report:
        """What the tasks make of the model's answers. Raises `ScoringError` and `OutOfMemory`."""
        task, metric = self.tasks.first_metric(split)
        try:
            answers = self._splits[split].ask(model)
        except ModelError as error:
            raise ScoringError(task, metric, str(error)) from error
        return self.tasks.report(split, answers)

    def _fitting_rows(self, dtype: torch.dtype, memory_bytes: int, most_layers: int | None) -> int:
        requests = self.tasks.all_requests()
        facts = ModelFacts.from_config(self._traits.config.to_dict(), weight_bytes=dtype.itemsize)
        return auto_batch_size(
            replace(facts, layers=most_layers or facts.layers),
            memory_bytes,
            longest_tokens=max(map(longest_tokens, requests)),
            scored_tokens=max(map(scored_tokens, requests)),
        )


class _Split:
    """All requests of one split."""

    def __init__(self, tokenizer: object, requests: list[Request], rows: int, traits: ModelTraits) -> None:
        self._requests = requests
        self._generator = Generator(tokenizer, generations(requests), rows, traits)
        self._likelihoods = Likelihoods(windows(requests), rows, traits)

    def ask(self, model: CausalModel) -> list[Response]:
        """The response to each request, in order."""
        texts = self._generator.run(model)
        return responses(self._requests, texts, self._likelihoods.run(model))


def free_bytes(device: torch.device) -> int:
    """Memory of the device that nobody uses now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)
