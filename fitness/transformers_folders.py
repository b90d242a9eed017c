"""Scores models from their folders with transformers: for what cannot stay in memory, or is quantised."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fitness.backend import Split
from fitness.causal_model import CausalModel, ModelTraits, empty_model
from fitness.errors import ModelError
from fitness.quantisation import Bits, quantised
from fitness.results import Report
from fitness.suite import SuiteSpec
from fitness.suite_runner import SuiteRunner, free_bytes


class TransformersFolders:
    """A `fitness.backend.FolderScorer`: the suite's tasks are built and tokenised once, and each model is in
    memory only while it is scored.

    Args:
        folder: with the config and the tokenizer that all models have; weights are not needed.
        dtype: of the weights, as a checkpoint names it ("bfloat16").
        bits: the models' linear layers are quantised to so many; None leaves them as they are.
        device, batch_size, memory_bytes, most_layers, trust_remote_code: as in `TransformersBackend`, but
            ``memory_bytes`` is for the model, too.

    Raises:
        ModelError: the folder holds no causal language model of transformers.
        SuiteError: tasks cannot be built for it.
    """

    def __init__(
        self,
        folder: Path,
        suite: SuiteSpec,
        *,
        dtype: str,
        device: str = "cpu",
        bits: Bits | None = None,
        batch_size: int | None = None,
        memory_bytes: int | None = None,
        most_layers: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self._dtype = getattr(torch, dtype)
        self._device = torch.device(device)
        self._bits = bits
        self._trust_remote_code = trust_remote_code
        model = empty_model(folder, self._dtype, torch.device("meta"), trust_remote_code)
        memory_bytes = free_bytes(self._device) if memory_bytes is None else memory_bytes
        self._suite = SuiteRunner(
            folder,
            suite,
            ModelTraits.of(model, folder, self._device),
            dtype=self._dtype,
            batch_size=batch_size,
            memory_bytes=max(memory_bytes - _weight_bytes(model), 0),
            most_layers=most_layers,
            trust_remote_code=trust_remote_code,
        )
        self.forward_s = 0.0

    @property
    def batch_size(self) -> int:
        """Rows per forward pass."""
        return self._suite.batch_size

    @property
    def suite_digest(self) -> str:
        """A digest of every item and of the tokens that the model is asked, on both splits."""
        return self._suite.tasks.digest()

    def score(self, folder: Path, split: Split) -> Report:
        """See `fitness.backend.FolderScorer.score`."""
        model = self._load(folder)
        try:
            return self._suite.score(model, split)
        finally:
            self.forward_s += model.forward_s
            del model
            self._release()

    def _load(self, folder: Path) -> CausalModel:
        model = _load(folder, self._dtype, self._device, self._bits, self._trust_remote_code)
        return CausalModel(model, ModelTraits.of(model, folder, self._device))

    def _release(self) -> None:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _load(
    folder: Path, dtype: torch.dtype, device: torch.device, bits: Bits | None, trust_remote_code: bool
) -> Any:
    """Raises `ModelError`, also where weights are missing, which transformers would make up."""
    from transformers import AutoModelForCausalLM

    options = {} if bits is None else {"quantization_config": quantised(bits, dtype)}
    try:
        with _no_progress_bars():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                device_map={"": device},
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # of any kind: torn files, unknown settings, no memory
        raise ModelError(f"transformers cannot load {_what(folder, bits)}: {error}") from error
    bad = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if bad:
        raise ModelError(f"{folder}: weights are missing or have another shape: {', '.join(bad[:5])}")
    model.requires_grad_(False)
    model.eval()
    if bits is not None:
        _try(model, bits, device)
    return model


def _try(model: Any, bits: Bits, device: torch.device) -> None:
    """Some models use their weights in ways that quantised ones do not know. Raises `ModelError`."""
    try:
        with torch.inference_mode():
            model(input_ids=torch.tensor([[0, 0]], device=device))
    except Exception as error:  # of any kind: it comes from the depths of a library
        raise ModelError(
            f"{type(model).__name__} does not run with {bits}-bit weights; leave --load-in-{bits}bit out "
            f"({type(error).__name__}: {error})"
        ) from error


def _what(folder: Path, bits: Bits | None) -> str:
    return str(folder) if bits is None else f"{folder} with {bits}-bit weights"


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _weight_bytes(model: Any) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
