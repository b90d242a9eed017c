"""Selection by variance, and overlaps of changes, against computing them at once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from merge_engine.counting import Counter
from merge_engine.methods.sce import energy_weights, variance
from merge_engine.overlap import Overlap, overlaps
from merge_engine.selection import SelectionIndex

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def task_vectors(dtype: torch.dtype, elements: int = 5000) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    deltas = [torch.randn(elements, generator=generator) * scale for scale in (0.3, 0.1, 1.0)]
    for delta in deltas:
        delta[::7] = 0.25  # no variance there
    return [delta.to(dtype) for delta in deltas]


def index_of(deltas: list[Tensor]) -> SelectionIndex:
    dtype = deltas[0].dtype
    return SelectionIndex(
        [lambda where, delta=delta: delta[where] for delta in deltas],  # type: ignore[misc]
        lambda parts: variance(parts, dtype),
        len(deltas[0]),
        Counter("never"),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.7, 0.31, 0.01])
def test_selected_elements_and_their_energies(dtype: torch.dtype, share: float) -> None:
    deltas = task_vectors(dtype)
    spread = variance(deltas, dtype).double()
    selection = index_of(deltas).select(share)
    assert selection.kept is not None
    place = torch.arange(len(spread))
    ties = (spread == selection.kept.threshold) & (place < selection.kept.ties_end)
    mask = (spread > selection.kept.threshold) | ties
    assert int(mask.sum()) == int(share * int((spread > 0).sum()))
    assert selection.energies == pytest.approx(
        [energy(delta, mask, ties, spread) for delta in deltas], rel=1e-12
    )


def energy(delta: Tensor, mask: Tensor, ties: Tensor, spread: Tensor) -> float:
    """In bfloat16 squares are rounded, and elements that tie count with the share of them that is taken."""
    if delta.dtype != torch.bfloat16:
        return float(delta[mask].double().square().sum())
    squares = delta.square().double()
    tied = spread == spread[ties].max() if bool(ties.any()) else torch.zeros_like(ties)
    share = int(ties.sum()) / int(tied.sum()) if bool(tied.any()) else 0.0
    return float(squares[mask & ~tied].sum()) + share * float(squares[tied].sum())


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_elements(dtype: torch.dtype) -> None:
    deltas = task_vectors(dtype, 70_000)
    selection = index_of(deltas).select(1.0)
    assert selection.kept is None
    exact = [float(delta.double().square().sum()) for delta in deltas]
    assert selection.energies == pytest.approx(exact, rel=1e-3 if dtype == torch.bfloat16 else 1e-12)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_models_that_do_not_differ_have_nothing_to_select(share: float) -> None:
    same = torch.randn(100, generator=torch.Generator().manual_seed(0))
    selection = index_of([same, same.clone()]).select(share)
    assert selection.kept is not None
    assert selection.kept.threshold == math.inf
    assert selection.energies == (0.0, 0.0)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_an_empty_tensor(share: float) -> None:
    assert index_of([torch.empty(0)] * 2).select(share).energies == (0.0, 0.0)


def test_weights_are_shares_of_the_energies() -> None:
    assert energy_weights([1.0, 3.0], 100, torch.float32) == [0.25, 0.75]
    assert energy_weights([0.0, 0.0], 100, torch.float32) == [0.5, 0.5]
    # Squares of small changes, and of large ones, that float16 does not hold.
    assert energy_weights([1e-8, 4e-8], 1, torch.float16) == pytest.approx([0.2, 0.8], rel=1e-3)
    assert energy_weights([9e4, 4e4], 1, torch.float16) == pytest.approx([9 / 13, 4 / 13], rel=1e-3)


@pytest.mark.parametrize("elements", [5, 200_000])
def test_overlaps_count_what_one_model_changes_alone(elements: int) -> None:
    a, b, c = (torch.zeros(elements) for _ in range(3))
    a[0], a[1], a[2] = 1.0, -1.0, 0.1
    b[1], b[3] = 0.5, -0.5
    c[-1], c[1] = 2.0, 0.1
    deltas = [lambda where, delta=delta: delta[where] for delta in (a, b, c)]
    assert overlaps(deltas, elements, torch.tensor(0.1)) == (
        Overlap(unique=1, shared=1),
        Overlap(unique=1, shared=1),
        Overlap(unique=1, shared=0),
    )
