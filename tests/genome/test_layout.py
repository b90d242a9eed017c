"""Runs of layers that share a parameter set."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from genome.layout import layer_groups


def test_the_last_group_is_shorter_where_the_granularity_does_not_divide() -> None:
    assert layer_groups(7, 3) == ((0, 3), (3, 6), (6, 7))
    assert layer_groups(6, 3) == ((0, 3), (3, 6))


def test_no_granularity_is_one_group() -> None:
    assert layer_groups(7, 0) == layer_groups(7, 7) == ((0, 7),)


@given(st.integers(1, 200), st.integers(0, 200))
def test_groups_cover_every_layer_once(num_layers: int, granularity: int) -> None:
    groups = layer_groups(num_layers, granularity)
    assert [layer for start, end in groups for layer in range(start, end)] == list(range(num_layers))
    assert all(end - start == (granularity or num_layers) for start, end in groups[:-1])
