"""What a space has to know about the models' files, as pure data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """One model, as its header tells.

    ``dtype``: of most of its elements, as recipes name it. ``model_type``: the config's name of the
    architecture. ``layer_tensors``: names of a layer's tensors after the layer's number, in order.
    ``vocab_size``: as the config gives it; None where it does not.
    """

    num_layers: int
    dtype: str
    model_type: str
    layer_tensors: tuple[str, ...]
    vocab_size: int | None = None
