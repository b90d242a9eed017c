"""Merges of tiny models of many architectures load in transformers, with every tensor in its place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_engine.engine import Engine
from merge_engine.folder import write_model
from merge_engine.spec.recipe import parse_recipe
from tests.merge_engine.architectures import ARCHITECTURES, Architecture, stored

Tensors = Mapping[str, Tensor]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("architectures")


def saved(folders: Path, name: str, seed: int) -> tuple[Path, Tensors]:
    """The folder of a model, made once, and its parameters as transformers names them."""
    folder = folders / name / str(seed)
    model = ARCHITECTURES[name].build(seed)
    if not folder.exists():
        model.save_pretrained(folder)
    return folder, model.state_dict()


def merge(data: dict[str, Any], out: Path) -> None:
    write_model(Engine(compile="never"), parse_recipe(data), out)


def loaded(architecture: Architecture, folder: Path) -> Tensors:
    """The parameters of a merged model, none of which transformers had to make up or leave out."""
    model, info = architecture.load(folder)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    state: Tensors = model.state_dict()
    return state


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_mean_of_two_models_loads(name: str, folders: Path, tmp_path: Path) -> None:
    (a, state_a), (b, state_b) = (saved(folders, name, seed) for seed in (0, 1))
    entries = [{"model": str(m), "parameters": {"weight": w}} for m, w in ((a, 0.25), (b, 0.75))]
    merge({"merge_method": "linear", "models": entries, "dtype": "float32"}, tmp_path / "out")
    assert stored(tmp_path / "out").keys() == stored(a).keys()
    merged = loaded(ARCHITECTURES[name], tmp_path / "out")
    assert merged.keys() == state_a.keys()
    for key, tensor in merged.items():
        if tensor.is_floating_point():
            expected = 0.25 * state_a[key] + 0.75 * state_b[key]
            torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-5)


SLICED = [name for name, architecture in ARCHITECTURES.items() if architecture.ranges is not None]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SLICED)
def test_a_deeper_model_loads(name: str, folders: Path, tmp_path: Path) -> None:
    from merge_engine.checkpoint_header import open_header
    from merge_engine.layers import layer_names

    architecture = ARCHITECTURES[name]
    assert architecture.ranges is not None
    a, _ = saved(folders, name, 0)
    slices = [{"sources": [{"model": str(a), "layer_range": list(layers)}]} for layers in architecture.ranges]
    part = {"slices": slices}
    data = part if architecture.module is None else {"modules": {architecture.module: part}}
    merge({"merge_method": "passthrough", **data}, tmp_path / "out")
    loaded(architecture, tmp_path / "out")

    names = layer_names(open_header(a))
    wanted = architecture.module
    stack = names.main or next(stack for stack in names.stacks if wanted in stack.path)
    before, after = stored(a), stored(tmp_path / "out")
    order = [layer for start, end in architecture.ranges for layer in range(start, end)]
    expected = {
        f"{stack.prefix}{new}.{suffix}": before[stack.name(old, suffix)]
        for new, old in enumerate(order)
        for suffix in stack.layers[old]
    }
    outside = set(before) - set(stack.names())
    expected |= {key: before[key] for key in outside}
    assert after.keys() == expected.keys()
    assert all(torch.equal(after[key], tensor) for key, tensor in expected.items())


@pytest.mark.filterwarnings("ignore")
def test_gradients_follow_each_stacks_own_layers(folders: Path, tmp_path: Path) -> None:
    a, _ = saved(folders, "t5", 0)
    entry = {"model": str(a), "parameters": {"weight": [0.0, 10.0]}}
    data = {"merge_method": "linear", "models": [entry], "parameters": {"normalize": False}}
    jobs = {job.name: job for job in Engine(compile="never").plan(parse_recipe(data)).jobs}
    key = "layer.0.SelfAttention.q.weight"
    encoder = [jobs[f"encoder.block.{i}.{key}"].values("weight") for i in range(2)]
    decoder = [jobs[f"decoder.block.{i}.{key}"].values("weight") for i in range(3)]
    assert encoder == [[0.0], [10.0]]  # as mergekit 0.1.5 has it
    assert decoder == [[0.0], [5.0], [10.0]]
    assert jobs["shared.weight"].values("weight") == [0.0]


MODULES = [
    ("t5", "decoder", ("decoder.", "shared.", "lm_head.")),
    ("bart", "encoder", ("model.encoder.",)),
    ("llava", "text_decoder", ("language_model.",)),
    ("llava", "vision_tower", ("vision_tower.",)),
    ("llava", "multi_modal_projector", ("multi_modal_projector.",)),
    ("qwen2_vl", "text_decoder", ("model.", "lm_head.")),
    ("qwen2_vl", "vision_tower", ("visual.",)),
    ("qwen3_vl", "model.language_model", ("model.language_model.", "lm_head.")),
    ("llama", "default", ("",)),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "module", "prefixes"), MODULES)
def test_a_module_is_merged_and_the_rest_kept(
    name: str, module: str, prefixes: tuple[str, ...], folders: Path, tmp_path: Path
) -> None:
    (a, _), (b, _) = (saved(folders, name, seed) for seed in (0, 1))
    entries = [{"model": str(m), "parameters": {"weight": w}} for m, w in ((a, 0.0), (b, 1.0))]
    data = {"merge_method": "linear", "base_model": str(a), "modules": {module: {"models": entries}}}
    merge(data, tmp_path / "out")
    ours, first, second = stored(tmp_path / "out"), stored(a), stored(b)
    assert ours.keys() == first.keys()
    for key, tensor in ours.items():
        assert torch.equal(tensor, second[key] if key.startswith(prefixes) else first[key]), key


@pytest.mark.filterwarnings("ignore")
def test_what_prepares_pictures_comes_along(folders: Path, tmp_path: Path) -> None:
    a, _ = saved(folders, "llava", 0)
    (a / "preprocessor_config.json").write_text('{"size": 32}')
    merge({"merge_method": "passthrough", "models": [{"model": str(a)}]}, tmp_path / "out")
    assert (tmp_path / "out" / "preprocessor_config.json").read_text() == '{"size": 32}'


def test_names_that_no_library_knows(tmp_path: Path) -> None:
    from tests.merge_engine import toy

    config = {"model_type": "invented", "num_blocks": 3, "dtype": "float32"}
    names = {"tok_emb.weight": (8, 4), "final.scale": (4,)} | {
        f"trunk.cells.{i}.mix.{part}": (4, 4) for i in range(3) for part in ("in", "out")
    }
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in names.items()}
    folder = toy.save(tmp_path / "a", config, tensors)
    slices = [{"sources": [{"model": str(folder), "layer_range": layers}]} for layers in ([0, 3], [1, 2])]
    merge({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    after = stored(tmp_path / "out")
    assert len(after) == len(tensors) + 2
    assert torch.equal(after["trunk.cells.3.mix.in"], tensors["trunk.cells.1.mix.in"])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_blocks"] == 4
