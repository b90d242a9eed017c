"""What a parameter value means for a tensor; the numbers of the tables are those of mergekit 0.1.5."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merge_engine.spec import Filtered, Value, evaluate, first_match, layer_place

UP = "model.layers.2.mlp.up_proj.weight"
QUERY = "model.layers.2.self_attn.q_proj.weight"
HEAD = "lm_head.weight"

reals = st.floats(-10, 10, allow_nan=False)
places = st.floats(0, 1)


@pytest.mark.parametrize(
    ("value", "name", "t", "expected"),
    [
        (0.25, UP, 0.5, 0.25),
        (True, UP, 0.5, True),
        ((1.0, 2.0, 5.0), UP, 0.0, 1.0),
        ((1.0, 2.0, 5.0), UP, 0.5, 2.0),
        ((1.0, 2.0, 5.0), UP, 0.75, 3.5),
        ((1.0, 2.0, 5.0), UP, 1.0, 5.0),
        ((7.0,), UP, 0.3, 7.0),
    ],
)
def test_scalars_and_gradients(value: Value, name: str, t: float, expected: float) -> None:
    assert evaluate(value, name, t) == expected


CONDITIONAL = (
    Filtered(filter="self_attn", value=(0.0, 1.0, 2.0, 3.0)),
    Filtered(filter="mlp.up", value=7.0),
    Filtered(filter="mlp", value=8.0),
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [(QUERY, 2.0), (UP, 7.0), ("model.layers.2.mlp.down_proj.weight", 8.0), (HEAD, None)],
)
def test_the_first_filter_that_is_part_of_the_name_counts(name: str, expected: float | None) -> None:
    assert evaluate(CONDITIONAL, name, 2 / 3) == expected


@pytest.mark.parametrize("everything", [None, "*"])
def test_an_entry_for_everything_ends_the_list(everything: str | None) -> None:
    value = (*CONDITIONAL, Filtered(filter=everything, value=9.0), Filtered(filter="lm_head", value=10.0))
    assert evaluate(value, HEAD, 0.0) == 9.0


def test_a_filter_is_plain_text_and_no_pattern() -> None:
    value = (Filtered(filter="self.*q", value=1.0), Filtered(filter="[mlp]", value=2.0), Filtered(value=5.0))
    assert evaluate(value, QUERY, 0.0) == 5.0
    assert evaluate(value, UP, 0.0) == 5.0


def test_what_matches_no_filter_is_looked_up_at_the_next_level() -> None:
    assert first_match([None, CONDITIONAL, 11.0], HEAD, 0.0) == 11.0
    assert first_match([CONDITIONAL, 11.0], UP, 0.0) == 7.0
    assert first_match([None, CONDITIONAL], HEAD, 0.0) is None


def test_false_and_zero_are_values_like_any_other() -> None:
    assert first_match([False, True], UP, 0.0) is False
    assert first_match([0.0, 1.0], UP, 0.0) == 0.0


@pytest.mark.parametrize(
    ("index", "count", "place"),
    [(0, 4, 0.0), (3, 4, 1.0), (1, 3, 0.5), (0, 1, 1.0), (None, 1, 0.0), (None, 4, 0.0)],
)
def test_the_place_of_a_layer(index: int | None, count: int, place: float) -> None:
    assert layer_place(index, count) == place


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(reals, min_size=1, max_size=6), places)
def test_a_gradient_stays_between_its_nodes(nodes: list[float], t: float) -> None:
    found = evaluate(tuple(nodes), UP, t)
    assert found is not None
    assert min(nodes) - 1e-9 <= found <= max(nodes) + 1e-9


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(reals, min_size=2, max_size=6), st.data())
def test_a_gradient_is_exact_at_its_nodes(nodes: list[float], data: st.DataObject) -> None:
    i = data.draw(st.integers(0, len(nodes) - 1))
    found = evaluate(tuple(nodes), UP, layer_place(i, len(nodes)))
    assert found == pytest.approx(nodes[i], abs=1e-9)
