"""Breadcrumbs, DELLA, SCE, RAM, consensus task arithmetic: the papers' formulas in fp64, and the stream."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from merge_engine import groups, magnitudes, row_ranks, runner
from merge_engine.checkpoint_header import open_header
from merge_engine.engine import Engine
from merge_engine.fingerprint import fingerprint
from merge_engine.methods import della, family
from merge_engine.methods.random_field import field_key, field_N
from merge_engine.row_ranks import LEVELS
from merge_engine.spec.methods import METHODS
from merge_engine.spec.recipe import Recipe, parse_recipe
from tests.merge_engine import toy

Array = npt.NDArray[np.float64]
NAMES = [
    "breadcrumbs",
    "breadcrumbs_ties",
    "della",
    "della_linear",
    "sce",
    "ram",
    "ramplus_tl",
    "consensus_ta",
]
OWN: dict[str, list[float]] = {
    "weight": [0.3, 0.5, 0.45],
    "density": [0.3, 0.5, 0.9],
    "gamma": [0.01, 0.1, 0.3],
    "mask_lambda": [0.2, 0.5, 0.9],
}
EPSILONS = [0.1, 0.0, 0.3]
SHARED: dict[str, Any] = {
    "lambda": 0.7,
    "rescale": True,
    "select_topk": 0.6,
    "r": 0.5,
    "alpha": 0.8,
    "min_agreeing": 2,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return toy.family(tmp_path_factory.mktemp("models"), dtype=torch.float32, layers=2)


def recipe(
    method: str,
    models: list[str],
    *,
    own: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    **more: Any,
) -> Recipe:
    """A merge with all parameters that the method has, those of models different for each."""
    known = {parameter.name for parameter in METHODS[method].parameters}
    given = {**OWN, **({"epsilon": EPSILONS} if method.startswith("della") else {}), **(own or {})}
    shared = {**SHARED, **({"epsilon": 0.2} if method.startswith("ram") else {}), **more}
    entries = [
        {
            "model": model,
            "parameters": {name: values[i] for name, values in given.items() if name in known},
        }
        for i, model in enumerate(models[1:])
    ]
    return parse_recipe(
        {
            "merge_method": method,
            "base_model": models[0],
            "models": entries,
            "parameters": {name: value for name, value in shared.items() if name in known},
            "dtype": dtype,
        }
    )


def merged(job: Recipe, **engine: Any) -> dict[str, Tensor]:
    return dict(Engine(compile="never", **engine).stream(job))


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return list(a) == list(b) and all(
        torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)) for name in a
    )


def read(model: str) -> dict[str, Tensor]:
    job = parse_recipe({"merge_method": "passthrough", "models": [{"model": model}], "dtype": "float32"})
    return merged(job)


def task_vectors(models: list[str], name: str) -> tuple[Array, list[Array]]:
    base, *sources = (read(model)[name].double().numpy() for model in models)
    return base, [source - base for source in sources]


def mix(terms: list[Array], votes: bool) -> Array:
    total = np.sum(terms, axis=0)
    if not votes:
        return np.asarray(total)
    sign = np.where(total >= 0, 1.0, -1.0)
    return np.asarray(np.sum([np.where(term * sign > 0, term, 0.0) for term in terms], axis=0))


def golden_breadcrumbs(models: list[str], name: str, *, votes: bool) -> Array:
    base, deltas = task_vectors(models, name)
    terms = []
    for i, delta in enumerate(deltas):
        kept_count = int(OWN["density"][i] * delta.size)
        top = min(int(OWN["gamma"][i] * delta.size), delta.size - kept_count)
        order = np.argsort(-np.abs(delta), axis=None, kind="stable")
        kept = np.zeros(delta.size)
        kept[order[top : top + kept_count]] = delta.flatten()[order[top : top + kept_count]]
        kept *= np.abs(delta).sum() / np.abs(kept).sum()
        terms.append(OWN["weight"][i] * kept.reshape(delta.shape))
    return base + 0.7 * mix(terms, votes)


def golden_della(models: list[str], name: str, *, votes: bool) -> Array:
    base, deltas = task_vectors(models, name)
    terms = []
    for i, delta in enumerate(deltas):
        key = torch.tensor(
            field_key(0, fingerprint(open_header(Path(models[i + 1]))), name, 0), dtype=torch.int32
        )
        field = field_N(torch.tensor(0, dtype=torch.int32), delta.size, key).double()
        u = (field / 2**32 + 0.5).numpy().reshape(delta.shape)
        rows = delta.reshape(1, -1) if delta.ndim == 1 else delta
        share = np.abs(rows).argsort(axis=1).argsort(axis=1) / (rows.shape[1] - 1)
        density, epsilon = OWN["density"][i], min(EPSILONS[i], OWN["density"][i], 1 - OWN["density"][i])
        exact = density - epsilon + 2 * epsilon * share.reshape(delta.shape)
        level = density - epsilon + 2 * epsilon * np.rint(LEVELS * share).reshape(delta.shape) / LEVELS
        assert np.abs(exact - level).max() <= epsilon / LEVELS + 1e-12
        gain = np.abs(delta).sum() / (exact * np.abs(delta)).sum()
        terms.append(OWN["weight"][i] * gain * np.where(u >= 1 - level, delta, 0.0))
    merged_N = mix(terms, votes)
    if votes:  # della normalizes by default
        sign = np.where(np.sum(terms, axis=0) >= 0, 1.0, -1.0)
        shares = np.sum([w * (t * sign > 0) for w, t in zip(OWN["weight"], terms, strict=True)], axis=0)
        merged_N = merged_N / np.where(shares > 0, shares, 1.0)
    return base + 0.7 * merged_N


def golden_sce(models: list[str], name: str) -> Array:
    base, deltas = task_vectors(models, name)
    spread = np.var(deltas, axis=0)
    count = int(0.6 * int((spread > 0).sum()))
    selected = spread >= np.sort(spread, axis=None)[::-1][count - 1]
    deltas = [np.where(selected, delta, 0.0) for delta in deltas]
    energies = np.array([(delta**2).sum() for delta in deltas])
    weights = energies / energies.sum()
    sign = np.where(np.sum(deltas, axis=0) >= 0, 1.0, -1.0)
    agree = [delta * sign > 0 for delta in deltas]
    top = sum(w * np.where(a, d, 0.0) for w, a, d in zip(weights, agree, deltas, strict=True))
    below = sum(w * a for w, a in zip(weights, agree, strict=True))
    return np.asarray(base + top / np.where(below > 0, below, 1.0))


def golden_ram(models: list[str], name: str, *, plus: bool) -> Array:
    base, deltas = task_vectors(models, name)
    changed = [np.abs(delta) > np.float32(0.2) for delta in deltas]
    count = np.sum(changed, axis=0)
    total = np.zeros_like(base)
    for delta, mask in zip(deltas, changed, strict=True):
        unique = mask & (count == 1)
        ratio = min((mask & ~unique).sum() / unique.sum(), 0.8)
        scale = np.where(unique, 1 + 0.5 * ratio, 1.0) if plus else 1.0
        total += np.where(mask, delta, 0.0) * scale / np.maximum(count, 1)
    return base + total


def golden_consensus_ta(models: list[str], name: str, *, agreeing: int = 2) -> Array:
    base, deltas = task_vectors(models, name)
    terms = [w * delta for w, delta in zip(OWN["weight"], deltas, strict=True)]
    total = np.sum(terms, axis=0)
    masks = [
        np.abs(term) >= limit * np.abs(total - term)
        for term, limit in zip(terms, OWN["mask_lambda"], strict=True)
    ]
    return np.asarray(base + 0.7 * np.where(np.sum(masks, axis=0) >= agreeing, total, 0.0))


def golden(method: str, models: list[str], name: str) -> Array:
    if method.startswith("breadcrumbs"):
        return golden_breadcrumbs(models, name, votes=method == "breadcrumbs_ties")
    if method.startswith("della"):
        return golden_della(models, name, votes=method == "della")
    if method.startswith("ram"):
        return golden_ram(models, name, plus=method == "ramplus_tl")
    return golden_sce(models, name) if method == "sce" else golden_consensus_ta(models, name)


def near(found: Tensor, expected: Array) -> None:
    """All but one element in a thousand: one whose choice lies within rounding of fp32 may go either way."""
    apart = np.abs(found.double().numpy() - expected) > 2e-5
    assert apart.sum() <= found.numel() // 1000, f"{int(apart.sum())} of {found.numel()}"


@pytest.mark.parametrize("method", NAMES)
def test_the_formula_in_fp64(models: list[str], method: str) -> None:
    found = merged(recipe(method, models))
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        near(found[name], golden(method, models, name))


@pytest.mark.parametrize("agreeing", [1, 2, 3, 4])
def test_consensus_keeps_what_enough_models_agree_on(models: list[str], agreeing: int) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    found = merged(recipe("consensus_ta", models, min_agreeing=agreeing))[name]
    near(found, golden_consensus_ta(models, name, agreeing=agreeing))
    if agreeing > 3:
        assert torch.equal(found, read(models[0])[name])


def test_consensus_with_masks_of_everything_is_task_arithmetic(models: list[str]) -> None:
    job = recipe("consensus_ta", models, own={"mask_lambda": [0.0] * 3})
    plain = parse_recipe(
        {
            "merge_method": "task_arithmetic",
            "base_model": models[0],
            "models": [
                {"model": model, "parameters": {"weight": weight}}
                for model, weight in zip(models[1:], OWN["weight"], strict=True)
            ],
            "parameters": {"lambda": 0.7},
            "dtype": "float32",
        }
    )
    assert same(merged(job), merged(plain))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("method", NAMES)
def test_pieces_rows_and_blocks_do_not_show(
    models: list[str], monkeypatch: pytest.MonkeyPatch, method: str, dtype: str
) -> None:
    job = recipe(method, models, dtype=dtype)
    whole = merged(job)
    for module in (family, groups):
        monkeypatch.setattr(module, "SHORT_ELEMENTS", 100)
    for module in (family, groups, runner):
        monkeypatch.setattr(module, "GROUP_ELEMENTS", 150)
    monkeypatch.setattr(runner, "PIECE_ELEMENTS", 377)
    monkeypatch.setattr(magnitudes, "_SMALL_BLOCK", 100)
    monkeypatch.setattr(row_ranks, "_BATCH_ELEMENTS", 100)
    monkeypatch.setattr(della, "_RUN_ELEMENTS", 700)
    monkeypatch.setattr(della, "_RUN_ROWS", 5)
    found = merged(job)
    if method == "sce" and dtype != "bfloat16":  # sums of squares are added up in other parts
        assert all(float((found[name] - whole[name]).abs().max()) < 1e-3 for name in whole)
    else:
        assert same(found, whole)


def test_rows_longer_than_a_run(models: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    job = recipe("della_linear", models)
    whole = merged(job)
    monkeypatch.setattr(family, "SHORT_ELEMENTS", 100)
    monkeypatch.setattr(groups, "SHORT_ELEMENTS", 100)
    monkeypatch.setattr(della, "_RUN_ELEMENTS", 50)  # rows have 32 or 64
    monkeypatch.setattr(della, "_RUN_ROWS", 2)
    assert same(merged(job), whole)


def test_fields_end_where_they_end(models: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor of several blocks of uniforms: cut within a row, drawn from another key."""
    monkeypatch.setattr(family, "SHORT_ELEMENTS", 100)
    monkeypatch.setattr(groups, "SHORT_ELEMENTS", 100)
    one = merged(recipe("della_linear", models))
    monkeypatch.setattr(della, "FIELD_ELEMENTS", 1000)
    several = merged(recipe("della_linear", models))
    name = "model.layers.0.mlp.up_proj.weight"
    a, b = one[name].flatten(), several[name].flatten()
    assert torch.equal(a[:1000], b[:1000])
    assert not torch.equal(a[1000:], b[1000:])


@pytest.mark.parametrize("method", NAMES)
def test_resident_tensors_get_the_bits_of_the_stream(models: list[str], method: str) -> None:
    job = recipe(method, models, dtype="bfloat16")
    alone = merged(job)
    resident = {name: torch.full_like(tensor, 7.0) for name, tensor in alone.items()}
    for name, tensor in Engine(compile="never").stream(job, resident):
        assert tensor is resident[name]
    assert same(resident, alone)


@pytest.mark.parametrize("method", NAMES)
def test_a_used_engine_gives_what_a_fresh_one_gives(models: list[str], method: str) -> None:
    used = Engine(compile="never", seed=3)
    other: dict[str, Any] = {"own": {"density": [0.2, 0.8, 0.1]}, "select_topk": 0.2, "r": 0.1}
    for dtype in ("bfloat16", "float32"):
        dict(used.stream(recipe(method, models, dtype=dtype, **other)))
    job = recipe(method, models, dtype="bfloat16")
    assert same(dict(used.stream(job)), merged(job, seed=3))


GRADIENTS: dict[str, dict[str, Any]] = {
    "breadcrumbs": {"own": {"gamma": [[0.0, 0.4], [{"filter": "mlp", "value": 0.2}, {"value": 0.0}], 0.1]}},
    "breadcrumbs_ties": {
        "own": {"density": [[0.1, 0.9], 0.5, [{"filter": "self_attn", "value": [1.0, 0.2]}]]}
    },
    "della": {"own": {"density": [[0.1, 0.9], 0.5, 1.0], "epsilon": [[0.0, 0.3], 0.1, 0.5]}},
    "della_linear": {
        "own": {"epsilon": [[{"filter": "mlp", "value": 0.3}, {"value": 0.0}], 0.1, [0.0, 0.2]]}
    },
    "sce": {"select_topk": [0.1, 0.9]},
    "ram": {"epsilon": [{"filter": "mlp", "value": 0.4}, {"value": [0.0, 0.3]}]},
    "ramplus_tl": {"r": [0.0, 1.0], "alpha": [{"filter": "mlp", "value": 5.0}, {"value": 0.1}]},
    "consensus_ta": {"own": {"mask_lambda": [[0.0, 1.0], 0.4, [{"filter": "mlp", "value": 0.9}]]}},
}


@pytest.mark.parametrize("method", NAMES)
def test_gradients_and_filters_give_each_tensor_its_own_parameters(models: list[str], method: str) -> None:
    found = merged(recipe(method, models, **GRADIENTS[method]))
    constant = merged(recipe(method, models))
    differ = [name for name in found if not torch.equal(found[name], constant[name])]
    assert any("layers.0.mlp" in name for name in differ)
    assert any("layers.1." in name for name in differ)
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())


@pytest.mark.parametrize("method", NAMES)
def test_merging_a_model_with_itself_changes_nothing(models: list[str], method: str) -> None:
    job = recipe(method, [models[0], models[0] + "/", models[0] + "/.", models[0] + "//"], dtype="bfloat16")
    before = {name: tensor.to(torch.bfloat16) for name, tensor in read(models[0]).items()}
    assert same(merged(job), before)


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_what_is_dropped_depends_on_the_seed_alone(models: list[str], method: str) -> None:
    job = recipe(method, models)
    assert same(merged(job, seed=1), merged(job, seed=1))
    assert not same(merged(job, seed=1), merged(job, seed=2))


def dropped(models: list[str], density: float, epsilon: float) -> dict[str, Tensor]:
    """Which elements of the first model's task vector are not in the merge."""
    own = {"weight": [1.0], "density": [density], "epsilon": [epsilon]}
    more: dict[str, Any] = {"lambda": 1.0}
    found = merged(recipe("della_linear", models[:2], own=own, **more))
    base, source = read(models[0]), read(models[1])
    return {name: (found[name] == base[name]) & (source[name] != base[name]) for name in base}


def test_masks_are_nested_in_density(models: list[str]) -> None:
    less, more = dropped(models, 0.4, 0.1), dropped(models, 0.6, 0.1)
    assert all(bool((more[name] <= less[name]).all()) for name in less)
    assert any(bool((more[name] < less[name]).any()) for name in less)


@pytest.mark.parametrize(("density", "epsilon"), [(0.9, 0.5), (0.05, 0.3), (1.0, 0.15)])
def test_an_epsilon_that_is_too_wide_is_narrowed(models: list[str], density: float, epsilon: float) -> None:
    """So that the density stays the share that is kept."""
    masks = torch.cat([mask.flatten() for mask in dropped(models, density, epsilon).values()]).double()
    deviation = math.sqrt(density * (1 - density) / len(masks))
    assert abs(float(masks.mean()) - (1 - density)) <= 5 * deviation


@pytest.mark.parametrize("method", NAMES)
def test_sources_are_not_changed(models: list[str], method: str) -> None:
    files = [file for model in models for file in Path(model).glob("*.safetensors")]
    before = [file.read_bytes() for file in files]
    merged(recipe(method, models, dtype="bfloat16"))
    assert [file.read_bytes() for file in files] == before
