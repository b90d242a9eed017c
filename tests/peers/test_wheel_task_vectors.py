"""Methods on task vectors against the mergekit 0.1.5 wheel, tensor by tensor, run as a black box.

They must agree within one ulp of the output dtype, except at elements that the tests find by themselves:
those whose magnitude or variance ties with a threshold, and those whose sign vote lies within rounding of
zero. In fp32, where sums are added up in another order, within one ulp of the largest number that went into
the element. Factors that come from sums over a tensor may be rounded either way where the exact one lies
within the error of such sums of a rounding boundary. Random methods must agree in distribution.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_engine.engine import Engine
from merge_engine.spec.recipe import parse_recipe
from tests.merge_engine import toy
from tests.peers.tensor_models import (
    DTYPES,
    SHAPES,
    STORED,
    Models,
    added,
    few_magnitudes,
    named,
    random_tensors,
    wheel,
)

EXCUSED_ALLOWED = {True: 0.15, False: 0.8}  # of all elements: of random numbers, and where most of them tie
WEIGHTS = (0.3, 0.5, -0.45)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Models]:
    """Models by kind: random or of few magnitudes, with a base or without, stored in one dtype or more."""

    @functools.cache
    def make(kind: str) -> Models:
        folder = tmp_path_factory.mktemp(kind)
        few = kind.startswith("few")
        base = random_tensors(0, 0.0 if kind.endswith("no base") else 1.0)
        deltas = [few_magnitudes(seed) if few else random_tensors(seed, 0.3) for seed in (1, 2, 3)]
        stored = STORED["one" if kind == "random" else "mixed"]
        return Models(folder, [base, *(added(base, delta) for delta in deltas)], stored)

    return make


KINDS = ["random", "mixed", "no base", "few", "few, no base"]


def compare(
    ours: Tensor,
    theirs: Tensor,
    size_N: Tensor,
    excused_N: Tensor,
    *,
    is_random: bool = True,
    more_N: Tensor | None = None,
) -> None:
    """``size_N``: the size of the largest number in each element; ``more_N``: what may be added to an ulp."""
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    apart_N = toy.ulps(ours.flatten(), theirs.flatten()) > 1
    if ours.dtype == torch.float32:
        apart_N &= (ours.flatten() - theirs.flatten()).abs().double() > 2.0**-22 * size_N
    if more_N is not None:
        ulp_N = torch.finfo(ours.dtype).eps * ours.flatten().double().abs()
        apart_N &= (ours.flatten().double() - theirs.flatten().double()).abs() > more_N + ulp_N
    apart_N &= ~excused_N
    assert not bool(apart_N.any()), f"{int(apart_N.sum())} of {apart_N.numel()} elements differ"
    assert int(excused_N.sum()) <= EXCUSED_ALLOWED[is_random] * max(excused_N.numel(), 200)


def sizes(models: Models, name: str, dtype: str) -> Tensor:
    everything = [tensor.flatten() for tensor in models.inputs(name, dtype)]
    return torch.stack([x.abs().double() for x in (*everything, *models.deltas(name, dtype))]).amax(dim=0)


def tied_N(delta_N: Tensor, counts: Sequence[int]) -> Tensor:
    """Elements whose magnitude is that of one of the last to be among the ``counts`` largest."""
    size_N = delta_N.abs().double()
    order = size_N.sort(descending=True).values
    tied = torch.zeros(len(size_N), dtype=torch.bool)
    for count in counts:
        if 0 < count < len(size_N) and order[count - 1] == order[count]:
            tied |= size_N == order[count - 1]
    return tied


def undecided_N(terms: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Elements whose sum is so near zero that its sign is a matter of rounding."""
    eps = 8 * torch.finfo(dtype).eps
    vote_N, size_N = sum(terms).abs(), sum(term.abs() for term in terms)  # type: ignore[union-attr]
    return (vote_N <= eps * size_N) & (size_N > 0)


def breadcrumbs_counts(elements: int, density: float, gamma: float) -> tuple[int, int]:
    kept = int(density * elements)
    top = min(int(gamma * elements), elements - kept)
    return top, top + kept


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a test finds out about a tensor: which elements may differ, the largest factor on a task vector,
    and how far apart factors may lie, relative to themselves."""

    excused_N: Tensor
    gain: float = 1.0
    apart: float = 0.0


def breadcrumbs_expected(
    deltas: Sequence[Tensor],
    own: Mapping[str, Sequence[float]],
    dtype: torch.dtype,
    *,
    votes: bool,
    rescales: bool,
) -> Expected:
    excused = torch.zeros(len(deltas[0]), dtype=torch.bool)
    terms, gain, apart = [], 1.0, 0.0
    for delta_N, weight, density, gamma in zip(deltas, *own.values(), strict=True):
        counts = breadcrumbs_counts(len(delta_N), density, gamma)
        excused |= tied_N(delta_N, counts)
        rank_N = delta_N.abs().double().argsort(descending=True).argsort()
        kept_N = torch.where((rank_N >= counts[0]) & (rank_N < counts[1]), delta_N, 0).double()
        norms = torch.stack([delta_N.double().abs().sum(), kept_N.abs().sum()])
        gains = [1.0]
        if rescales and norms[1] > 0:
            gains = [float(near[0] / near[1]) for near in (x.to(dtype) for x in summed(norms, dtype))]
            gain = max(gain, gains[0])
            apart = max(apart, *(abs(near / gains[0] - 1) for near in gains))
        terms.append(kept_N * (gains[0] * weight))
    excused = excused | undecided_N(terms, dtype) if votes else excused
    return Expected(excused_N=excused, gain=gain, apart=apart)


def is_beyond(deltas: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether the wheel, which holds norms in the merge dtype, cannot hold one of these."""
    return any(float(delta_N.double().abs().sum()) > torch.finfo(dtype).max for delta_N in deltas)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("densities", "gammas", "shared"),
    [
        ((0.3, 0.5, 0.7), (0.01, 0.2, 0.0), {}),
        ((0.9, 0.97, 1.0), (0.3, 0.01, 0.5), {"normalize": True}),
        ((0.3, 0.2, 0.01), (0.1, 0.9, 0.01), {"rescale": True, "lambda": 0.7, "int8_mask": True}),
    ],
)
@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
def test_breadcrumbs(
    models: Callable[[str], Models],
    kind: str,
    method: str,
    dtype: str,
    densities: tuple[float, ...],
    gammas: tuple[float, ...],
    shared: dict[str, Any],
) -> None:
    made, is_random = models(kind), not kind.startswith("few")
    own = {"weight": WEIGHTS, "density": densities, "gamma": gammas}
    ours = made.ours(method, dtype, {**own, **shared})
    for name in SHAPES:
        theirs = made.theirs(name, method, dtype, {**own, **shared})
        deltas = made.deltas(name, dtype)
        votes, rescales = method == "breadcrumbs_ties", "rescale" in shared
        expected = breadcrumbs_expected(deltas, own, DTYPES[dtype], votes=votes, rescales=rescales)
        size_N = sizes(made, name, dtype)
        if not rescales:
            compare(ours[name], theirs, size_N, expected.excused_N, is_random=is_random)
        elif not is_beyond(deltas, DTYPES[dtype]):
            size_N *= expected.gain
            more_N = expected.apart * size_N
            compare(ours[name], theirs, size_N, expected.excused_N, is_random=is_random, more_N=more_N)


def sce_expected(deltas: Sequence[Tensor], share: float) -> Expected:
    """Elements whose variance is that of the last selected one, within rounding, may be selected or not, and
    their energy counts or does not; and a weight may lie within rounding of a rounding boundary.
    """
    dtype = deltas[0].dtype
    stacked = torch.stack([delta_N.double() for delta_N in deltas])
    variance_N = (stacked - stacked.mean(dim=0)).square().mean(dim=0)
    held_N = variance_N.to(dtype if dtype == torch.bfloat16 else torch.float32).double()
    sure_N, near_N = torch.ones_like(held_N, dtype=torch.bool), torch.zeros_like(held_N, dtype=torch.bool)
    if share < 1.0:
        # float16, in which the wheel takes variances, loses those of small changes
        moved = (int((held_N > 0).sum()), int((held_N.to(dtype) > 0).sum()))
        order = held_N.sort(descending=True).values
        lasts = [float(order[n - 1]) if n else math.inf for n in (int(share * count) for count in moved)]
        info = torch.finfo(dtype)
        low, high = min(lasts) * (1 - 2 * info.eps) - info.tiny * info.eps, max(lasts) * (1 + 2 * info.eps)
        near_N = (held_N >= low) & (held_N <= high) & (held_N > 0)
        sure_N = held_N > high
    terms = list(torch.where(sure_N | near_N, stacked, 0))
    excused_N = near_N | undecided_N(terms, dtype)
    if not bool(sure_N.any()):
        return Expected(excused_N=excused_N)
    energy_M = torch.where(sure_N, stacked, 0).square().sum(dim=1)
    unsure = float((torch.where(near_N, stacked, 0).square().sum(dim=1) / energy_M).max())
    return Expected(excused_N=excused_N, apart=unsure + weights_apart(energy_M / len(held_N), dtype))


def weights_apart(energy_M: Tensor, dtype: torch.dtype) -> float:
    """How far the weights move, relative to themselves, when energies do by the error of such sums."""
    shares = [
        (near_M / near_M.sum()).double() for near_M in (near.to(dtype) for near in summed(energy_M, dtype))
    ]
    return max(float(((share_M - shares[0]).abs() / shares[0]).max()) for share_M in shares)


def summed(sums_K: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """What the wheel may find in place of these sums: float16 and bfloat16 round each number before."""
    by = {torch.float32: 2.0**-21, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-12}[dtype]
    signs = itertools.product((0.0, -by, by), repeat=len(sums_K))
    return [sums_K * (1 + torch.tensor(sign, dtype=torch.float64)) for sign in signs]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [1.0, 0.5, 0.13, 0.0])
def test_sce(models: Callable[[str], Models], kind: str, dtype: str, share: float) -> None:
    made, is_random = models(kind), not kind.startswith("few")
    shared = {"select_topk": share, "int8_mask": True}
    ours = made.ours("sce", dtype, shared)
    for name in SHAPES:
        theirs = made.theirs(name, "sce", dtype, shared)
        deltas = made.deltas(name, dtype)
        base_N = made.tensors[0][name].flatten()
        expected = sce_expected(deltas, share)
        if share < 1.0:
            changed = [int((x.flatten() != base_N.to(x.dtype)).sum()) for x in (ours[name], theirs)]
            assert abs(changed[0] - changed[1]) <= int(expected.excused_N.sum())
        size_N = sizes(made, name, dtype)
        more_N = 2 * expected.apart * size_N
        compare(ours[name], theirs, size_N, expected.excused_N, is_random=is_random, more_N=more_N)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("method", "shared"),
    [
        ("ram", {}),
        ("ram", {"epsilon": 0.3}),
        ("ramplus_tl", {}),
        ("ramplus_tl", {"r": 0.6, "alpha": 3.0, "epsilon": 0.3}),
        ("ramplus_tl", {"r": 1.5, "alpha": 100.0, "epsilon": 0.25}),
    ],
)
def test_ram(
    models: Callable[[str], Models], kind: str, method: str, dtype: str, shared: dict[str, Any]
) -> None:
    made = models(kind)
    ours = made.ours(method, dtype, shared)
    for name in SHAPES:
        theirs = made.theirs(name, method, dtype, shared)
        nothing = torch.zeros(theirs.numel(), dtype=torch.bool)
        largest = 1.0 + shared.get("r", 0.0) * shared.get("alpha", 0.0)
        compare(ours[name], theirs, largest * sizes(made, name, dtype), nothing)


def kept_by_rank(changed: Tensor, delta: Tensor, buckets: int) -> Tensor:
    """The share of elements that are changed, by rank within rows: (buckets,), smallest first."""
    order = delta.abs().argsort(dim=1)
    kept = changed.double().gather(1, order)
    return torch.stack([part.mean() for part in kept.chunk(buckets, dim=1)])


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.2), (0.3, 0.0), (0.7, 0.29), (1.0, 0.15)])
def test_della_in_distribution(tmp_path: Path, rescale: bool, density: float, epsilon: float) -> None:
    """What is kept of each tenth of the ranks of rows, and by how much it is scaled."""
    generator = torch.Generator().manual_seed(5)
    delta = torch.randn(300, 500, generator=generator) * (1 + torch.arange(300.0)).unsqueeze(1)
    tensors = [torch.zeros_like(delta), delta]
    folders = [
        str(toy.save(tmp_path / str(i), toy.config(layers=1), named({"matrix": tensor})))
        for i, tensor in enumerate(tensors)
    ]
    parameters = {"weight": 1.0, "density": density, "epsilon": epsilon}
    data = {
        "merge_method": "della_linear",
        "base_model": folders[0],
        "models": [{"model": folders[1], "parameters": parameters}],
        "parameters": {"rescale": rescale},
        "dtype": "float32",
    }
    ours = dict(Engine(compile="never").stream(parse_recipe(data)))["model.layers.0.matrix.weight"]
    torch.manual_seed(77)
    theirs = wheel(tensors, "della_linear", {**parameters, "rescale": rescale}, True, torch.float32)
    expected = density + epsilon * torch.linspace(-0.9, 0.9, 10) if density < 1 else torch.ones(10)
    gains = []
    for merged in (ours, theirs):
        found = kept_by_rank(merged != 0, delta, 10)
        assert found.tolist() == pytest.approx(expected.tolist(), abs=5 * math.sqrt(0.25 / 15_000))
        factors = (merged / delta)[merged != 0]
        gains.append(float(factors.median()))
        assert float(factors.max() - factors.min()) <= 1e-5 * gains[-1]
    assert gains[0] == pytest.approx(gains[1], rel=0.01)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shared", [{}, {"lambda": 0.7, "normalize": False}, {"rescale": False}])
@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_della_that_drops_nothing(
    models: Callable[[str], Models], method: str, dtype: str, shared: dict[str, Any]
) -> None:
    made = models("mixed")
    own = {"weight": WEIGHTS, "density": (1.0,) * 3}
    ours = made.ours(method, dtype, {**own, **shared})
    for name in ("matrix", "long"):
        theirs = made.theirs(name, method, dtype, {**own, **shared})
        terms = [
            delta_N.double() * weight
            for delta_N, weight in zip(made.deltas(name, dtype), WEIGHTS, strict=True)
        ]
        excused = undecided_N(terms, DTYPES[dtype])
        if method == "della_linear":
            excused &= False
        compare(ours[name], theirs, sizes(made, name, dtype), excused)
