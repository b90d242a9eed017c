"""Exactly k elements are kept, lowest index first among equals, as a sort would say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merge_engine import magnitudes
from merge_engine.counting import Counter, Differences, Where
from merge_engine.magnitudes import Kept, MagnitudeIndex

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


def index_of(delta: Tensor, *, once: bool = False) -> MagnitudeIndex:
    differences = Differences(x=lambda where: delta[where], base=None, dtype=delta.dtype, elements=len(delta))
    return MagnitudeIndex(differences, Counter("never"), once=once)


def check(delta: Tensor, *, once: bool = False) -> None:
    counts = index_of(delta, once=once)
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
    monkeypatch.setattr(magnitudes, "_WHOLE_BLOCK", 900)
    delta = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    for once in (False, True):
        check(delta.to(torch.bfloat16), once=once)


def test_candidates_read_one_block() -> None:
    delta = torch.tensor([0.5, -0.5, 0.25, 0.0] * 200, dtype=torch.bfloat16)
    reads: list[object] = []

    def read(where: Where) -> Tensor:
        reads.append(where)
        return delta[where]

    differences = Differences(x=read, base=None, dtype=delta.dtype, elements=len(delta))
    counts = MagnitudeIndex(differences, Counter("never"))
    reads.clear()
    counts.kept(100)
    assert reads == [slice(192, 256)]


def test_a_block_whose_elements_are_all_alike() -> None:
    """A frozen tensor, for example: 2**16 equal magnitudes do not fit into 16 bits."""
    delta = torch.full((2**18,), 0.5, dtype=torch.bfloat16)
    kept = index_of(delta).kept(1000)
    assert kept == Kept(threshold=0.5, ties_end=1000)
