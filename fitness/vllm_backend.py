"""The backend that scores a resident vLLM engine on lm-eval tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fitness.backend import Split
from fitness.encoding import Encoder
from fitness.errors import ModelError
from fitness.generation import StopWords
from fitness.model_folder import context_tokens, end_ids, load_config, load_tokenizer
from fitness.requests import longest_tokens
from fitness.results import Report
from fitness.suite import SuiteSpec
from fitness.suite_tasks import SuiteTasks, generations, responses, windows
from fitness.vllm_check import check_reload
from fitness.vllm_engine import VllmEngine, checkpoint_shapes
from fitness.vllm_memory import Need, check_gpu, cpu_cache_bytes
from fitness.vllm_settings import VllmSettings
from fitness.vllm_support import WAY_OUT, quantisation_refusal

# vLLM takes the last token of a scored text as part of the prompt, and answers with one more.
_ASIDE_TOKENS = 2


class VllmBackend:
    """A `fitness.backend.Backend`: one resident engine, the suite's tasks built and tokenised once.

    Args:
        folder: a model folder: config, tokenizer, and the safetensors files that the engine starts from.
        dtype: of the weights, as a checkpoint names it ("bfloat16").
        memory_bytes: without a GPU, what the engine and its merges may take; None takes what the suite needs.
        merge_bytes: what a merge holds on the device, beside the weights that it hands over.
        pads: candidates may have fewer layers than the folder's model; the rest are identities then.

    Texts that fill the context are cut two tokens shorter than with transformers.

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
        tokenizer = load_tokenizer(folder, trust_remote_code)
        context = context_tokens(config, tokenizer)
        limit = min(context, settings.max_model_len or context)
        self._tasks = SuiteTasks(suite, Encoder(tokenizer, limit - _ASIDE_TOKENS))
        asked = self._tasks.all_requests()
        longest = max(map(longest_tokens, asked))
        self._stopping = StopWords(tokenizer, (request.stops for request in generations(asked)))
        self._settings = settings
        need = Need.of(
            checkpoint_shapes(folder),
            config.to_dict(),
            settings,
            weight_bytes=getattr(torch, dtype).itemsize,
            longest_tokens=longest,
            merge_bytes=merge_bytes,
        )
        self._engine = VllmEngine(
            folder,
            settings,
            dtype=dtype,
            longest_tokens=longest,
            end_ids=end_ids(folder, config),
            pads=pads,
            cache_bytes=_cache_bytes(need, settings, memory_bytes),
            trust_remote_code=trust_remote_code,
        )
        check_reload(self._engine, folder, architecture=_architecture(config), vocab_size=len(tokenizer))
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
        return self._tasks.digest()

    def tensors(self) -> Mapping[str, Tensor]:
        """Nothing: vLLM keeps weights in a form of its own and takes new tensors."""
        return {}

    def load(self, stream: Iterable[tuple[str, Tensor]]) -> None:
        """See `fitness.backend.Backend.load`. After an error, nothing is scored before the next load."""
        self._loaded = False
        self._engine.load(stream)
        self._loaded = True

    def score(self, split: Split) -> Report:
        """See `fitness.backend.Backend.score`."""
        if not self._loaded:
            raise ModelError("no weights are loaded")
        requests = self._tasks.requests(split)
        asked = generations(requests)
        answers = self._engine.generate(asked, [self._stopping.ending(request.stops) for request in asked])
        texts = [
            self._stopping.cut(tokens, request.stops) for request, tokens in zip(asked, answers, strict=True)
        ]
        likelihoods = self._engine.likelihoods(windows(requests))
        return self._tasks.report(split, responses(requests, texts, likelihoods))


def _cache_bytes(need: Need, settings: VllmSettings, memory_bytes: int | None) -> int | None:
    """What keys and values may take; None leaves it to vLLM, which fills its share of a GPU."""
    if not torch.cuda.is_available():
        return cpu_cache_bytes(need, settings, memory_bytes)
    check_gpu(need, settings, torch.cuda.get_device_properties(0).total_memory)
    return None


def _architecture(config: Any) -> str:
    """What messages call the model's kind."""
    return ", ".join(getattr(config, "architectures", None) or [str(config.model_type)])
