"""Which tensors are merged in one go."""

from __future__ import annotations

from typing import Any

import pytest

from merge_engine import groups
from merge_engine.groups import grouped
from merge_engine.plan import TensorJob, TensorRef


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "SHORT_ELEMENTS", 10)
    monkeypatch.setattr(groups, "GROUP_ELEMENTS", 20)


def job(elements: int, **changed: Any) -> TensorJob:
    made = {
        "name": "t",
        "method": "linear",
        "shape": (elements,),
        "dtype": "bfloat16",
        "out_dtype": "bfloat16",
        "base": None,
        "sources": (TensorRef(model="a", name="t"),),
        "per_source": ({"weight": 0.5},),
        "shared": {"normalize": True},
    }
    return TensorJob(**{**made, **changed})


def lengths(*jobs: TensorJob) -> list[list[int]]:
    found = list(grouped(jobs))
    assert [member for group in found for member in group] == list(jobs)
    return [[member.shape[0] for member in group] for group in found]


def test_short_neighbours_go_together_while_there_is_room() -> None:
    assert lengths(*map(job, (9, 9, 2, 1, 0, 5))) == [[9, 9, 2], [1, 0, 5]]


def test_long_tensors_go_alone() -> None:
    assert lengths(*map(job, (3, 10, 0, 4, 50, 50, 4))) == [[3], [10], [0, 4], [50], [50], [4]]


@pytest.mark.parametrize(
    "changed",
    [
        {"per_source": ({"weight": 0.6},)},
        {"shared": {"normalize": False}},
        {"dtype": "float32"},
        {"out_dtype": "float32"},
        {"dtype": None, "out_dtype": None},
        {"base": TensorRef(model="base", name="t")},
        {"sources": (TensorRef(model="a", name="t"),) * 2},
    ],
)
def test_only_tensors_with_equal_parameters_go_together(changed: dict[str, Any]) -> None:
    assert lengths(job(2), job(3), job(4, **changed), job(5)) == [[2, 3], [4], [5]]
