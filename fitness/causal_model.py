"""A causal language model of transformers, and what has to be known of it before it has weights."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fitness.errors import ModelError, OutOfMemory
from fitness.model_folder import end_ids

# What transformers' caches are passed as. A model that keeps something of its own reads everything again for
# each token: RWKV's own state mixes the rows of a batch (transformers 5.19).
_CACHES = frozenset({"past_key_values", "cache_params"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTraits:
    """What requests are prepared by: the same for every candidate of a search.

    ``stateful``: the model keeps a running state instead of, or beside, keys and values; padding before a
    prompt would become part of it. ``accepts``: the arguments of its forward pass.
    """

    config: Any
    device: torch.device
    end_ids: frozenset[int]  # the tokens that end an answer
    pad_id: int  # masked everywhere: any real token does
    stateful: bool
    accepts: frozenset[str]

    @classmethod
    def of(cls, model: Any, folder: Path, device: torch.device) -> ModelTraits:
        """Those of a transformers model, with or without storage, built from the config in ``folder``."""
        accepts = frozenset(inspect.signature(model.forward).parameters)
        return cls(
            config=model.config,
            device=device,
            end_ids=end_ids(folder, model.config),
            pad_id=int(model.config.pad_token_id or 0),
            stateful=model._is_stateful or "past_key_values" not in accepts,
            accepts=accepts,
        )


class CausalModel:
    """A transformers model on its device, in evaluation mode. ``forward_s``: seconds in forward passes."""

    def __init__(self, model: Any, traits: ModelTraits) -> None:
        self._model = model
        self.traits = traits
        self.forward_s = 0.0
        head = model.get_output_embeddings()
        if head is not None:
            head.register_forward_pre_hook(_in_one_piece)

    @torch.inference_mode()
    def forward(self, ids: Tensor, mask: Tensor | None, *, cache: Any, keep: int) -> Tensor:
        """One timed forward pass.

        Args:
            ids: int64, (rows, new tokens).
            mask: int64, (rows, cached and new tokens), 1 = real; None where no row sees padding.
            cache: a transformers cache, extended in place, or None.
            keep: logits are wanted at this many last positions.

        Returns:
            Logits, (rows, keep, vocabulary), in the model's dtype.

        Raises:
            OutOfMemory: the device has no room for the batch.
        """
        accepts = self.traits.accepts
        options: dict[str, Any] = {"attention_mask": mask, "use_cache": cache is not None}
        if "past_key_values" in accepts:
            options["past_key_values"] = cache
        if mask is not None and "position_ids" in accepts:
            options["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if "logits_to_keep" in accepts:
            options["logits_to_keep"] = keep
        with self._timed(ids):
            logits: Tensor = self._model(input_ids=ids, **options).logits
        return logits[:, -keep:]

    @torch.inference_mode()
    def generate(self, ids: Tensor, most: int, take: Callable[[Tensor], list[bool]]) -> None:
        """Up to ``most`` tokens after each prompt, greedily, by transformers' own loop: it knows what a model
        keeps between tokens.

        Args:
            ids: int64, (rows, tokens), without padding.
            take: is given each row's next token, int64 (rows,), and says which rows have ended.

        Raises:
            ModelError: the model's logits are NaN.
            OutOfMemory: the device has no room for the batch.
        """
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        # Of the folder's own generation config only the tokens that end an answer count; `take` knows them.
        self._model.generation_config = GenerationConfig(pad_token_id=self.traits.pad_id)
        with self._timed(ids):
            self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=most,
                do_sample=False,
                use_cache=not _CACHES.isdisjoint(self.traits.accepts),
                logits_processor=LogitsProcessorList([_refuse_nan]),
                stopping_criteria=StoppingCriteriaList(
                    [lambda tokens, _: torch.tensor(take(tokens[:, -1]), device=tokens.device)]
                ),
            )

    @contextmanager
    def _timed(self, ids: Tensor) -> Iterator[None]:
        device = self.traits.device
        started = time.perf_counter()
        try:
            yield
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if _is_out_of_memory(error):
                size = f"{ids.shape[0]} rows of {ids.shape[1]} tokens"
                raise OutOfMemory(f"no memory for a batch of {size}: lower the batch size") from error
            raise
        finally:
            self.forward_s += time.perf_counter() - started


def empty_model(folder: Path, dtype: torch.dtype, device: torch.device, trust_remote_code: bool) -> Any:
    """The transformers model that the config in ``folder`` describes, its weights undefined.

    ``device``: "meta" gives it no storage at all.

    Raises:
        ModelError: the folder holds no causal language model of transformers.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        with no_init_weights(), device:
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder}: not a causal language model that transformers can build: {error}"
        ) from error
    model.tie_weights()
    model.requires_grad_(False)
    return model.eval()


def _in_one_piece(_: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What the head is given is a slice, of the last positions. Of a slice torch makes a batched product, and
    for it a copy of the head's weights for every row: gigabytes, and two fifths of the time.
    """
    first, *rest = given
    return (first.contiguous(), *rest)


def _refuse_nan(_: Tensor, logits: Tensor) -> Tensor:
    if torch.isnan(logits).any():
        raise ModelError("the model's logits are NaN")
    return logits


def _is_out_of_memory(error: Exception) -> bool:
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
