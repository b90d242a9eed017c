"""The field of uniforms behind DARE."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from merge_engine.methods.random_field import field_key, field_N

COUNT = 200_000
GOLDEN = [11229358, 16205643, 14462121, 10538270]


def field(
    seed: int = 0, source: str = "a", tensor: str = "t", block: int = 0, first: int = 0, count: int = COUNT
) -> Tensor:
    key = torch.tensor(field_key(seed, source, tensor, block), dtype=torch.int32)
    return field_N(torch.tensor(first, dtype=torch.int32), count, key).double() / 2**32 + 0.5


def test_any_piece_is_the_same_as_in_the_whole() -> None:
    whole = field()
    assert torch.equal(field(first=777, count=1000), whole[777:1777])


def test_numbers_are_stable() -> None:
    # A change here changes what every seeded search with DARE finds.
    assert (field(count=4) * 2**24).long().tolist() == GOLDEN


def test_every_part_of_the_key_counts() -> None:
    fields = [field(), field(seed=1), field(source="b"), field(tensor="u"), field(block=1)]
    for i, x in enumerate(fields):
        for y in fields[:i]:
            assert abs(_correlation(x, y)) < 5 / math.sqrt(COUNT)


def test_uniform_in_every_digit() -> None:
    for scale in (1, 2**6, 2**12, 2**18):
        digits = ((field() * scale) % 1 * 16).long()
        counts = torch.bincount(digits, minlength=16).double()
        chi_squared = float(((counts - COUNT / 16) ** 2 / (COUNT / 16)).sum())
        assert chi_squared < 45  # 15 degrees of freedom: 1 in 10,000


def test_neighbours_are_independent() -> None:
    x = field()
    for lag in (1, 2, 16, 128, 896):
        assert abs(_correlation(x[lag:], x[:-lag])) < 5 / math.sqrt(COUNT)


def test_masks_are_nested_in_density() -> None:
    x = field()
    assert bool(((x < 0.3) <= (x < 0.7)).all())
    assert bool((x <= 1.0).all())


def _correlation(x: Tensor, y: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([x, y]).double())[0, 1])
