"""Work is shared out to threads: everything once, in order, errors included."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from merge_engine.threads import mapped
from tests.threads import torch_threads


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    with torch_threads(3):
        yield


def slow_square(number: int) -> int:
    time.sleep(0.002 * (number % 3))
    return number * number


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_results_come_in_order(count: int) -> None:
    assert mapped(slow_square, range(count)) == [number * number for number in range(count)]


def test_as_many_threads_work_as_torch_would_take_and_this_is_one() -> None:
    meeting = threading.Barrier(3, timeout=30)

    def meet(_: int) -> int:
        meeting.wait()
        return threading.get_ident()

    found = mapped(meet, range(3))
    assert len(set(found)) == 3
    assert threading.get_ident() in found
    assert set(mapped(meet, range(3))) == set(found), "threads stay"


def test_work_within_work_ends() -> None:
    inner = mapped(lambda number: sum(mapped(slow_square, range(number))), range(12))
    assert inner == [sum(n * n for n in range(number)) for number in range(12)]


@pytest.mark.parametrize("bad", [0, 7, 19])
def test_an_error_comes_through(bad: int) -> None:
    def fails(number: int) -> int:
        if number == bad:
            raise ValueError(f"number {number}")
        return slow_square(number)

    with pytest.raises(ValueError, match=f"number {bad}"):
        mapped(fails, range(20))
    assert mapped(slow_square, range(4)) == [0, 1, 4, 9]


def test_a_forked_process_has_threads_of_its_own() -> None:
    mapped(slow_square, range(9))
    child = os.fork()
    if child == 0:
        os._exit(0 if mapped(slow_square, range(9)) == [n * n for n in range(9)] else 1)
    until_s = time.monotonic() + 30
    while time.monotonic() < until_s:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0
            return
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child waits for threads that it does not have")
