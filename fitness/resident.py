"""One causal language model kept in memory, whose weights are replaced for every candidate."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fitness.errors import ModelError, OutOfMemory
from fitness.model_folder import end_ids
from fitness.rewiring import Rewiring
from fitness.weight_names import match_names


class ResidentModel:
    """A model built from a folder's config; its weights are undefined until the first `load`.

    Args:
        folder: a model folder with ``config.json``.
        dtype: of all weights.
        checkpoint_names: the names that streams will bring; None takes those of the folder's safetensors
            files, or the model's own if it has none.
        rewires: streams may bring any number of layers, and their tensors become the model's own.
        trust_remote_code: run the model code that the folder names.

    Raises:
        ModelError: the folder holds no causal language model of transformers, one whose tensors in memory
            are not those of its checkpoint, or one that cannot be rewired.
    """

    def __init__(
        self,
        folder: Path,
        *,
        dtype: torch.dtype,
        device: torch.device,
        checkpoint_names: Collection[str] | None = None,
        rewires: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.forward_s = 0.0
        self._model = _build(folder, dtype, device, trust_remote_code)
        self.config = self._model.config
        self._names = match_names(self._model, checkpoint_names or _names_in(folder))
        self._tensors = dict(self._names.tensors)
        self._rewiring: Rewiring | None = None
        if rewires:
            self._tensors = {}
            self._names = replace(self._names, tensors={})
            self._rewiring = Rewiring(self._model, self._names, device=device, dtype=dtype)
        self._accepted = set(inspect.signature(self._model.forward).parameters)
        if "past_key_values" not in self._accepted:
            raise ModelError(
                f"{type(self._model).__name__} keeps no key-value cache; it cannot be scored in memory"
            )
        self.end_ids = end_ids(folder, self.config)
        self.pad_id = int(self.config.pad_token_id or 0)  # masked everywhere: any real token does

    def tensors(self) -> Mapping[str, Tensor]:
        """The weights by checkpoint name, tied ones once; none where the model is rewired."""
        return self._tensors

    @torch.no_grad()
    def load(self, stream: Iterable[tuple[str, Tensor]]) -> None:
        """Takes every weight from ``stream``; one that is the resident tensor itself is not copied, and a
        rewired model copies none.

        Raises:
            ModelError: names are missing or unknown, shapes differ, or two tied tensors are not equal.
        """
        if self._rewiring is not None:
            self._rewiring.load(stream)
            return
        seen: set[str] = set()
        twins: list[tuple[str, Tensor]] = []
        problems: list[str] = []
        for name, tensor in stream:
            resident = self._tensors.get(name)
            if resident is not None:
                seen.add(name)
                problems += _put(name, tensor, resident)
            elif name in self._names.twins:
                twins.append((name, tensor))
            elif not self._names.is_ignored(name):
                problems.append(f"{name}: the model has no such tensor")
        problems += [f"{name}: missing from the stream" for name in self._tensors if name not in seen]
        problems += self._unequal_twins(twins)
        if problems:
            raise ModelError("weights do not fit the resident model:\n" + "\n".join(problems))

    def _unequal_twins(self, twins: list[tuple[str, Tensor]]) -> list[str]:
        return [
            f"{name}: differs from {self._names.twins[name]}, but the config ties the two"
            for name, tensor in twins
            if not _same(tensor, self._tensors[self._names.twins[name]])
        ]

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
        options: dict[str, Any] = {
            "attention_mask": mask,
            "past_key_values": cache,
            "use_cache": cache is not None,
        }
        if mask is not None and "position_ids" in self._accepted:
            options["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if "logits_to_keep" in self._accepted:
            options["logits_to_keep"] = keep
        started = time.perf_counter()
        try:
            logits: Tensor = self._model(input_ids=ids, **options).logits
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if _is_out_of_memory(error):
                size = f"{ids.shape[0]} rows of {ids.shape[1]} tokens"
                raise OutOfMemory(f"no memory for a batch of {size}: lower the batch size") from error
            raise
        finally:
            self.forward_s += time.perf_counter() - started
        return logits[:, -keep:]


def _build(folder: Path, dtype: torch.dtype, device: torch.device, trust_remote_code: bool) -> Any:
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


def _names_in(folder: Path) -> Collection[str] | None:
    """Tensor names of the folder's safetensors files; None if it has none."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    if index.exists():
        return list(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    single = folder / "model.safetensors"
    if not single.exists():
        return None
    with safe_open(single, framework="pt") as file:
        return list(file.keys())


def _put(name: str, tensor: Tensor, resident: Tensor) -> list[str]:
    if tensor.shape != resident.shape:
        return [f"{name}: shape {tuple(tensor.shape)}, expected {tuple(resident.shape)}"]
    if tensor.data_ptr() != resident.data_ptr():
        resident.copy_(tensor)
    return []


def _same(tensor: Tensor, resident: Tensor) -> bool:
    return tensor.shape == resident.shape and torch.equal(tensor.to(resident), resident)


def _is_out_of_memory(error: Exception) -> bool:
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
