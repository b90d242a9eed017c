"""Our merges against those of the mergekit 0.1.5 wheel, run as a black box on the same models and recipes.

They must agree within one bfloat16 ulp, except at elements that the test finds by itself:

- a magnitude ties with the density threshold (which of the equals are kept is arbitrary in the wheel);
- a sign vote lies within rounding of zero;
- a weighted sum cancels so far that the rounding of its fp32 additions shows, which the wheel does otherwise
  (`linear` only, one element in some 30,000).
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from merge_engine.engine import Engine
from merge_engine.spec.recipe import parse_recipe
from tests.merge_engine import toy

if importlib.util.find_spec("mergekit") is None:
    pytest.skip("mergekit is not installed", allow_module_level=True)

Tensors = dict[str, Tensor]
EXCEPTIONS_ALLOWED = 0.06  # of all elements: the models are small, and ties are 1-2 % per source
CANCELLED = 2**-13  # of the tensor's largest: fp32 has 16 bits more than bfloat16
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random bfloat16 models ``base``, ``a``, ``b``, ``c`` of two shards, and ``odd_*`` ones full of ties."""
    path = tmp_path_factory.mktemp("models")
    toy.family(path)
    settings = toy.config()
    base = toy.random_tensors(settings, 0)
    for seed, name in enumerate("de", start=10):
        toy.save(path / f"odd_{name}", settings, _adversarial(base, seed))
    return path


def _adversarial(base: Tensors, seed: int) -> Tensors:
    """Task vectors of few magnitudes: zeros, exact opposites, very large and very small numbers."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.tensor([0.0, 0.0, 0.5, -0.5, 0.25, 2.0, -2.0, 1e-30, 1e4])
    made = {}
    for name, tensor in base.items():
        choice = torch.randint(len(steps), tensor.shape, generator=generator)
        made[name] = (tensor.float() + steps[choice]).to(tensor.dtype)
    return made


def wheel_merge(data: Mapping[str, Any], out: Path) -> Tensors:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the wheel and what it imports: not ours to mend
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions

        options = MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False)
        run_merge(MergeConfiguration.model_validate(data), str(out), options=options)
    merged: Tensors = {}
    for file in sorted(out.glob("*.safetensors")):
        merged |= load_file(file)
    return merged


def our_merge(data: Mapping[str, Any]) -> Tensors:
    return dict(Engine(compile="never").stream(parse_recipe(data)))


def compare(data: Mapping[str, Any], out: Path, excused: Mapping[str, Tensor] | None = None) -> None:
    theirs, ours = wheel_merge(data, out), our_merge(data)
    assert sorted(ours) == sorted(theirs)
    exceptions = total = 0
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert ours[name].shape == tensor.shape
        apart = toy.ulps(ours[name].to(torch.bfloat16), tensor.to(torch.bfloat16)) > 1
        if data["merge_method"] == "linear":
            apart &= tensor.abs() > CANCELLED * tensor.abs().max()
        if excused is not None:
            apart &= ~excused[name]
            exceptions += int(excused[name].sum())
        assert not bool(apart.any()), f"{name}: {int(apart.sum())} of {apart.numel()} elements differ"
        total += tensor.numel()
    assert exceptions <= EXCEPTIONS_ALLOWED * total


def read(path: str, dtype: torch.dtype) -> Tensors:
    tensors: Tensors = {}
    for file in Path(path).glob("*.safetensors"):
        tensors |= load_file(file)
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def ties_exceptions(data: Mapping[str, Any]) -> Tensors:
    """Elements whose magnitude ties with a threshold, or whose sign vote is within rounding of zero."""
    dtype = DTYPES[data["dtype"]]
    base = read(data["base_model"], dtype)
    sources = [(read(entry["model"], dtype), entry["parameters"]) for entry in data["models"]]
    found = {}
    for name, base_tensor in base.items():
        excused = torch.zeros(base_tensor.shape, dtype=torch.bool)
        terms = []
        for tensors, parameters in sources:
            delta = tensors[name] - base_tensor
            magnitude = delta.abs().float()
            count = max(1, int(parameters["density"] * delta.numel()))
            threshold = magnitude.flatten().sort(descending=True).values[count - 1]
            if count < delta.numel():
                excused |= (magnitude == threshold) & (threshold > 0)
            terms.append(torch.where(magnitude >= threshold, delta, 0).double() * parameters["weight"])
        vote, size = sum(terms).abs(), sum(term.abs() for term in terms)  # type: ignore[union-attr]
        excused |= (vote <= 2**-6 * size) & (size > 0)
        found[name] = excused
    return found


def entries(folder: Path, names: str, **parameters: Any) -> list[dict[str, Any]]:
    """Model entries for ``names`` with, for each parameter, one value per model."""
    return [
        {"model": str(folder / name), "parameters": {key: values[i] for key, values in parameters.items()}}
        for i, name in enumerate(names.split())
    ]


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("normalize", [True, False])
def test_linear(folder: Path, tmp_path: Path, dtype: str, normalize: bool) -> None:
    models = entries(folder, "a b c", weight=[0.3, 0.5, -0.45])
    data = {
        "merge_method": "linear",
        "models": models,
        "dtype": dtype,
        "parameters": {"normalize": normalize},
    }
    compare(data, tmp_path / "out")


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("parameters", [{}, {"normalize": True}, {"lambda": 0.7, "int8_mask": True}])
def test_task_arithmetic(folder: Path, tmp_path: Path, dtype: str, parameters: dict[str, Any]) -> None:
    data = {
        "merge_method": "task_arithmetic",
        "base_model": str(folder / "base"),
        "models": entries(folder, "a b c", weight=[0.3, 0.5, -0.45]),
        "parameters": parameters,
        "dtype": dtype,
    }
    compare(data, tmp_path / "out")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"normalize": False},
        {"lambda": 0.7, "int8_mask": True},
        {"rescale": True},
        {"rescale": True, "normalize": False},
    ],
)
@pytest.mark.parametrize("densities", [[0.3, 0.5, 0.7], [1.0, 1.0, 0.02]])
def test_ties(
    folder: Path, tmp_path: Path, dtype: str, parameters: dict[str, Any], densities: list[float]
) -> None:
    data = {
        "merge_method": "ties",
        "base_model": str(folder / "base"),
        "models": entries(folder, "a b c", weight=[0.3, 0.5, -0.45], density=densities),
        "parameters": parameters,
        "dtype": dtype,
    }
    compare(data, tmp_path / "out", ties_exceptions(data))


@pytest.mark.parametrize("scale", [1.0, 1e-12])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_ties_that_only_trims_and_rescales(tmp_path: Path, dtype: str, scale: float) -> None:
    """Where the result is the rescaled task vector itself, bit for bit; too small ones are not rescaled."""
    settings, stored = toy.config(), DTYPES[dtype]
    source = toy.random_tensors(settings, 1, scale=scale, dtype=stored)
    toy.save(tmp_path / "base", settings, {name: torch.zeros_like(x) for name, x in source.items()})
    toy.save(tmp_path / "a", settings, source)
    data = {
        "merge_method": "ties",
        "base_model": str(tmp_path / "base"),
        "models": entries(tmp_path, "a", weight=[1.0], density=[0.6]),
        "parameters": {"rescale": True},
        "dtype": dtype,
    }
    theirs, ours, excused = wheel_merge(data, tmp_path / "out"), our_merge(data), ties_exceptions(data)
    allowed = 16 if dtype == "float32" else 0  # the wheel adds up in fp32
    for name, tensor in theirs.items():
        assert int(toy.ulps(ours[name], tensor)[~excused[name]].max()) <= allowed, name


@pytest.mark.parametrize("weights", [[1.0, 0.5], [0.3, -0.7]])
def test_ties_without_trimming_on_adversarial_tensors(
    folder: Path, tmp_path: Path, weights: list[float]
) -> None:
    data = {
        "merge_method": "ties",
        "base_model": str(folder / "base"),
        "models": entries(folder, "odd_d odd_e", weight=weights, density=[1.0, 1.0]),
        "dtype": "bfloat16",
    }
    compare(data, tmp_path / "out", ties_exceptions(data))


@pytest.mark.parametrize("method", ["dare_ties", "dare_linear"])
def test_dare_that_drops_nothing(folder: Path, tmp_path: Path, method: str) -> None:
    data = {
        "merge_method": method,
        "base_model": str(folder / "base"),
        "models": entries(folder, "a b c", weight=[0.3, 0.5, 0.45], density=[1.0, 1.0, 1.0]),
        "dtype": "bfloat16",
    }
    compare(data, tmp_path / "out", ties_exceptions(data))


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("method", ["dare_ties", "dare_linear"])
def test_dare_in_distribution(folder: Path, tmp_path: Path, method: str, rescale: bool) -> None:
    """The share of kept elements, and the mean of what is added, over all elements of the model."""
    data = {
        "merge_method": method,
        "base_model": str(folder / "base"),
        "models": entries(folder, "a", weight=[1.0], density=[0.4]),
        "parameters": {"rescale": rescale},
        "dtype": "float32",
    }
    base, source = read(str(folder / "base"), torch.float32), read(str(folder / "a"), torch.float32)
    statistics = []
    for merged in (wheel_merge(data, tmp_path / "out"), our_merge(data)):
        added = torch.cat([(merged[name] - base[name]).flatten() for name in base]).double()
        delta = torch.cat([(source[name] - base[name]).flatten() for name in base]).double()
        moved = delta.abs() > 0
        statistics.append(
            (float((added != 0)[moved].double().mean()), float(added @ delta / (delta @ delta)))
        )
    (their_share, their_gain), (our_share, our_gain) = statistics
    assert our_share == pytest.approx(0.4, abs=0.015)
    assert our_share == pytest.approx(their_share, abs=0.02)
    assert our_gain == pytest.approx(1.0 if rescale else 0.4, abs=0.04)
    assert our_gain == pytest.approx(their_gain, abs=0.05)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    "t", [0.0, 0.3, [0.1, 0.9], [{"filter": "self_attn", "value": [0, 1]}, {"value": 0.5}]]
)
def test_slerp(folder: Path, tmp_path: Path, dtype: str, t: Any) -> None:
    data = {
        "merge_method": "slerp",
        "base_model": str(folder / "base"),
        "models": [{"model": str(folder / "base")}, {"model": str(folder / "a")}],
        "parameters": {"t": t},
        "dtype": dtype,
    }
    compare(data, tmp_path / "out")


def test_slerp_of_nearly_parallel_models(folder: Path, tmp_path: Path) -> None:
    settings = toy.config()
    base = toy.random_tensors(settings, 0)
    near = toy.save(tmp_path / "near", settings, toy.random_tensors(settings, 9, near=base, scale=0.01))
    data = {
        "merge_method": "slerp",
        "base_model": str(folder / "base"),
        "models": [{"model": str(near)}],
        "parameters": {"t": 0.6},
        "dtype": "bfloat16",
    }
    compare(data, tmp_path / "out")


GRADIENTS: dict[str, Any] = {
    "weight": [
        [0.0, 0.3, 1.0],
        [{"filter": "mlp", "value": [0.1, 0.9]}, {"filter": "lm_head", "value": 0.2}, {"value": 0.5}],
    ]
}


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_gradients_and_filters(folder: Path, tmp_path: Path, method: str) -> None:
    data: dict[str, Any] = {
        "merge_method": method,
        "models": entries(folder, "a b", **GRADIENTS),
        "dtype": "bfloat16",
    }
    if method != "linear":
        data["base_model"] = str(folder / "base")
        data["models"].insert(0, {"model": data["base_model"]})
    compare(data, tmp_path / "out")


@pytest.mark.parametrize("out_dtype", ["float16", "float32"])
def test_out_dtype(folder: Path, tmp_path: Path, out_dtype: str) -> None:
    models = entries(folder, "a b", weight=[0.6, 0.4])
    data = {"merge_method": "linear", "models": models, "dtype": "bfloat16", "out_dtype": out_dtype}
    compare(data, tmp_path / "out")


def piece(folder: Path, *sources: tuple[str, int, int, dict[str, Any]], **more: Any) -> dict[str, Any]:
    listed = [
        {"model": str(folder / name), "layer_range": [start, end], "parameters": parameters}
        for name, start, end, parameters in sources
    ]
    return {"sources": listed, **more}


def test_passthrough_slices_with_scales(folder: Path, tmp_path: Path) -> None:
    scale = [{"filter": "o_proj", "value": 0.7}, {"filter": "layers.2.", "value": 0.3}, {"value": 1.0}]
    slices = [piece(folder, ("a", 0, 3, {"scale": scale})), piece(folder, ("b", 1, 4, {"scale": [1, 0.2]}))]
    compare({"merge_method": "passthrough", "slices": slices, "dtype": "bfloat16"}, tmp_path / "out")


def test_linear_slices(folder: Path, tmp_path: Path) -> None:
    slices = [
        piece(folder, ("a", 0, 3, {"weight": 0.3}), ("b", 1, 4, {"weight": [0, 1]})),
        piece(
            folder,
            ("b", 2, 4, {}),
            ("c", 0, 2, {"weight": 0.6}),
            parameters={"weight": 0.2, "normalize": True},
        ),
    ]
    parameters = {"normalize": False}
    data = {"merge_method": "linear", "slices": slices, "parameters": parameters, "dtype": "bfloat16"}
    compare(data, tmp_path / "out")


def test_slices_with_their_own_bases(folder: Path, tmp_path: Path) -> None:
    slices = [
        piece(folder, ("base", 0, 2, {}), ("a", 1, 3, {"weight": 0.3}), ("b", 2, 4, {"weight": [0, 1]})),
        piece(folder, ("b", 2, 4, {}), ("c", 2, 4, {"weight": 0.6}), base_model=str(folder / "b")),
    ]
    data = {
        "merge_method": "task_arithmetic",
        "base_model": str(folder / "base"),
        "slices": slices,
        "dtype": "bfloat16",
    }
    compare(data, tmp_path / "out")
