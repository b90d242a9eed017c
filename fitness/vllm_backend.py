"""The backend that scores a resident vLLM engine on lm-eval tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fitness.backend import Split
from fitness.errors import ModelError
from fitness.model_folder import load_config
from fitness.results import Report
from fitness.suite import SuiteSpec
from fitness.vllm_check import check_reload
from fitness.vllm_engine import VllmEngine, checkpoint_shapes
from fitness.vllm_memory import Need, cache_bytes
from fitness.vllm_settings import VllmSettings
from fitness.vllm_suite import VllmSuite, ask
from fitness.vllm_support import WAY_OUT, quantisation_refusal


class VllmBackend:
    """A `fitness.backend.Backend`: one resident engine, the suite's tasks built and tokenised once.

    Args:
        folder: a model folder: config, tokenizer, and the safetensors files that the engine starts from.
        dtype: of the weights, as a checkpoint names it ("bfloat16").
        memory_bytes: what the engine and its merges may take; None: the whole GPU, or what the suite needs.
        merge_bytes: what a merge holds on the device, beside the weights that it hands over.
        pads: candidates may have fewer layers than the folder's model; the rest are identities then.

    Raises:
        ModelError: the engine cannot be built, does not fit, or does not take weights as it should.
        SuiteError: tasks cannot be built for the model.
    """

    def __init__(
        self,
        folder: Path,
        suite: SuiteSpec,
        settings: VllmSettings,
        *,
        dtype: str,
        memory_bytes: int | None = None,
        merge_bytes: int = 0,
        pads: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        dtype = settings.dtype or dtype
        config = load_config(folder, trust_remote_code)
        if refusal := quantisation_refusal(config.to_dict()):
            raise ModelError(f"{folder}: {refusal}; {WAY_OUT}")
        self._suite = VllmSuite(folder, suite, settings, trust_remote_code=trust_remote_code)
        self._settings = settings
        need = Need.of(
            checkpoint_shapes(folder),
            config.to_dict(),
            settings,
            weight_bytes=getattr(torch, dtype).itemsize,
            longest_tokens=self._suite.longest_tokens,
            merge_bytes=merge_bytes,
        )
        self._engine = VllmEngine(
            folder,
            settings,
            dtype=dtype,
            longest_tokens=self._suite.longest_tokens,
            end_ids=self._suite.end_ids,
            pads=pads,
            cache_bytes=cache_bytes(need, settings, memory_bytes),
            trust_remote_code=trust_remote_code,
        )
        check_reload(
            self._engine,
            folder,
            architecture=_architecture(config),
            vocab_size=self._suite.vocab_size,
            longest_tokens=self._suite.longest_tokens,
        )
        self._loaded = False

    @property
    def forward_s(self) -> float:
        """Seconds in which the engine was answering so far."""
        return self._engine.answer_s

    @property
    def batch_size(self) -> int:
        """Sequences that run at the same time at most."""
        return self._settings.max_num_seqs

    @property
    def suite_digest(self) -> str:
        """A digest of every item and of the tokens that the model is asked, on both splits."""
        return self._suite.digest

    def tensors(self) -> Mapping[str, Tensor]:
        """Nothing: vLLM keeps weights in a form of its own and takes new tensors."""
        return {}

    def held_bytes(self) -> int:
        """See `fitness.backend.Backend.held_bytes`."""
        return self._engine.held_bytes()

    def load(self, stream: Iterable[tuple[str, Tensor]]) -> None:
        """See `fitness.backend.Backend.load`. After an error, nothing is scored before the next load."""
        self._loaded = False
        self._engine.load(stream)
        self._loaded = True

    def score(self, split: Split) -> Report:
        """See `fitness.backend.Backend.score`."""
        if not self._loaded:
            raise ModelError("no weights are loaded")
        return self._suite.report(split, ask(self._engine, self._suite.questions(split)))


def _architecture(config: Any) -> str:
    """What messages call the model's kind."""
    return ", ".join(getattr(config, "architectures", None) or [str(config.model_type)])
