"""Kernels by themselves: golden values from the papers' formulas in fp64, and properties."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from merge_engine.methods.dare import dare
from merge_engine.methods.linear import linear
from merge_engine.methods.passthrough import passthrough
from merge_engine.methods.random_field import field_key, field_N, limit
from merge_engine.methods.rounding import rounded
from merge_engine.methods.slerp import slerp, slerp_parts
from merge_engine.methods.table import FAMILIES
from merge_engine.methods.task_arithmetic import task_arithmetic
from merge_engine.methods.ties import ties
from merge_engine.methods.trimming import l1_gain
from merge_engine.spec.methods import METHODS

FIRST = torch.tensor(0, dtype=torch.int32)
F32 = torch.float32
KEYS = torch.tensor([field_key(0, name, "t", 0) for name in "abc"], dtype=torch.int32)


def models(count: int = 4, elements: int = 1000, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(elements, generator=generator)
    return [base, *(base + 0.3 * torch.randn(elements, generator=generator) for _ in range(count - 1))]


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F32)


def field_limits(densities: Tensor) -> Tensor:
    return torch.tensor([limit(1 - float(density)) for density in densities], dtype=F32)


def close(merged: Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(merged.numpy(), expected, rtol=2e-5, atol=2e-6)


def doubles(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    return [tensor.double().numpy() for tensor in tensors]


def test_every_method_of_the_table_has_a_kernel() -> None:
    assert set(FAMILIES) == set(METHODS)


def test_linear_is_the_weighted_mean() -> None:
    sources = models()
    weights = (0.2, 0.5, -0.1, 0.7)
    expected = sum(w * x for w, x in zip(weights, doubles(sources), strict=True))
    close(linear(sources, None, FIRST, F32, vector(*weights), None), expected)
    close(
        linear(sources, None, FIRST, F32, vector(*weights), vector(*weights).sum()), expected / sum(weights)
    )


def test_task_arithmetic_adds_task_vectors() -> None:
    base, *sources = models()
    base_d, *sources_d = doubles([base, *sources])
    mixed = sum(w * (x - base_d) for w, x in zip((0.2, -0.5, 0.9), sources_d, strict=True))
    close(
        task_arithmetic(sources, base, FIRST, F32, vector(0.2, -0.5, 0.9), None, torch.tensor(0.7)),
        base_d + 0.7 * mixed,
    )


def test_ties_is_algorithm_1() -> None:
    base, *sources = models()
    weights, thresholds = (0.2, 0.5, 0.9), (0.1, 0.3, 0.2)
    base_d, *sources_d = doubles([base, *sources])
    deltas = [x - base_d for x in sources_d]
    terms = [w * d * (abs(d) >= t) for w, d, t in zip(weights, deltas, thresholds, strict=True)]
    expected = base_d.copy()
    for i in range(len(base_d)):
        sign = 1.0 if sum(term[i] for term in terms) >= 0 else -1.0
        agreeing = [(term[i], w) for term, w in zip(terms, weights, strict=True) if term[i] * sign > 0]
        if agreeing:
            expected[i] += 0.8 * sum(term for term, _ in agreeing) / sum(w for _, w in agreeing)
    limits = tuple(torch.tensor(t) for t in thresholds)
    close(ties(sources, base, FIRST, F32, vector(*weights), limits, None, True, torch.tensor(0.8)), expected)
    doubled = ties(
        sources, base, FIRST, F32, vector(*weights), limits, vector(2, 2, 2), True, torch.tensor(0.4)
    )
    close(doubled, expected)


def test_the_ties_gain_is_rounded_as_the_merge_dtype_holds_it() -> None:
    assert l1_gain(3.0, 2.0, F32) == 1.5
    assert l1_gain(1.004, 1.0, torch.bfloat16) == 1.0078125
    assert l1_gain(2e5, 1e5, torch.float16) == 2.0  # sums that float16 does not hold
    assert l1_gain(1e-6, 1e-8, F32) == 1.0  # too little to say


@pytest.mark.parametrize("elect", [False, True])
def test_dare_drops_and_rescales_what_the_field_says(elect: bool) -> None:
    base, *sources = models()
    weights, densities = (0.2, 0.5, 0.9), (0.3, 0.5, 0.8)
    base_d, *sources_d = doubles([base, *sources])
    uniforms = [field_N(FIRST, len(base_d), key).numpy() / 2**32 + 0.5 for key in KEYS]
    terms = [
        w * (x - base_d) * (u >= np.float32(1 - p)) / p
        for w, x, u, p in zip(weights, sources_d, uniforms, densities, strict=True)
    ]
    if elect:
        sign = np.where(sum(terms) >= 0, 1.0, -1.0)
        terms = [term * (term * sign > 0) for term in terms]
    gains = vector(*(1 / p for p in densities))
    arguments = (vector(*weights), KEYS, field_limits(vector(*densities)), gains, elect, False, None)
    close(dare(sources, base, FIRST, F32, *arguments), base_d + sum(terms))


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
def test_slerp_follows_the_arc(t: float) -> None:
    base, source = models(2)
    base_d, source_d = doubles([base, source])
    cosine = base_d @ source_d / np.linalg.norm(base_d) / np.linalg.norm(source_d)
    angle = math.acos(cosine)
    expected = (math.sin((1 - t) * angle) * base_d + math.sin(t * angle) * source_d) / math.sin(angle)
    parts = map(torch.tensor, slerp_parts(t, float(cosine)))
    close(slerp([source], base, FIRST, F32, *parts), expected)


def test_slerp_of_parallel_tensors_is_linear() -> None:
    assert slerp_parts(0.25, 1.0) == (0.75, 0.25)
    assert slerp_parts(0.25, 0.9996) == (0.75, 0.25)
    assert slerp_parts(0.25, -1.0) == (0.75, 0.25)


def test_passthrough_scales() -> None:
    (source,) = models(1)
    assert torch.equal(passthrough([source], None, FIRST, F32, None), source)
    close(passthrough([source], None, FIRST, F32, torch.tensor(0.7)), 0.7 * source.double().numpy())


def _merge(
    name: str, sources: list[Tensor], base: Tensor, weights: Tensor, order: list[int], dtype: torch.dtype
) -> Tensor:
    """Any method of several models, on models in the given order."""
    sources, weights = [sources[i] for i in order], weights[order]
    if name == "linear":
        return linear(sources, None, FIRST, dtype, weights, None)
    if name == "task_arithmetic":
        return task_arithmetic(sources, base, FIRST, dtype, weights, weights.sum(), None)
    if name == "ties":
        limits = tuple(torch.tensor((0.1, 0.2, 0.3)[i]) for i in order)
        return ties(sources, base, FIRST, dtype, weights, limits, None, True, None)
    densities, elect = vector(0.3, 0.5, 0.8)[order], name == "dare_ties"
    return dare(
        sources,
        base,
        FIRST,
        dtype,
        weights,
        KEYS[order],
        field_limits(densities),
        1 / densities,
        elect,
        True,
        None,
    )


@pytest.mark.parametrize("name", ["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"])
def test_models_permute_with_their_parameters(name: str) -> None:
    base, *sources = models()
    weights = vector(0.2, 0.5, 0.9)
    merged = _merge(name, sources, base, weights, [0, 1, 2], F32)
    for order in ([1, 0, 2], [2, 1, 0]):
        torch.testing.assert_close(
            _merge(name, sources, base, weights, order, F32), merged, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, F32])
@pytest.mark.parametrize("name", ["linear", "task_arithmetic"])
def test_all_weight_on_one_model_gives_it_back(name: str, dtype: torch.dtype) -> None:
    # Doubled bases: the differences from them are exact, so that adding them back is too.
    sources = [tensor.to(dtype) for tensor in models()[1:]]
    base = 2 * sources[1]
    merged = _merge(name, sources, base, vector(0.0, 1.0, 0.0), [0, 1, 2], dtype)
    assert torch.equal(merged.to(dtype), sources[1])


@pytest.mark.parametrize("name", ["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, F32])
def test_merging_a_model_with_itself_changes_nothing(name: str, dtype: torch.dtype) -> None:
    model = models(1)[0].to(dtype)
    weights = vector(0.25, 0.5, 0.25)
    assert torch.equal(_merge(name, [model] * 3, model, weights, [0, 1, 2], dtype).to(dtype), model)


@pytest.mark.parametrize("family", ["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"])
def test_inputs_are_never_changed(family: str) -> None:
    base, *sources = models()
    before = [tensor.clone() for tensor in (base, *sources)]
    _merge(family, sources, base, vector(0.2, 0.5, 0.9), [0, 1, 2], F32)
    assert all(torch.equal(a, b) for a, b in zip(before, (base, *sources), strict=True))


@pytest.fixture
def as_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the ways that kernels take under `torch.compile`."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


@pytest.mark.usefixtures("as_compiled")
def test_rounding_to_bfloat16_takes_every_tie_to_even() -> None:
    bits = torch.arange(
        0x3F800000, 0x40800000, 0x8000, dtype=torch.int32
    )  # all ties and all values of [1, 4)
    near = torch.cat([bits - 1, bits, bits + 1]).view(F32)
    for x in (near, -near, near * 2.0**-126, near * 2.0**108):
        assert rounded(x, torch.bfloat16).dtype == F32
        assert torch.equal(rounded(x, torch.bfloat16), x.to(torch.bfloat16).to(F32))


@pytest.mark.usefixtures("as_compiled")
def test_rounding_to_bfloat16_is_the_conversion_for_random_numbers() -> None:
    bits = torch.randint(0x00800000, 0x77000000, (200_000,), generator=torch.Generator().manual_seed(0))
    x = bits.to(torch.int32).view(F32)
    assert torch.equal(rounded(x, torch.bfloat16), x.to(torch.bfloat16).to(F32))


@pytest.mark.usefixtures("as_compiled")
@pytest.mark.parametrize("name", ["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"])
def test_both_ways_of_rounding_give_one_result(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base, *sources = [tensor.to(torch.bfloat16) for tensor in models()]
    weights = vector(0.2, 0.5, 0.9)
    compiled = _merge(name, sources, base, weights, [0, 1, 2], torch.bfloat16)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: False)
    eager = _merge(name, sources, base, weights, [0, 1, 2], torch.bfloat16)
    assert torch.equal(compiled.to(torch.bfloat16), eager.to(torch.bfloat16))
