"""Ranks within rows, against sorting; and the sums that go with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merge_engine import row_ranks
from merge_engine.row_ranks import LEVELS, STRIDE, RowRanks, row_length

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_ranks, "_BATCH_ELEMENTS", 100)


def ranks_of(delta: Tensor) -> RowRanks:
    flat = delta.flatten()
    return RowRanks(lambda start, stop: flat[start:stop], flat.numel(), row_length(tuple(delta.shape)))


def shares(row: Tensor) -> np.ndarray:
    """Where each magnitude of a row stands, 0 to 1, equal ones at the middle of their places."""
    sizes = row.abs().double().numpy()
    below = (sizes[:, None] > sizes[None, :]).sum(axis=1)
    equal = (sizes[:, None] == sizes[None, :]).sum(axis=1)
    return np.asarray((below + (equal - 1) / 2) / max(len(sizes) - 1, 1))


def check(delta: Tensor) -> None:
    made = ranks_of(delta)
    reached = made.reached(delta.flatten()).view(-1, made.columns)
    total = ranked = 0.0
    for row, levels in zip(delta.reshape(-1, made.columns), reached, strict=True):
        if made.columns > 1:
            assert np.abs(levels.numpy() - LEVELS * shares(row)).max() <= 0.5
            ranked += float((row.abs().double().numpy() * shares(row)).sum())
        total += float(row.abs().double().sum())
    assert made.total == pytest.approx(total, rel=1e-12)
    if made.columns > 1:
        assert made.ranked == pytest.approx(ranked, rel=1e-12)


@pytest.mark.parametrize("shape", [(300,), (7, 40), (3, 5, 8), (2, 3), (40, 1), (1, 90), (5, 2)])
def test_random_tensors(shape: tuple[int, ...]) -> None:
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for dtype in DTYPES:
        check(delta.to(dtype))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([0.0, 0.5, -0.5, 1.0, 1.0078125, -2.0, 6e4, 1e-7]), min_size=2, max_size=80))
def test_any_row_of_few_values(values: list[float]) -> None:
    for dtype in DTYPES:
        check(torch.tensor(values).to(dtype))


def test_distinct_elements_of_a_row_of_33_have_a_level_each() -> None:
    delta = torch.arange(1.0, 34.0).flip(0)
    assert ranks_of(delta).reached(delta).tolist() == list(range(32, -1, -1))


def test_the_outer_thresholds_are_reached_by_all_and_by_none() -> None:
    thresholds = ranks_of(torch.tensor([[1.0, -2.0], [65504.0, 0.0]])).thresholds.view(-1, STRIDE)
    sizes = torch.tensor([0.0, 1.0, 3e38])
    assert bool((sizes >= thresholds[:, :1]).all())
    assert not bool((sizes >= thresholds[:, -1:]).any())


@pytest.mark.parametrize(
    ("shape", "length"),
    [((), 1), ((9,), 9), ((9, 1), 9), ((4, 6), 6), ((4, 3, 5), 15), ((4, 1, 5), 5), ((0,), 0), ((0, 4), 0)],
)
def test_a_row_is_one_index_of_the_first_dimension(shape: tuple[int, ...], length: int) -> None:
    assert row_length(shape) == length


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0)])
def test_nothing(shape: tuple[int, ...]) -> None:
    made = ranks_of(torch.empty(shape))
    assert made.reached(torch.empty(0)).numel() == 0
    assert (made.total, made.ranked) == (0.0, 0.0)


def test_a_single_element_is_the_largest_of_its_row() -> None:
    assert ranks_of(torch.tensor([0.25])).reached(torch.tensor([0.25])).tolist() == [LEVELS]
