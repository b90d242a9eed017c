"""Scoring with weights of 8 or 4 bits, by bitsandbytes. Light to import."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import torch

Bits: TypeAlias = Literal[8, 4]


def is_installed() -> bool:
    """Whether the package that does it is there."""
    return importlib.util.find_spec("bitsandbytes") is not None


def quantised(bits: Bits, dtype: torch.dtype) -> Any:
    """What transformers has to be told: LLM.int8() (arXiv 2208.07339), or 4-bit NormalFloat, multiplied in
    ``dtype`` (arXiv 2305.14314).

    Only linear layers are quantised: not embeddings, the head, or fused experts.
    """
    from transformers import BitsAndBytesConfig

    # It remarks on every product of 8-bit weights and bfloat16, which is cast.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
