"""YAML in and out: exact numbers out and back in, and one clear error for what is ambiguous or hostile."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merge_engine.spec import RecipeError, dump_yaml, load_yaml

texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
scalars = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | texts
plain = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plain)
def test_what_is_written_reads_back_the_same(data: object) -> None:
    assert load_yaml(dump_yaml(data)) == data


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.floats(allow_nan=False))
def test_every_float_reads_back_to_the_last_bit(number: float) -> None:
    found = load_yaml(dump_yaml({"weight": number}))
    assert isinstance(found, dict)
    assert math.copysign(1, found["weight"]) == math.copysign(1, number)
    assert found == {"weight": number}


def test_numbers_may_be_written_without_a_dot() -> None:
    assert load_yaml("[1e-3, -2E5, 1e3]") == [0.001, -200000.0, 1000.0]


def test_names_that_look_like_numbers_stay_names() -> None:
    assert load_yaml("[1e5b, e5, model-1e3]") == ["1e5b", "e5", "model-1e3"]


def test_an_empty_document_is_nothing() -> None:
    assert load_yaml("# only a comment\n") is None


def test_an_alias_is_a_copy() -> None:
    assert load_yaml("a: &x [1, 2]\nb: *x") == {"a": [1, 2], "b": [1, 2]}


def test_keys_are_written_in_their_order_and_lists_of_numbers_on_one_line() -> None:
    assert dump_yaml({"t": [0.0, 1.0], "a": {"filters": []}}) == "t: [0.0, 1.0]\na:\n  filters: []\n"


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 10)}]\n" for old, new in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2\nb: 3", r"line 2, column 2: while parsing a flow sequence, did not find expected ','"),
        ("a: 1\n\tb: 2", r"line 2, column 1: .*found a tab character that violates indentation"),
        ("a: 1\nb: 2\na: 3", r"line 3: the key 'a' stands twice in one mapping \(it is already in line 1\)"),
        ("g:\n  a: {k: 1, k: 2}", r"line 2: the key 'k' stands twice"),
        ("a: &a [1, *a]", r"line 1, column 4: an alias \(\*name\) points to a part that contains it"),
        (BOMB, r"more than 250000 entries once aliases are expanded"),
        ("[" + "a," * 2_000_000 + "]", r"line 1, column 499998: more than 250000 entries"),
        ("[" * 100_000 + "]" * 100_000, r"line 1, column 101: nested more than 100 levels deep"),
        ("- " * 100_000, r"line 1, column 201: nested more than 100 levels deep"),
        ("{a: " * 100_000, r"line 1, column 401: nested more than 100 levels deep"),
        ("a: !!python/object/apply:os.getcwd []", r"could not determine a constructor for the tag"),
        ("a: 1\n---\nb: 2", r"2 documents \(parts between lines of ---\), expected one"),
        ("x" * 8_000_001, r"8000001 characters are too many for a config"),
        ("a: 2020-99-99", r"a value cannot be read: month must be in 1..12"),
        ("? [1, 2]\n: 3", r"found unhashable key"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_yaml(text)
