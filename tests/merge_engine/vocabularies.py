"""Small hand-made and trained tokenizers, and models that have them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.merge_engine import toy

SPECIALS = ("<s>", "</s>", "<unk>")


def bpe(
    words: Sequence[str],
    merges: Sequence[tuple[str, str]] = (),
    *,
    specials: Sequence[str] = SPECIALS,
    added: Sequence[str] = (),
) -> PreTrainedTokenizerFast:
    """Byte pairs over ``words``; numbers are places in specials, words, merged words, added tokens."""
    listed = dict.fromkeys([*specials, *words, *(a + b for a, b in merges)])
    vocabulary = {token: number for number, token in enumerate(listed)}
    model = models.BPE(vocab=vocabulary, merges=list(merges), unk_token="<unk>")
    return _fast(model, pre_tokenizers.Metaspace(), decoders.Metaspace(), added)


def trained(kind: str, seed: int) -> PreTrainedTokenizerFast:
    """A tokenizer of one of three kinds, trained on random words of five letters."""
    draw = random.Random(seed)
    words = [
        "".join(draw.choices("abcde", weights=[draw.random() for _ in range(5)], k=6)) for _ in range(300)
    ]
    settings: dict[str, Any] = {"special_tokens": list(SPECIALS), "initial_alphabet": list("abcde")}
    made: dict[str, tuple[Any, Any]] = {
        "bpe": (models.BPE(unk_token="<unk>"), trainers.BpeTrainer(vocab_size=40, **settings)),
        "wordpiece": (
            models.WordPiece(unk_token="<unk>"),
            trainers.WordPieceTrainer(vocab_size=50, **settings),
        ),
        "unigram": (models.Unigram(), trainers.UnigramTrainer(vocab_size=40, unk_token="<unk>", **settings)),
    }
    model, trainer = made[kind]
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator([" ".join(words)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_named())


def _fast(model: Any, splitter: Any, decoder: Any, added: Sequence[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoder
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_named())
    fast.add_tokens([AddedToken(token, normalized=False) for token in added])
    return fast


def _named() -> dict[str, str]:
    return {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def model(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    *,
    padding: int = 0,
    constant: float | None = None,
    dtype: torch.dtype = torch.float32,
    **more: Any,
) -> str:
    """A model folder whose embeddings have ``padding`` rows beyond the tokenizer.

    ``constant``: row r of embeddings and head is filled with ``constant`` + r, else with random numbers.
    """
    settings = toy.config(
        layers=2,
        vocabulary=len(tokenizer) + padding,
        dtype=str(dtype).removeprefix("torch."),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **more,
    )
    tensors = toy.random_tensors(settings, seed, dtype=dtype)
    if constant is not None:
        for name in {"model.embed_tokens.weight", "lm_head.weight"} & set(tensors):
            numbers = torch.arange(len(tensors[name]), dtype=dtype) + constant
            tensors[name] = numbers[:, None].expand_as(tensors[name]).contiguous()
    toy.save(folder, settings, tensors)
    tokenizer.save_pretrained(folder)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": [tokenizer.eos_token_id]}
    (folder / "generation_config.json").write_text(json.dumps(ids))
    return str(folder)


LETTERS = ["▁", "a", "b", "c", "d", "e"]


def three() -> dict[str, PreTrainedTokenizerFast]:
    """Three byte-pair tokenizers that overlap: ``b`` and ``c`` have words and added tokens of their own."""
    return {
        "a": bpe(LETTERS, [("a", "b"), ("▁", "a")]),
        "b": bpe(["▁", *"edcbaf"], [("a", "b"), ("e", "f")], added=["<x>"]),
        "c": bpe(["▁", *"abfg"], [("f", "g")], added=["<x>", "<c>"]),
    }
