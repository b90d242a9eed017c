"""Methods that follow from lengths and angles against the mergekit 0.1.5 wheel, tensor by tensor.

The wheel is run as a black box. NuSLERP, Model Stock, NearSwap, Arcee Fusion and SLERP must give its tensors
within one ulp. Where a cosine lies at the boundary between two numbers of the dtype, the wheel's sums over
the tensor may fall on the other side than ours, and the elements that it changes are off by up to two ulps of
the largest number that went into them: few, and counted. In float32 the wheel's sums are off by up to a
hundred ulps: there it is run in float64, and angles near 0 and 180 degrees leave up to 64 ulps.

Multi-SLERP and Karcher are formed in a wider dtype here and rounded once. The wheel rounds each of its many
steps to the merge dtype: it is itself several ulps from its own float64 computation of the same numbers, the
exact result. Ours must be within one ulp of that, and at least as near to it as the wheel's in every element
in which the two are more than one ulp apart.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.merge_engine import toy
from tests.peers.tensor_models import DTYPES, STORED, Models, Tensors, added, random_tensors, wheel

KINDS = ["random", "near", "mixed", "no base", "zeros and copies"]
FEW = 0.02  # of the elements
WEIGHTS = (0.3, 0.5, 0.45)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Models]:
    @functools.cache
    def make(kind: str) -> Models:
        folder = tmp_path_factory.mktemp(kind)
        base = random_tensors(0, 0.0 if kind == "no base" else 1.0)
        scale = 0.004 if kind == "near" else 0.3
        common = random_tensors(9, scale)
        middle = added(base, common)
        sources = [added(middle, random_tensors(seed, scale)) for seed in (1, 2, 3)]
        stored = STORED["mixed" if kind == "mixed" else "one"]
        if kind == "zeros and copies":
            sources = _degenerate(base, sources)
        return Models(folder, [base, *sources], stored)

    return make


def _degenerate(base: Tensors, sources: Sequence[Tensors]) -> list[Tensors]:
    """Task vectors and models that are zero, equal, or multiples of each other; some zero rows."""
    first, second, third = (dict(source) for source in sources)
    first["matrix"] = base["matrix"].clone()  # a task vector of zeros
    second["vector"] = 2 * first["vector"]
    first["cube"] = second["cube"] = third["cube"] = torch.zeros_like(base["cube"])
    second["column"] = first["column"].clone()
    for tensors in (base, first, second):
        tensors["long"] = tensors["long"].clone()
        tensors["long"][::5] = 0.0
        tensors["long"][:, 7] = 0.0
    second["long"][1::5] = 3 * first["long"][1::5]
    return [first, second, third]


def reference(
    inputs: Sequence[Tensor], method: str, parameters: Mapping[str, Any], based: bool, dtype: torch.dtype
) -> Tensor:
    """What the wheel gives, computed in float64 for float32."""
    wide = torch.float64 if dtype == torch.float32 else dtype
    return wheel([tensor.to(wide) for tensor in inputs], method, parameters, based, wide).to(dtype)


def assert_near(ours: Tensor, theirs: Tensor, inputs: Sequence[Tensor], what: str, few: float = FEW) -> None:
    """Within one ulp, or for few elements within what the largest number that went into it allows."""
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    apart = toy.ulps(ours, theirs) > 1
    slack = 64 if ours.dtype == torch.float32 else 2.01
    limit = slack * torch.finfo(ours.dtype).eps * largest(inputs)
    beyond = apart & ((ours.double() - theirs.double()).abs() > limit)
    assert not bool(beyond.any()), f"{what}: {int(beyond.sum())} of {apart.numel()} elements differ"
    if ours.dtype != torch.float32:
        assert int(apart.sum()) <= few * max(apart.numel(), 100), f"{what}: {int(apart.sum())} exceptions"


def largest(inputs: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.abs().double() for tensor in inputs]).amax(dim=0)


NUSLERP: list[dict[str, Any]] = [
    {},
    {"nuslerp_flatten": False},
    {"nuslerp_flatten": False, "nuslerp_row_wise": True},
    {"nuslerp_row_wise": True},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("based", [True, False])
def test_nuslerp(models: Callable[[str], Models], kind: str, dtype: str, based: bool) -> None:
    made = models(kind)
    for shared in NUSLERP:
        for weights in ((0.3, 0.7), (0.9, -0.2)) if shared else ((0.3, 0.7), (0.5, -0.5), (1.0, 0.0)):
            parameters = {"weight": weights, **shared}
            ours = made.ours("nuslerp", dtype, parameters, 2, based)
            for name, tensor in ours.items():
                inputs = made.inputs(name, dtype, 2, based)
                theirs = reference(inputs, "nuslerp", parameters, based, DTYPES[dtype])
                assert_near(tensor, theirs, inputs, f"{name}, {parameters}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [2, 3])
def test_model_stock(models: Callable[[str], Models], kind: str, dtype: str, count: int) -> None:
    made = models(kind)
    few = 0.3 if kind == "zeros and copies" else FEW  # the wheel's cosine of equal rows may not be 1
    for parameters in ({}, {"filter_wise": True}):
        ours = made.ours("model_stock", dtype, parameters, count, True)
        for name, tensor in ours.items():
            if (kind, dtype, name) == ("zeros and copies", "float16", "long"):
                continue  # float16 does not hold the wheel's inner products
            if name == "column" and parameters:
                continue  # cosines of single numbers are 1 or -1, of which the share makes anything
            inputs = made.inputs(name, dtype, count, True)
            theirs = reference(inputs, "model_stock", parameters, True, DTYPES[dtype])
            assert_near(tensor, theirs, inputs, f"{name}, {parameters}", few)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nearswap(models: Callable[[str], Models], kind: str, dtype: str) -> None:
    made = models(kind)
    for t in (0.0, 1e-4, 0.03, 2.0):
        if t == 0.0 and dtype == "float16":
            continue  # NaN in the wheel, see below
        ours = made.ours("nearswap", dtype, {"t": t}, 1, True)
        for name, tensor in ours.items():
            inputs = made.inputs(name, dtype, 1, True)
            assert_near(
                tensor, reference(inputs, "nearswap", {"t": t}, True, DTYPES[dtype]), inputs, f"{name}, {t}"
            )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_arcee_fusion(models: Callable[[str], Models], kind: str, dtype: str) -> None:
    """One element in 500 may lie at the threshold: then one of the two gives the base's."""
    made = models(kind)
    ours = made.ours("arcee_fusion", dtype, {}, 1, True)
    for name, tensor in ours.items():
        if not tensor.numel():
            continue  # an error in the wheel
        inputs = made.inputs(name, dtype, 1, True)
        theirs = wheel(inputs, "arcee_fusion", {}, True, DTYPES[dtype]).to(tensor.dtype)
        apart = toy.ulps(tensor, theirs) > 1
        assert int(apart.sum()) <= max(tensor.numel() / 500, 1), name
        assert bool(((theirs == inputs[0]) | (tensor == inputs[0]))[apart].all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_slerp(models: Callable[[str], Models], kind: str, dtype: str) -> None:
    made = models(kind)
    for t in (0.0, 0.3, 1.0, 1.25, -0.5):
        ours = made.ours("slerp", dtype, {"t": t}, 1, True)
        for name, tensor in ours.items():
            inputs = made.inputs(name, dtype, 1, True)
            assert_near(
                tensor, reference(inputs, "slerp", {"t": t}, True, DTYPES[dtype]), inputs, f"{name}, {t}"
            )


SPHERICAL: dict[str, list[tuple[dict[str, Any], bool]]] = {
    "multislerp": [
        ({"weight": WEIGHTS}, False),
        ({"weight": WEIGHTS}, True),
        ({"weight": (0.3, -0.2, 0.9), "normalize_weights": False}, True),
        ({"weight": WEIGHTS, "eps": 1e-6}, False),
    ],
    "karcher": [({}, False), ({"max_iter": 1}, False), ({"max_iter": 100, "tol": 1e-3}, False)],
}


@pytest.mark.parametrize("kind", ["random", "near", "mixed", "no base"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", SPHERICAL)
def test_spherical_means(models: Callable[[str], Models], kind: str, dtype: str, method: str) -> None:
    made = models(kind)
    for parameters, based in SPHERICAL[method]:
        ours = made.ours(method, dtype, parameters, 3, based)
        for name, tensor in ours.items():
            if not tensor.numel():
                continue  # an error in the wheel
            inputs = made.inputs(name, dtype, 3, based)
            exact = wheel([x.double() for x in inputs], method, parameters, based, torch.float64)
            theirs = wheel(inputs, method, parameters, based, DTYPES[dtype])
            ours_off, theirs_off = ((x.double() - exact).abs() for x in (tensor, theirs))
            apart = toy.ulps(tensor, theirs) > 1
            nearer = (ours_off <= theirs_off) | theirs_off.isnan()  # of float16 numbers, see below
            assert bool(nearer[apart].all()), f"{name}, {parameters}"
            info, size = torch.finfo(tensor.dtype), largest(inputs)
            cancels = 2.0**-21 if tensor.dtype != torch.float32 else 0.0  # what fp32 sums leave of a number
            limit = info.eps * (exact.abs() + info.tiny) + cancels * size
            assert bool((ours_off <= limit).all()), f"{name}, {parameters}"
            assert dtype != "bfloat16" or float((theirs_off / size).max()) < 8 * info.eps


def test_spherical_means_of_degenerate_tensors(models: Callable[[str], Models]) -> None:
    """Zeros have no direction; the wheel agrees wherever it gives a result (see the next test)."""
    made = models("zeros and copies")
    for method, parameters in (("karcher", {}), ("multislerp", {"weight": WEIGHTS})):
        ours = made.ours(method, "float32", parameters, 3, False)
        for name in ("matrix", "vector", "column", "long"):
            inputs = made.inputs(name, "float32", 3, False)
            assert_near(ours[name], reference(inputs, method, parameters, False, torch.float32), inputs, name)
        assert not bool(ours["cube"].any())


class TestWhereTheWheelIsWrong:
    """What the wheel does with some tensors, so that we notice if that changes, and what is right."""

    def test_unchanged_tensors_of_three_models_stop_multislerp(
        self, models: Callable[[str], Models], tmp_path: Path
    ) -> None:
        base = random_tensors(0, 1.0)
        made = Models(tmp_path, [base] * 4, STORED["one"])
        inputs = made.inputs("matrix", "bfloat16", 3, True)
        with pytest.raises(ValueError, match="weighted sum of the input tensors is zero"):
            wheel(inputs, "multislerp", {"weight": WEIGHTS}, True, torch.bfloat16)
        ours = made.ours("multislerp", "bfloat16", {"weight": WEIGHTS}, 3, True)
        assert torch.equal(ours["matrix"], inputs[0])

    def test_weights_that_balance_out_give_nan(self, models: Callable[[str], Models]) -> None:
        made = models("random")
        parameters = {"weight": (0.5, -0.5)}
        inputs = made.inputs("matrix", "float32", 2, False)
        assert bool(wheel(inputs, "multislerp", parameters, False, torch.float32).isnan().all())
        ours = made.ours("multislerp", "float32", parameters, 2, False)["matrix"]
        plain = wheel(inputs, "multislerp", {**parameters, "normalize_weights": False}, False, torch.float32)
        assert_near(ours, plain, inputs, "as without normalize_weights")

    def test_parallel_float16_tensors_give_nan(self, tmp_path: Path) -> None:
        """The eps that keeps multislerp's divisors from zero is itself zero in float16."""
        made = Models(tmp_path, [random_tensors(seed, 1.0) for seed in range(4)], (torch.float16,) * 4)
        inputs, parameters = made.inputs("one", "float16", 3, False), {"weight": WEIGHTS}
        assert bool(wheel(inputs, "multislerp", parameters, False, torch.float16).isnan().all())
        exact = wheel([x.double() for x in inputs], "multislerp", parameters, False, torch.float64)
        ours = made.ours("multislerp", "float16", parameters, 3, False)["one"]
        assert torch.equal(ours, exact.to(torch.float16))

    def test_a_model_and_its_opposite_give_noise(self, tmp_path: Path) -> None:
        """Rounding decides whether the wheel's fp32 cosine is -1; if not, it divides rounding errors."""
        base = random_tensors(0, 1.0)
        opposite = {name: -tensor for name, tensor in base.items()}
        made = Models(tmp_path, [base, base, opposite, base], (torch.float32,) * 4)
        inputs = made.inputs("column", "float32", 2, False)
        assert float((wheel(inputs, "karcher", {}, False, torch.float32) - inputs[0]).abs().max()) > 1.0
        ours = made.ours("karcher", "float32", {}, 2, False)["column"]
        assert_near(ours, inputs[0], inputs, "karcher")
        inputs, parameters = made.inputs("vector", "float32", 2, False), {"weight": (0.25, 0.75)}
        ratio = wheel(inputs, "nuslerp", parameters, False, torch.float32) / inputs[0]
        assert bool((ratio < -0.7).all())
        ours = made.ours("nuslerp", "float32", parameters, 2, False)["vector"]
        assert_near(ours, -0.5 * inputs[0], inputs, "nuslerp")

    def test_nearswap_of_equal_float16_elements_is_nan_for_t_0(self, models: Callable[[str], Models]) -> None:
        made = models("near")
        inputs = made.inputs("long", "float16", 1, True)
        theirs = wheel(inputs, "nearswap", {"t": 0.0}, True, torch.float16)
        assert bool(theirs.isnan().any())
        assert torch.equal(made.ours("nearswap", "float16", {"t": 0.0}, 1, True)["long"], inputs[0])

    def test_float16_inner_products_overflow_in_model_stock(self, tmp_path: Path) -> None:
        base = random_tensors(0, 0.1)
        common, own = random_tensors(1, 4.0), [random_tensors(seed, 2.0) for seed in (2, 3, 4)]
        sources = [{name: common[name] + delta for name, delta in tensors.items()} for tensors in own]
        made = Models(tmp_path, [base, *sources], (torch.float16,) * 4)
        inputs = made.inputs("long", "float16", 3, True)
        assert bool(wheel(inputs, "model_stock", {}, True, torch.float16).isnan().all())
        exact = wheel([x.to(torch.float32) for x in inputs], "model_stock", {}, True, torch.float32)
        ours = made.ours("model_stock", "float16", {}, 3, True)["long"]
        assert float((ours.float() - exact).abs().max()) < 0.02

    def test_karcher_drops_short_vectors(self, tmp_path: Path) -> None:
        """The wheel takes tensors that are shorter than ``tol`` for zeros: two of them merge to zeros."""
        small = [{name: x * 1e-9 for name, x in random_tensors(seed, 1.0).items()} for seed in (0, 1, 2, 3)]
        made = Models(tmp_path, small, (torch.float32,) * 4)
        inputs = made.inputs("matrix", "float32", 2, False)
        assert not bool(wheel(inputs, "karcher", {}, False, torch.float32).any())
        scaled = [x * 2.0**40 for x in inputs]
        ours = made.ours("karcher", "float32", {}, 2, False)["matrix"] * 2.0**40
        assert_near(ours, reference(scaled, "karcher", {}, False, torch.float32), scaled, "karcher")
