"""The tokenizer of a merged model: whose files are copied, and whether the models' vocabularies allow it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merge_engine.errors import PlanError, Problem
from merge_engine.spec.recipe import Recipe

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
CHAT_TEMPLATE_FILE = "chat_template.jinja"
_VOCABULARY_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt")


def tokenizer_reference(recipe: Recipe, default: str, folders: Mapping[str, Path]) -> str:
    """The model whose tokenizer the result gets.

    ``folders``: the folder of every model in the recipe. ``default`` is the base, or the first model. Raises
    `PlanError` where the recipe's ``tokenizer_source`` would need embeddings to be rearranged.
    """
    source = recipe.tokenizer_source
    if source in (None, "base"):
        return default
    if source == "union":
        _same_vocabulary("tokenizer_source: union", {default: folders[default], **folders})
        return default
    reference = source.removeprefix("model:")
    if reference not in folders:
        known = ", ".join(folders)
        raise PlanError(
            [Problem("tokenizer_source", f"{source!r} is no model of the recipe", f"known: {known}")]
        )
    _same_vocabulary(
        f"tokenizer_source: {source}", {name: folders[name] for name in dict.fromkeys([default, reference])}
    )
    return reference


def chat_template(recipe: Recipe, folders: Sequence[Path]) -> str | None:
    """The chat template that the recipe asks for, or None to keep the one that comes with the tokenizer.

    ``auto`` is the most frequent template of the models, the first of those in a draw.
    """
    wanted = recipe.chat_template
    if wanted is None:
        return None
    if wanted == "auto":
        templates = [template for template in map(template_of, folders) if template is not None]
        return Counter(templates).most_common(1)[0][0] if templates else None
    if "{" in wanted:
        return wanted
    raise PlanError([Problem("chat_template", f"unknown: {wanted!r}", "give 'auto' or a Jinja template")])


def template_of(folder: Path) -> str | None:
    """The chat template of a model folder."""
    file = folder / CHAT_TEMPLATE_FILE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = _json_of(folder / "tokenizer_config.json").get("chat_template")
    return template if isinstance(template, str) else None


def _same_vocabulary(where: str, folders: Mapping[str, Path]) -> None:
    vocabularies = {name: _vocabulary(folder) for name, folder in folders.items()}
    first = next(iter(vocabularies))
    differing = [name for name, vocabulary in vocabularies.items() if vocabulary != vocabularies[first]]
    if differing:
        what = f"the vocabulary of {', '.join(differing)} differs from that of {first}"
        raise PlanError(
            [Problem(where, what, "bring the models to one tokenizer first, or use tokenizer_source: base")]
        )


def _vocabulary(folder: Path) -> object:
    """Something that is equal for two folders whose tokenizers number the same tokens alike."""
    data = _json_of(folder / "tokenizer.json")
    if data:
        added = data.get("added_tokens") or []
        return data.get("model", {}).get("vocab"), [
            (token.get("id"), token.get("content")) for token in added
        ]
    return {name: (folder / name).read_bytes() for name in _VOCABULARY_FILES if (folder / name).is_file()}


def _json_of(file: Path) -> dict[str, Any]:
    """The content of a JSON file, empty where there is none that can be read."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
