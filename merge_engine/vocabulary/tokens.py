"""The tokens of a model: what its tokenizer files say, and how many rows its embeddings have."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_engine.checkpoint_header import CheckpointHeader, TensorInfo
from merge_engine.config_layers import shown
from merge_engine.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SLOW_FILES = (  # other forms of what is in tokenizer.json
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model",
)  # fmt: skip
_MOST_TOKENS = 2**24  # some hundred times what the largest models have
_OTHER_ROWS = re.compile(r"(^|\.)\d+\.|wpe|position|token_type|segment")  # layers, and tables of other things


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The numbers of a tokenizer's tokens. ``added``: those matched before the text is split into words."""

    ids: Mapping[str, int]
    added: frozenset[str]

    @property
    def size(self) -> int:
        """One more than the largest number."""
        return 1 + max(self.ids.values(), default=-1)


def read_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of a model folder. Raises `CheckpointError`; slow-only tokenizers are not read."""
    file = folder / TOKENIZER_FILE
    if not file.is_file():
        raise CheckpointError(
            f"{folder}: no {TOKENIZER_FILE} (no tokenizer, or a slow one only); load it once with "
            "AutoTokenizer.from_pretrained(...) and save_pretrained() it there, which writes the file"
        )
    data = json_of(file)
    try:
        ids = dict(model_ids(data["model"]))
        added = {entry["content"]: int(entry["id"]) for entry in data.get("added_tokens") or ()}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: no tokenizer that can be read: {error!r}") from error
    for number, entry in _later_added(folder).items():
        added.setdefault(entry["content"], number)
    wrong = next((token for token, number in (ids | added).items() if not 0 <= number < _MOST_TOKENS), None)
    if wrong is not None:
        raise CheckpointError(f"{file}: token {wrong!r} has a number outside of 0 to {_MOST_TOKENS - 1}")
    return Vocabulary(ids=ids | added, added=frozenset(added))


def vocabulary_files(folder: Path) -> dict[str, bytes]:
    """What fixes a folder's vocabulary: tokenizer.json, or where there is none the slow tokenizer's files."""
    names = (TOKENIZER_FILE,) if (folder / TOKENIZER_FILE).is_file() else SLOW_FILES
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def model_ids(model: Mapping[str, Any]) -> Mapping[str, int]:
    """The tokens of the ``model`` part of a tokenizer.json: BPE, WordPiece and WordLevel, or Unigram."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        return {piece: number for number, (piece, _) in enumerate(vocabulary)}
    return {str(token): int(number) for token, number in vocabulary.items()}


def _later_added(folder: Path) -> dict[int, dict[str, Any]]:
    """Tokens that only tokenizer_config.json knows, as older versions of transformers left them."""
    try:
        entries = json_of(folder / CONFIG_FILE).get("added_tokens_decoder") or {}
        return {int(number): entry for number, entry in entries.items() if "content" in entry}
    except (CheckpointError, ValueError, TypeError, AttributeError):
        return {}


def json_of(file: Path) -> dict[str, Any]:
    """The JSON object in ``file``. Raises `CheckpointError`."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file}: no JSON object")
    return data


def vocabulary_rows(header: CheckpointHeader) -> int:
    """How many rows the embeddings of a model have, tokens and padding. Raises `CheckpointError`."""
    for part in (header.config, header.config.get("text_config")):
        rows = part.get("vocab_size") if isinstance(part, Mapping) else None
        if type(rows) is int and rows > 0:
            return rows
    config = header.folder / "config.json"
    raise CheckpointError(f"{config}: no number as vocab_size, so its embeddings are not known")


def check_token_rows(header: CheckpointHeader, rows: int) -> None:
    """Raise `CheckpointError` where no tensor has one row for each of ``rows`` tokens."""
    if not any(has_token_rows(name, info, rows) for name, info in header.tensors.items()):
        config = header.folder / "config.json"
        raise CheckpointError(f"{config}: vocab_size is {shown(rows)}, but no embeddings have so many rows")


def has_token_rows(name: str, info: TensorInfo, rows: int) -> bool:
    """Whether a tensor has one row for each of ``rows`` tokens: embeddings, heads, biases of heads.

    Told by its first dimension; layers, position tables and norms may have as many by chance.
    """
    if not info.shape or info.shape[0] != rows or _OTHER_ROWS.search(name):
        return False
    return len(info.shape) == 2 or (len(info.shape) == 1 and name.endswith("bias"))
