"""The pure parts: splits, batches, encoding, suite values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitness.batching import ModelFacts, auto_batch_size, batches
from fitness.encoding import Encoder
from fitness.generation import StopWords
from fitness.splits import split_items
from fitness.suite import SuiteSpec, TaskSpec
from tests.fitness.conftest import tiny_tokenizer

FACTS = ModelFacts(layers=32, hidden_size=4096, kv_size=1024, vocab_size=128_000, weight_bytes=2)
GIB = 1 << 30


@given(
    count=st.integers(2, 300),
    share=st.floats(0.01, 0.99),
    limit=st.one_of(st.none(), st.integers(1, 400), st.floats(0.01, 0.99)),
    shuffle=st.booleans(),
    seed=st.integers(0, 5),
)
def test_splits_never_share_an_item(
    count: int, share: float, limit: float | None, shuffle: bool, seed: int
) -> None:
    found = split_items(count, task="t", holdout_share=share, limit=limit, shuffle=shuffle, seed=seed)
    again = split_items(count, task="t", holdout_share=share, limit=limit, shuffle=shuffle, seed=seed)
    assert found == again
    assert found.search
    assert found.holdout
    assert not set(found.search) & set(found.holdout)
    for part in (found.search, found.holdout):
        assert list(part) == sorted(set(part))
        assert part[0] >= 0
        assert part[-1] < count
    if limit is None:
        assert len(found.search) + len(found.holdout) == count


def test_splits_differ_by_task_and_seed() -> None:
    def held(task: str, seed: int) -> tuple[int, ...]:
        found = split_items(100, task=task, holdout_share=0.5, limit=None, shuffle=False, seed=seed)
        return found.holdout

    assert len({held("a", 0), held("b", 0), held("a", 1)}) == 3
    assert held("a", 0)[:5] == (0, 3, 4, 6, 7), "the draw is part of every journal: it must never change"


def test_limit_is_a_share_below_one_and_a_count_above() -> None:
    def kept(limit: float) -> tuple[int, ...]:
        return split_items(10, task="t", holdout_share=None, limit=limit, shuffle=False, seed=0).search

    assert kept(0.25) == (0, 1, 2)
    assert kept(1) == (0,)
    assert kept(50) == tuple(range(10))


def test_one_item_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="too few to hold some out"):
        split_items(1, task="t", holdout_share=0.5, limit=None, shuffle=False, seed=0)


def test_batch_size_grows_with_memory_and_shrinks_with_length() -> None:
    sizes = [auto_batch_size(FACTS, gib * GIB, 2048) for gib in (0, 1, 4, 16, 64, 256, 1024)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    assert sizes[-1] == 512
    assert auto_batch_size(FACTS, 16 * GIB, 512) > auto_batch_size(FACTS, 16 * GIB, 4096)
    assert auto_batch_size(FACTS, 16 * GIB, 512, scored_tokens=512) < auto_batch_size(FACTS, 16 * GIB, 512)
    assert all(size & (size - 1) == 0 for size in sizes)


def test_model_facts_of_a_config() -> None:
    config = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 9}
    assert ModelFacts.from_config(config, weight_bytes=2).kv_size == 32
    nested = {"text_config": config | {"num_key_value_heads": 2, "head_dim": 16}}
    assert ModelFacts.from_config(nested, weight_bytes=2).kv_size == 32
    gpt = {"n_layer": 3, "n_embd": 8, "n_head": 2, "vocab_size": 9}
    assert ModelFacts.from_config(gpt, weight_bytes=4).layers == 3


def test_batches_are_longest_first_and_stable() -> None:
    assert list(batches(["a", "ccc", "bb", "dd"], 3, len)) == [[1, 2, 3], [0]]


def test_long_prompts_lose_their_start() -> None:
    encoder = Encoder(tiny_tokenizer(), max_tokens=10)
    request = encoder.generation("abcdefghij", {"until": "z", "max_gen_toks": 4})
    assert encoder.tokenizer.decode(request.prompt) == "efghij"
    assert (request.stops, request.max_new_tokens) == (("z",), 4)
    scored = encoder.continuation("abcdefghij", "xyz")
    assert encoder.tokenizer.decode(scored.prefix + scored.target) == "cdefghijxyz"
    with pytest.raises(ValueError, match="has 11 tokens; the model's context 10"):
        encoder.continuation("a", "b" * 11)
    with pytest.raises(ValueError, match="adds no token"):
        encoder.continuation("a", "")


def test_rolling_windows_score_each_token_once() -> None:
    encoder = Encoder(tiny_tokenizer(), max_tokens=4)
    windows = encoder.rolling("abcdefghij").windows
    assert "".join(encoder.tokenizer.decode(window.target) for window in windows) == "abcdefghij"
    assert all(len(window.prefix) + len(window.target) <= 5 for window in windows)


def test_stop_words_are_found_across_tokens() -> None:
    tokenizer = tiny_tokenizer()
    stops = ("xy", "\n\n")
    words = StopWords(tokenizer, [stops])
    ids = {letter: tokenizer.convert_tokens_to_ids(letter) for letter in "axy\n"}
    assert words.reached([ids["a"], ids["x"], ids["y"]], stops)
    assert not words.reached([ids["a"], ids["y"]], stops)
    assert not words.reached([ids["x"], ids["y"], ids["x"]][2:], stops)
    assert words.cut([ids["a"], ids["x"], ids["y"], ids["a"]], stops) == "a"


def test_a_special_token_can_be_a_stop_word() -> None:
    tokenizer = tiny_tokenizer()
    words = StopWords(tokenizer, [("</s>",)])
    assert words.reached([tokenizer.eos_token_id], ("</s>",))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ()}, "at least one task"),
        ({"holdout": 1.0}, r"in \(0, 1\)"),
        ({"limit": 0}, "limit must be"),
        ({"limit": 2.5}, "limit must be"),
        ({"num_fewshot": -1}, "0 or more"),
    ],
)
def test_suites_cannot_be_wrong(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SuiteSpec(**{"tasks": (TaskSpec(name="t"),)} | settings)


def test_a_metric_needs_its_filter() -> None:
    with pytest.raises(ValueError, match="not of the form 'metric,filter'"):
        TaskSpec(name="t", metric="acc")
