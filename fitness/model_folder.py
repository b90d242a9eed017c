"""What a model folder says beside its weights: config, tokenizer, context length, end of an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fitness.errors import ModelError

_DEFAULT_MAX_TOKENS = 2048  # lm-eval's, for a model that states no context length
_NO_LIMIT = 10**9  # tokenizers state "no limit" as a far larger number


def load_config(folder: Path, trust_remote_code: bool) -> Any:
    """The transformers config. Raises `ModelError`."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: no config that transformers can read: {error}") from error


def load_tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    """The transformers tokenizer. Raises `ModelError`."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: no tokenizer that transformers can load: {error}") from error


def context_tokens(config: Any, tokenizer: Any) -> int:
    """The longest sequence the model takes, found as lm-eval finds it, so that scores agree with it."""
    config = getattr(config, "text_config", None) or config
    for key in ("n_positions", "max_position_embeddings", "n_ctx"):
        if (value := getattr(config, key, None)) is not None:
            return int(value)
    length = tokenizer.model_max_length
    return int(length) if length and length < _NO_LIMIT else _DEFAULT_MAX_TOKENS


def end_ids(folder: Path, config: Any) -> frozenset[int]:
    """The tokens that end an answer: the generation config's, as in ``model.generate``."""
    from transformers import GenerationConfig

    if (folder / "generation_config.json").exists():
        generation = GenerationConfig.from_pretrained(folder)
    else:
        generation = GenerationConfig.from_model_config(config)
    ends = generation.eos_token_id
    return frozenset() if ends is None else frozenset([ends] if isinstance(ends, int) else ends)
