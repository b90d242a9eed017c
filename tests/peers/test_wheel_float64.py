"""Merges in float64 against the mergekit 0.1.5 wheel: every method whose numbers are not random.

They must agree within 64 ulps of the largest number that went into an element: sums over a tensor are added
up in another order. Numbers are random float64 ones, so that none lies at a threshold,
but for Arcee Fusion's, which follows from quartiles (one element in 500 allowed, as in other dtypes).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.merge_engine import toy
from tests.peers.tensor_models import DTYPES, Models, Tensors, added, random_tensors, wheel
from tests.peers.test_wheel import our_merge, wheel_merge

WEIGHTS = (0.3, 0.5, -0.45)
DENSITIES = {"density": (0.3, 0.5, 0.7)}
METHODS: list[tuple[str, dict[str, Any], int, bool]] = [
    ("linear", {"weight": WEIGHTS}, 3, False),
    ("task_arithmetic", {"weight": WEIGHTS, "lambda": 0.7, "normalize": True}, 3, True),
    ("ties", {"weight": WEIGHTS, **DENSITIES, "rescale": True, "lambda": 0.7}, 3, True),
    ("breadcrumbs", {"weight": WEIGHTS, **DENSITIES, "gamma": (0.1, 0.2, 0.0)}, 3, True),
    ("breadcrumbs_ties", {"weight": WEIGHTS, **DENSITIES, "gamma": (0.1, 0.2, 0.0)}, 3, True),
    ("dare_linear", {"weight": WEIGHTS, "density": (1.0, 1.0, 1.0)}, 3, True),
    ("della", {"weight": WEIGHTS, "density": (1.0, 1.0, 1.0), "lambda": 0.7}, 3, True),
    ("sce", {"select_topk": 0.4}, 3, True),
    ("ram", {"epsilon": 0.3}, 3, True),
    ("nuslerp", {"weight": (0.3, 0.7)}, 2, True),
    ("nuslerp", {"weight": (0.3, 0.7), "nuslerp_flatten": False}, 2, False),
    ("multislerp", {"weight": (0.3, 0.5, 0.45)}, 3, False),
    ("karcher", {}, 3, False),
    ("model_stock", {}, 3, True),
    ("nearswap", {"t": 0.03}, 1, True),
    ("arcee_fusion", {}, 1, True),
    ("slerp", {"t": 0.3}, 1, True),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    def exact(seed: int, scale: float) -> Tensors:
        coarse, fine = random_tensors(seed, scale), random_tensors(seed + 100, scale * 2.0**-24)
        return {name: tensor.double() + fine[name].double() for name, tensor in coarse.items()}

    base = exact(0, 1.0)
    tensors = [base, *(added(base, exact(seed, 0.3)) for seed in (1, 2, 3))]
    return Models(tmp_path_factory.mktemp("models"), tensors, (torch.float64,) * 4)


@pytest.mark.parametrize(("method", "parameters", "count", "based"), METHODS)
def test_methods(
    models: Models, method: str, parameters: dict[str, Any], count: int, based: bool, monkeypatch: Any
) -> None:
    monkeypatch.setitem(DTYPES, "float64", torch.float64)
    ours = models.ours(method, "float64", parameters, count, based)
    for name, tensor in ours.items():
        if not tensor.numel():
            continue  # an error in the wheel
        inputs = models.inputs(name, "float64", count, based)
        theirs = wheel(inputs, method, parameters, based, torch.float64)
        assert tensor.dtype == theirs.dtype == torch.float64
        size = torch.stack([x.abs() for x in inputs]).amax(dim=0)
        apart = (tensor - theirs).abs() > 2.0**-46 * size
        at_threshold = max(tensor.numel() // 500, 1) if method == "arcee_fusion" else 0
        assert int(apart.sum()) <= at_threshold, name


@pytest.mark.parametrize("dtype", ["float64", None])
def test_dtypes_of_configs(dtype: str | None, tmp_path: Path) -> None:
    """Where the config says so, and where a source has it and the config says nothing."""
    settings = toy.config()
    stored = torch.bfloat16 if dtype else torch.float64
    entries = []
    for seed, (name, kind) in enumerate({"a": torch.bfloat16, "b": stored, "c": torch.float32}.items()):
        tensors = toy.random_tensors(settings, seed, dtype=kind)
        folder = toy.save(tmp_path / name, settings, {key: x * 1.000001 for key, x in tensors.items()})
        entries.append({"model": str(folder), "parameters": {"weight": 0.3 + 0.1 * seed}})
    data = {"merge_method": "linear", "models": entries, **({"dtype": dtype} if dtype else {})}
    theirs, ours = wheel_merge(data, tmp_path / "out"), our_merge(data)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype == torch.float64
        assert torch.allclose(ours[name], tensor, rtol=2.0**-48, atol=2.0**-48)
