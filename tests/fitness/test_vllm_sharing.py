"""How the workers of an engine divide the making of weights, and what one's failure does to the others."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fitness.errors import StreamError
from fitness.vllm_sharing import Outline, Task, divided
from tests.fitness.vllm_sharing_workers import SIZES, WORKERS, Case, Numbered, Took, taken

WHOLE = [(f"t{i}", [float(i)] * size) for i, size in enumerate(SIZES)]


def loads_of(tasks: list[Task], workers: int) -> list[int]:
    """Bytes that each worker makes."""
    return [sum(task.outline.bytes for task in tasks if task.owner == worker) for worker in range(workers)]


def outlines(sizes: list[int]) -> list[Outline]:
    return [Outline(name=f"t{i}", shape=(size,), dtype=torch.bfloat16) for i, size in enumerate(sizes)]


@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=40), workers=st.integers(1, 9))
def test_everything_is_made_once_in_order_and_nobody_holds_much(sizes: list[int], workers: int) -> None:
    rounds = divided(outlines(sizes), workers)
    assert [task.outline for each in rounds for task in each] == outlines(sizes)
    for each in rounds:
        loads = [
            sum(task.outline.bytes for task in each if task.owner == worker) for worker in range(workers)
        ]
        assert max(loads) <= 2 * 2 * max(sizes)
        assert sum(loads) == sum(task.outline.bytes for task in each)
    assert divided(outlines(sizes), workers) == rounds


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_the_shares_of_a_large_model_are_even(workers: int) -> None:
    """The tensors of a model of 8 B: the embeddings alone are a fifteenth."""
    layer = [4096 * 4096, 1024 * 4096, 1024 * 4096, 4096 * 4096, *[14336 * 4096] * 3, 4096, 4096]
    embeddings = 128_256 * 4096
    rounds = divided(outlines([embeddings, *layer * 32, 4096, embeddings]), workers)
    longest = sum(max(loads_of(each, workers)) for each in rounds)
    assert longest <= 1.1 * sum(task.outline.bytes for each in rounds for task in each) / workers


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[list[Took]]:
    """Of each case, each followed by one in which nothing fails: nobody may be a message ahead."""
    cases = [
        Case(weights=Numbered(broken="t8")),
        Case(),
        Case(weights=Numbered(lost=1)),
        Case(),
        Case(impatient=2, patience=3),
        Case(),
    ]
    return taken(tmp_path_factory.mktemp("workers"), cases)


@pytest.mark.parametrize("case", [1, 3, 5])
def test_every_worker_gets_every_tensor_in_order(found: list[list[Took]], case: int) -> None:
    for took in found[case]:
        took.arrived.check()
        assert took.tensors == WHOLE


def test_an_error_in_one_share_ends_the_stream_everywhere(found: list[list[Took]]) -> None:
    errors = [str(took.arrived.error) for took in found[0] if took.arrived.error]
    assert len(errors) == 1
    assert errors[0].startswith("RuntimeError: t8 broke\nin a worker of the engine:\nTraceback")
    for took in found[0]:
        assert took.tensors == WHOLE[:8]  # those of the round before
        assert took.arrived.problems == ("t8: missing from the stream", "t9: missing from the stream")


def test_a_worker_without_the_models_stops_all_of_them_at_once(found: list[list[Took]]) -> None:
    errors = [took.arrived.error for took in found[2]]
    assert [error is not None for error in errors] == [False, True, False]
    assert str(errors[1]).startswith("FileNotFoundError: no such model here")
    assert isinstance(errors[1], StreamError)
    assert all(took.tensors == [] for took in found[2])


def test_a_loader_that_fails_still_serves_its_share(found: list[list[Took]]) -> None:
    *others, failed = found[4]
    assert str(failed.arrived.error).startswith("MemoryError: no room for it")
    assert failed.tensors == WHOLE[:3]
    assert len(others) == WORKERS - 1
    for took in others:
        took.arrived.check()
        assert took.tensors == WHOLE
