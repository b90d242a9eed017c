"""C++ and numpy count alike, in every dtype and for numbers of every kind."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from merge_engine import counting
from merge_engine.compile_kernel import compiler
from merge_engine.counting import BINS, COMPILED_FROM_ELEMENTS, Counter, Differences, bins_of

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
ELEMENTS = COMPILED_FROM_ELEMENTS + 77


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of its own, so that `counting.cpp` is compiled here."""
    if compiler() is None:
        pytest.skip("no C++ compiler")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MERGEVOLVE_CACHE", str(tmp_path_factory.mktemp("cache")))
        library = counting._Library()
        assert library.functions(worth=False) is None
        assert library.functions(worth=True) is not None
        patch.setattr(counting, "_LIBRARY", library)
        yield


def numbers(seed: int, dtype: torch.dtype) -> Tensor:
    """Ordinary ones, runs of equal ones, zeros of both signs, subnormal and infinite ones."""
    x_N = torch.randn(ELEMENTS, generator=torch.Generator().manual_seed(seed)) * 0.02
    x_N[1000:5000] = 0.5
    x_N[5000:6000:2] = -0.0
    x_N[6000:7000] *= 1e-39
    x_N[7000:7010] = float("inf")
    return x_N.to(dtype)


def differences(x_N: Tensor, base_N: Tensor | None, dtype: torch.dtype) -> Differences:
    base = None if base_N is None else (lambda where: base_N[where])
    return Differences(x=lambda where: x_N[where], base=base, dtype=dtype, elements=len(x_N))


@pytest.mark.parametrize(("stored", "merge"), list(itertools.product(DTYPES, DTYPES)))
def test_differences_are_counted_and_found_alike(stored: torch.dtype, merge: torch.dtype) -> None:
    both = differences(numbers(0, stored), numbers(1, stored).nan_to_num(posinf=1.0), merge)
    fast, plain = Counter("auto"), Counter("never")
    for start, stop in ((0, ELEMENTS), (3, 5001), (70, 70)):
        assert np.array_equal(fast.count(both, start, stop), plain.count(both, start, stop))
    bins = bins_of(both(slice(None)))
    for place in (0, 2500, 65_537, ELEMENTS - 1):
        wanted = int((bins[3 : place + 1] == bins[place]).sum())
        where = (both, 3, ELEMENTS, int(bins[place]), max(wanted, 1))
        assert fast.find(*where) == plain.find(*where)
        assert plain.find(*where) == place or place < 3


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64, torch.float8_e4m3fn])
def test_the_largest_magnitude(dtype: torch.dtype) -> None:
    x_N = numbers(0, torch.float32).nan_to_num(posinf=-3.0).to(dtype)
    found = {policy: Counter(policy).largest(x_N) for policy in ("auto", "never")}  # type: ignore[arg-type]
    assert set(found.values()) == {0x4040}
    for number in (torch.inf, torch.nan):
        if dtype != torch.float8_e4m3fn or number != torch.inf:  # it has none
            x_N[-1] = number
            assert all(Counter(policy).largest(x_N) >= 0x7F80 for policy in ("auto", "never"))  # type: ignore[arg-type]
    assert Counter("auto").largest(x_N[:0]) == 0


def test_variances_have_no_base() -> None:
    alone = differences(numbers(0, torch.bfloat16), None, torch.bfloat16)
    counts = Counter("auto").count(alone, 0, ELEMENTS)
    assert counts.shape == (BINS,)
    assert np.array_equal(counts, Counter("never").count(alone, 0, ELEMENTS))


def test_mixed_dtypes_are_counted_as_they_are_merged() -> None:
    mixed = differences(numbers(0, torch.float32), numbers(1, torch.bfloat16), torch.bfloat16)
    assert np.array_equal(Counter("auto").count(mixed, 0, 999), Counter("never").count(mixed, 0, 999))


def test_without_a_compiler_numpy_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGEVOLVE_CACHE", str(tmp_path))
    monkeypatch.setattr(counting, "_LIBRARY", counting._Library())
    monkeypatch.setenv("CXX", "false")  # refuses whatever it is given
    both = differences(numbers(0, torch.bfloat16), None, torch.bfloat16)
    counts = Counter("auto").count(both, 0, ELEMENTS)
    assert np.array_equal(counts, Counter("never").count(both, 0, ELEMENTS))
    assert not any((tmp_path / "kernels").iterdir())
