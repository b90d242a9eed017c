"""Token numbers in configs: brought to the vocabulary of the result."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from merge_engine.vocabulary.alignment import Alignment
from merge_engine.vocabulary.tokens import Vocabulary

_NUMBERS = re.compile(r"_token_(ids?|index)$|^(begin_)?suppress_tokens$")
Renumber = Callable[[int], int | None]


def renumbering(alignment: Alignment, owner: Vocabulary, old: Vocabulary) -> Renumber:
    """Old number -> number in the result, None where the token is not there any more.

    ``owner``: the vocabulary of ``alignment.tokenizer``; ``old``: that of the model whose config it is.
    """
    new = {**owner.ids, **{token.text: alignment.first_new + i for i, token in enumerate(alignment.new)}}
    texts = {number: text for text, number in old.ids.items()}

    def renumber(number: int) -> int | None:
        text = texts.get(number)
        return number if text is None else new.get(text)

    return renumber


def renumbered(config: Mapping[str, Any], renumber: Renumber, instead: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` with its token numbers changed, in nested configs too.

    Where a token is gone, the value of ``instead``, a config of the new vocabulary, is taken, or null.
    """
    return {key: _value(key, value, renumber, instead) for key, value in config.items()}


def _value(key: str, value: Any, renumber: Renumber, instead: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        inner = instead.get(key)
        return renumbered(value, renumber, inner if isinstance(inner, Mapping) else {})
    if not _NUMBERS.search(key) or not _is_numbers(value):
        return value
    if not isinstance(value, list):
        number = renumber(value)
        return instead.get(key) if number is None else number
    numbers = [number for number in map(renumber, value) if number is not None]
    return numbers or instead.get(key)


def _is_numbers(value: Any) -> bool:
    entries = value if isinstance(value, list) else [value]
    return all(isinstance(entry, int) and not isinstance(entry, bool) for entry in entries)


def with_rows(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """``config`` with ``vocab_size`` set where it was: at the top, or in ``text_config``."""
    inner = config.get("text_config")
    changed = dict(config)
    if isinstance(inner, Mapping) and "vocab_size" in inner:
        changed["text_config"] = {**inner, "vocab_size": rows}
    if "vocab_size" in config or "text_config" not in changed:
        changed["vocab_size"] = rows
    return changed
