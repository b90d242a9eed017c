"""The backend that scores a resident transformers model on lm-eval tasks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fitness.backend import Split
from fitness.errors import ModelError
from fitness.held_memory import held_bytes
from fitness.resident import ResidentModel
from fitness.results import Report
from fitness.suite import SuiteSpec
from fitness.suite_runner import SuiteRunner, free_bytes


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
        self._suite = SuiteRunner(
            folder,
            suite,
            self._model.traits,
            dtype=self._model.dtype,
            batch_size=batch_size,
            memory_bytes=free_bytes(self._model.traits.device) if memory_bytes is None else memory_bytes,
            most_layers=most_layers,
            trust_remote_code=trust_remote_code,
        )
        self._loaded = False

    @property
    def forward_s(self) -> float:
        """Seconds spent in the model's forward passes so far."""
        return self._model.forward_s

    @property
    def batch_size(self) -> int:
        """Rows per forward pass."""
        return self._suite.batch_size

    @property
    def suite_digest(self) -> str:
        """A digest of every item and of the tokens that the model is asked, on both splits."""
        return self._suite.tasks.digest()

    def tensors(self) -> Mapping[str, Tensor]:
        """The resident storage by checkpoint name, tied weights once."""
        return self._model.tensors()

    def held_bytes(self) -> int:
        """See `fitness.backend.Backend.held_bytes`."""
        return held_bytes(self._model.traits.device.type)

    def load(self, stream: Iterable[tuple[str, Tensor]]) -> None:
        """See `fitness.backend.Backend.load`. After an error, nothing is scored before the next load."""
        self._loaded = False
        self._model.load(stream)
        self._loaded = True

    def score(self, split: Split) -> Report:
        """See `fitness.backend.Backend.score`."""
        if not self._loaded:
            raise ModelError("no weights are loaded")
        return self._suite.score(self._model, split)
