"""Exactly k elements are kept, lowest index first among equals, as a sort would say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merge_engine import magnitudes
from merge_engine.magnitudes import Kept, MagnitudeIndex, bracket

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def by_sorting(delta: Tensor, count: int) -> Tensor:
    order = delta.abs().float().sort(descending=True, stable=True).indices
    mask = torch.zeros(len(delta), dtype=torch.bool)
    mask[order[:count]] = True
    return mask


def by_index(delta: Tensor, kept: Kept) -> Tensor:
    place = torch.arange(len(delta))
    return (delta.abs() > kept.threshold) | ((delta.abs() == kept.threshold) & (place < kept.ties_end))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(magnitudes, "_SMALL_BLOCK", 64)


def check(delta: Tensor) -> None:
    counts = MagnitudeIndex(lambda start, stop: delta[start:stop], len(delta))
    nonzero = delta != 0  # whether zeros are kept makes no difference
    for count in {1, 2, len(delta) // 3, len(delta) // 2, len(delta) - 1, len(delta)} - {0}:
        assert torch.equal(
            by_index(delta, counts.kept(count)) & nonzero, by_sorting(delta, count) & nonzero
        ), count
        whole, kept = counts.sums(count)
        assert whole == pytest.approx(float(delta.double().abs().sum()), rel=1e-12)
        assert kept == pytest.approx(float(delta[by_sorting(delta, count)].double().abs().sum()), rel=1e-12)


@pytest.mark.parametrize("elements", [1, 63, 64, 65, 1000, 5000])
def test_random_tensors(elements: int) -> None:
    delta = torch.randn(elements, generator=torch.Generator().manual_seed(elements))
    for dtype in DTYPES:
        check(delta.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_everywhere(dtype: torch.dtype) -> None:
    for delta in (
        torch.full((300,), -0.5),
        torch.zeros(300),
        torch.tensor([0.5, -0.5, 0.25, 0.0, -0.0] * 60),
        torch.tensor([6e4, 6e-5, 1e-7, 0.0] * 60),
    ):
        check(delta.to(dtype))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([0.0, 0.5, -0.5, 1.0, 1.0078125, -2.0, 1e-3]), min_size=1, max_size=300))
def test_any_arrangement_of_few_values(values: list[float]) -> None:
    for dtype in DTYPES:
        check(torch.tensor(values).to(dtype))


def test_large_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(magnitudes, "_LARGE_FROM", 1000)
    monkeypatch.setattr(magnitudes, "_LARGE_BLOCK", 300)
    delta = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    check(delta.to(torch.bfloat16))


def test_candidates_read_one_block() -> None:
    delta = torch.tensor([0.5, -0.5, 0.25, 0.0] * 200, dtype=torch.bfloat16)
    reads: list[tuple[int, int]] = []

    def read(start: int, stop: int) -> Tensor:
        reads.append((start, stop))
        return delta[start:stop]

    counts = MagnitudeIndex(read, len(delta))
    reads.clear()
    counts.kept(100)
    assert reads == [(192, 256)]


def test_a_block_whose_elements_are_all_alike() -> None:
    """A frozen tensor, for example: 2**16 equal magnitudes do not fit into 16 bits."""
    delta = torch.full((2**18,), 0.5, dtype=torch.bfloat16)
    kept = MagnitudeIndex(lambda start, stop: delta[start:stop], len(delta)).kept(1000)
    assert kept == Kept(threshold=0.5, ties_end=1000)


@pytest.mark.parametrize("share_of_zeros", [0.0, 0.5, 0.99])
def test_a_single_count_needs_only_the_bins_near_it(
    monkeypatch: pytest.MonkeyPatch, share_of_zeros: float
) -> None:
    monkeypatch.setattr(magnitudes, "_SAMPLE_FROM", 1000)
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(2**16, generator=generator).to(torch.bfloat16)
    delta[torch.rand(2**16, generator=generator) < share_of_zeros] = 0.0

    def read(start: int, stop: int) -> Tensor:
        return delta[start:stop]

    whole = MagnitudeIndex(read, len(delta))
    for count in (1, 100, 20_000, 40_000, 60_000, len(delta) - 1):
        between = bracket(read, len(delta), count)
        index = MagnitudeIndex(read, len(delta), between=between)
        assert index.covers(count)
        assert index.kept(count) == whole.kept(count)


def test_a_bracket_that_misses_says_so() -> None:
    delta = torch.arange(1.0, 257.0).to(torch.bfloat16)
    low, high = 0x4200, 0x4240  # 32 to 48
    index = MagnitudeIndex(lambda start, stop: delta[start:stop], len(delta), between=(low, high))
    assert [count for count in range(257) if not index.covers(count)] == [*range(1, 209), *range(226, 256)]


def test_nothing_is_bracketed_where_bins_are_wide_or_elements_few() -> None:
    for delta in (torch.ones(2**20), torch.ones(100, dtype=torch.bfloat16)):
        assert bracket(lambda start, stop, delta=delta: delta[start:stop], len(delta), 50) is None
