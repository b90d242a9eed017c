"""One causal language model kept in memory, whose weights are replaced for every candidate."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fitness.causal_model import CausalModel, ModelTraits, empty_model
from fitness.errors import ModelError
from fitness.rewiring import Rewiring
from fitness.weight_names import match_names


class ResidentModel(CausalModel):
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
        model = empty_model(folder, dtype, device, trust_remote_code)
        super().__init__(model, ModelTraits.of(model, folder, device))
        self.dtype = dtype
        self._names = match_names(model, checkpoint_names or _names_in(folder))
        self._tensors = dict(self._names.tensors)
        self._rewiring: Rewiring | None = None
        if rewires:
            self._tensors = {}
            self._names = replace(self._names, tensors={})
            self._rewiring = Rewiring(model, self._names, device=device, dtype=dtype)
        if "past_key_values" not in self.traits.accepts:
            raise ModelError(
                f"{type(model).__name__} keeps a running state instead of keys and values, and may change "
                "its own weights for it: it cannot stay in memory; score it with --on-disk"
            )

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
