"""Which models a resident engine cannot be given new weights for, as far as their configs tell. Light."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WAY_OUT = "score it with --on-disk, or without --vllm"
_QUANTISED = ("quantization_config", "compression_config")


def quantisation(config: Mapping[str, Any]) -> str | None:
    """The format in which a ``config.json`` says that weights are quantised; None if they are not."""
    for part in (config, config.get("text_config") or {}):
        for key in _QUANTISED:
            if entry := part.get(key):
                return str(entry.get("quant_method") or key) if isinstance(entry, Mapping) else key
    return None


def quantisation_refusal(config: Mapping[str, Any]) -> str | None:
    """Why vLLM cannot take merges of such a model, or None."""
    if (name := quantisation(config)) is None:
        return None
    return f"its weights are quantised ({name}): vLLM packs them once and cannot be given others"
