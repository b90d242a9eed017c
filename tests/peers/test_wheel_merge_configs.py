"""The configs of configs/merge, and ones as people write them, through the wheel and through us.

Most merges must agree within one bfloat16 ulp in every element. Where a method has thresholds, either side
keeps another one of few elements (which ones is settled in the tests of single methods). Configs of random
methods and of spherical means are merged by both sides in those tests alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from merge_engine.documents import merge_documents
from merge_engine.engine import Engine
from merge_engine.folder import write_model
from merge_engine.spec.recipe import Recipe, parse_recipe
from merge_engine.spec.yaml_io import load_yaml, load_yaml_documents
from tests.merge_engine import toy
from tests.merge_engine.test_merge_configs import CONFIGS, DEMO, demo
from tests.peers.test_wheel import Tensors, read, wheel_merge

__all__ = ["demo"]

EXACT = {
    *("chat_template", "linear", "model_stock", "modules", "nearswap", "nuslerp", "passthrough", "ram"),
    *("ramplus_tl", "scaled_layers", "slerp_gradient", "slices", "task_arithmetic", "tokenizer_union"),
}
WITH_THRESHOLDS = {
    *("arcee_fusion", "breadcrumbs", "breadcrumbs_ties", "sce", "ties", "ties_unnormalized"),
    "tokenizer_tokens",
}
ELSEWHERE = {
    *("dare_linear", "dare_ties", "della", "della_linear"),  # random
    *("karcher", "multislerp"),
    *("consensus_ta", "iso_c", "tsv_merge"),  # not in mergekit
    "lora",
    "mega",
}
FEW = 0.02  # of the elements


def share_apart(ours: Tensors, theirs: Tensors) -> float:
    assert ours.keys() == theirs.keys()
    apart = 0
    for name, tensor in theirs.items():
        assert ours[name].shape == tensor.shape, name
        apart += int((toy.ulps(ours[name].to(torch.bfloat16), tensor.to(torch.bfloat16)) > 1).sum())
    return apart / sum(tensor.numel() for tensor in theirs.values())


def test_every_config_is_in_one_of_the_groups() -> None:
    assert {config.stem for config in CONFIGS} == EXACT | WITH_THRESHOLDS | ELSEWHERE


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_merged_alike(config: Path, demo: Path, tmp_path: Path) -> None:
    if config.stem in ELSEWHERE:
        return
    data: Any = load_yaml(config.read_text().replace(DEMO, str(demo)))
    theirs = wheel_merge(data, tmp_path / "out")
    ours = dict(Engine(compile="never").stream(parse_recipe(data)))
    assert share_apart(ours, theirs) <= (0.0 if config.stem in EXACT else FEW)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    toy.family(folder)
    return folder


FOUND: dict[str, str] = {
    "superfluous parameters": """
        models: [{model: A}]
        merge_method: arcee_fusion
        base_model: BASE
        parameters: {normalize: true, int8_mask: true, rescale: false}
        dtype: float16
        out_dtype: float16""",
    "gradients of densities and weights": """
        models:
        - {model: A, parameters: {density: [1, 0.7, 0.1], weight: 1.0}}
        - {model: B, parameters: {density: 0.5, weight: [0, 0.3, 0.7, 1]}}
        - model: C
          parameters: {density: 0.33, weight: [{filter: mlp, value: 0.5}, {value: 0}]}
        merge_method: ties
        base_model: BASE
        parameters: {normalize: true, int8_mask: true}
        dtype: float16""",
    "weights that two levels leave to a third": """
        models: [{model: BASE}, {model: A, parameters: {density: 0.5, weight: 0.5}}, {model: B}]
        merge_method: ties
        base_model: BASE
        parameters: {normalize: false, weight: 0.3, density: 0.6}
        dtype: bfloat16""",
    "the first layers of a model": """
        slices: [{sources: [{model: A, layer_range: [0, 2]}]}]
        merge_method: passthrough
        dtype: float16""",
    "layers of two models": """
        slices:
        - sources: [{model: A, layer_range: [0, 3]}]
        - sources: [{model: B, layer_range: [1, 4]}]
        merge_method: passthrough
        dtype: float16""",
    "slerp of slices with a gradient": """
        slices:
        - sources: [{model: A, layer_range: [0, 4]}, {model: B, layer_range: [0, 4]}]
        merge_method: slerp
        base_model: A
        parameters:
          t:
          - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
          - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
          - value: 0.5
        dtype: float16""",
}


@pytest.mark.parametrize("name", FOUND)
def test_configs_as_they_are_found(name: str, family: Path, tmp_path: Path) -> None:
    data: Any = load_yaml(_placed(FOUND[name], family))
    ours = dict(Engine(compile="never").stream(parse_recipe(data, [])))
    assert share_apart(ours, wheel_merge(data, tmp_path / "out")) <= FEW


STAGES = """
    name: first
    merge_method: linear
    models: [{model: BASE}, {model: A}]
    parameters: {weight: 0.5}
    ---
    name: second
    merge_method: slerp
    base_model: first
    models: [{model: B}]
    parameters: {t: 0.5}
    ---
    merge_method: task_arithmetic
    base_model: BASE
    models:
    - {model: second, parameters: {weight: 0.5}}
    - {model: C, parameters: {weight: 0.5}}"""


def test_documents_that_need_each_other(family: Path, tmp_path: Path) -> None:
    """The wheel's part by hand, with folders in place of names."""

    def write(recipe: Recipe, out: Path) -> None:
        write_model(Engine(compile="never"), recipe, out)

    text = _placed(STAGES, family)
    merge_documents(text, tmp_path / "ours", write)
    merged: Tensors = {}
    for number, document in enumerate(load_yaml_documents(text)):
        for name, folder in (("first", "0"), ("second", "1")):
            document = _replaced(document, name, str(tmp_path / folder))
        merged = wheel_merge({**document, "name": None}, tmp_path / str(number))  # type: ignore[dict-item]
    assert share_apart(read(str(tmp_path / "ours"), torch.bfloat16), merged) == 0.0


def _replaced(data: Any, name: str, folder: str) -> Any:
    if isinstance(data, dict):
        return {key: _replaced(value, name, folder) for key, value in data.items() if key != "name"}
    if isinstance(data, list):
        return [_replaced(value, name, folder) for value in data]
    return folder if data == name else data


def _placed(text: str, family: Path) -> str:
    for name in ("BASE", "A", "B", "C"):
        text = text.replace(f"model: {name}", f"model: {family / name.lower()}")
    return "\n".join(line[4:] for line in text.splitlines())
