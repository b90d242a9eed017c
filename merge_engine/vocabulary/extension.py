"""A tokenizer.json with more tokens, which encodes as before where its donors encode alike.

How new words are put in, so that text on which all tokenizers agree is still encoded so:

- BPE: the donors' merges follow the old ones. On such a text the old merges end where the donors' end too,
  and there no merge of theirs applies.
- WordPiece, WordLevel: the longest known piece of a word is the same in all, and so in their union.
- Unigram: a new piece scores worse than its own characters one by one, so it is only taken for text that was
  unknown before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from merge_engine.vocabulary.alignment import NewToken
from merge_engine.vocabulary.tokens import model_ids

Data = dict[str, Any]


def extended(data: Data, new: Sequence[NewToken], first_new: int, donors: Mapping[str, Data]) -> Data:
    """``data`` with the tokens ``new``, numbered from ``first_new``; ``donors``: the other tokenizer.json."""
    numbers = {token.text: first_new + i for i, token in enumerate(new)}
    words = [token for token in new if not token.added]
    added = [*(data.get("added_tokens") or ()), *_added_entries(new, numbers, donors)]
    return data | {"added_tokens": added, "model": _extended_model(data, words, numbers, donors)}


def _added_entries(
    new: Sequence[NewToken], numbers: Mapping[str, int], donors: Mapping[str, Data]
) -> Iterator[Data]:
    known = {
        model: {entry["content"]: entry for entry in donor.get("added_tokens") or ()}
        for model, donor in donors.items()
    }
    for token in new:
        if token.added:
            like = None if token.model is None else known[token.model].get(token.text)
            yield _added_entry(token.text, numbers[token.text], like)


def _added_entry(text: str, number: int, like: Mapping[str, Any] | None) -> Data:
    """An added token with the switches of ``like``; None: matched as it stands, anywhere."""
    switches = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {**switches, **(like or {}), "id": number, "content": text}


def _extended_model(
    data: Data, words: Sequence[NewToken], numbers: Mapping[str, int], donors: Mapping[str, Data]
) -> Data:
    model: Data = data["model"]
    texts = [word.text for word in words]
    if isinstance(model["vocab"], list):
        return model | {"vocab": _longer_list(data, texts, numbers)}
    vocabulary = {**model["vocab"], **{text: numbers[text] for text in texts}}
    if "merges" not in model:
        return model | {"vocab": vocabulary}
    alike = [
        donor["model"]
        for donor in donors.values()
        if all(donor.get(part) == data.get(part) for part in ("normalizer", "pre_tokenizer"))
    ]
    return model | {"vocab": vocabulary, "merges": _more_merges(model, alike, vocabulary)}


def _more_merges(model: Data, donors: Sequence[Data], vocabulary: Mapping[str, int]) -> list[list[str]]:
    """The merges of ``model``, then those of the donors whose parts and result are tokens."""
    prefix = model.get("continuing_subword_prefix") or ""
    merges = dict.fromkeys(_pairs(model))
    for donor in donors:
        for left, right in _pairs(donor):
            known = left in vocabulary and right in vocabulary
            if known and left + right.removeprefix(prefix) in vocabulary:
                merges.setdefault((left, right))
    return [list(pair) for pair in merges]


def _pairs(model: Data) -> Iterator[tuple[str, str]]:
    """Merges are written as pairs, by older versions as texts with a space between the parts."""
    for merge in model.get("merges") or ():
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        yield left, right


def _longer_list(data: Data, texts: Sequence[str], numbers: Mapping[str, int]) -> list[list[Any]]:
    """Unigram's pieces, which are numbered by their places: added tokens stand in for numbers in between."""
    pieces = list(data["model"]["vocab"])
    if not texts:
        return pieces
    lowest = min((float(score) for _, score in pieces), default=0.0)
    held = set(model_ids(data["model"]))
    added = {entry["id"]: entry["content"] for entry in data.get("added_tokens") or ()}
    for number in range(len(pieces), numbers[texts[0]]):
        text = added.get(number, f"<unused {number}>")
        pieces.append([text if text not in held else f"<unused {number}>", _worse(lowest, text)])
    return pieces + [[text, _worse(lowest, text)] for text in texts]


def _worse(lowest: float, text: str) -> float:
    """A score below that of the characters of ``text``, each of which scores at least ``lowest``."""
    return min(lowest, 0.0) * len(text) - 1.0
