"""Broken input from fixed seeds: every outcome is a plan or a `MergeError`, never another exception."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from merge_engine.checkpoint_header import SINGLE_FILE, CheckpointHeader, open_header
from merge_engine.config_layers import Origin, with_layers
from merge_engine.errors import CheckpointError, MergeError
from merge_engine.layers import layer_names
from merge_engine.plan import TensorRef, make_plan
from merge_engine.source_tensors import SourceTensors
from merge_engine.spec.recipe import parse_recipe, recipe_data
from merge_engine.spec.yaml_io import dump_yaml, load_yaml
from tests.merge_engine import toy

RECIPES: list[dict[str, Any]] = [
    {
        "merge_method": "ties",
        "base_model": "base",
        "models": [
            {"model": "a", "parameters": {"weight": 0.5, "density": [0.1, 1.0]}},
            {"model": "b", "parameters": {"weight": [{"filter": "mlp", "value": 1}, {"value": 0}]}},
        ],
        "parameters": {"normalize": True, "lambda": 0.5},
        "dtype": "bfloat16",
    },
    {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "a", "layer_range": [0, 2]}]},
            {"sources": [{"model": "b", "layer_range": [1, 2], "parameters": {"scale": 0.5}}]},
        ],
        "out_dtype": "float32",
    },
    {
        "merge_method": "linear",
        "modules": {
            "default": {
                "parameters": {"weight": [0, 1]},
                "slices": [{"sources": [{"model": m, "layer_range": [0, 2]} for m in "ab"]}],
            }
        },
    },
]
JUNK: list[Any] = [
    None, True, False, 0, 1, -1, 2, 10**400, 1e308, float("nan"), float("inf"), "", "a", "base", "linear",
    "ties", "nonsense", "a+b", "../x", "*", [], {}, [[]], [None], [0, 1], ["a"], {"a": 1}, {"value": 1},
    {"filter": "mlp", "value": [0.0, 1.0]}, {"model": {"path": "a"}}, [{}], "0.5", "\x00", "é" * 99,
]  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CheckpointHeader]:
    folder = tmp_path_factory.mktemp("fuzz")
    settings = toy.config(layers=2, hidden=8, vocabulary=8)
    for seed, name in enumerate(("base", "a", "b")):
        toy.save(folder / name, settings, toy.random_tensors(settings, seed))
    return {name: open_header(folder / name) for name in ("base", "a", "b")}


def outcome(action: Callable[[], object]) -> bool:
    """Whether it went well; a typed refusal with a text is an outcome too, anything else fails the test."""
    refused = ""
    try:
        action()
    except MergeError as error:
        refused = f"refused: {error}"
    assert refused != "refused: "
    return not refused


def places(data: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values within plain data."""
    yield way
    entries = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in entries:
        yield from places(value, (*way, key))


def broken(data: Any, draw: random.Random) -> Any:
    """``data`` with one to three values replaced, dropped, renamed or doubled."""
    data = copy.deepcopy(data)
    for _ in range(draw.randint(1, 3)):
        way = draw.choice(list(places(data)))
        if not way:
            continue
        holder = data
        for key in way[:-1]:
            holder = holder[key]
        kind = draw.randrange(4)
        if kind == 0:
            del holder[way[-1]]
        elif kind == 1 and isinstance(holder, dict):
            holder[str(way[-1]) + draw.choice("xs")] = holder.pop(way[-1])
        elif kind == 2 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[way[-1]]))
        else:
            holder[way[-1]] = copy.deepcopy(draw.choice(JUNK))
    return data


def test_broken_recipes(models: dict[str, CheckpointHeader]) -> None:
    def header_of(reference: str) -> CheckpointHeader:
        if reference not in models:
            raise CheckpointError(f"{reference}: no such folder")
        return models[reference]

    def read(data: Any) -> None:
        recipe = parse_recipe(data)
        assert parse_recipe(recipe_data(recipe)) == recipe
        make_plan(recipe, header_of)

    draw = random.Random(1)
    for data in RECIPES:
        read(data)
    good = sum(outcome(lambda: read(broken(draw.choice(RECIPES), draw))) for _ in range(1500))
    assert 50 < good < 1450


def test_broken_yaml() -> None:
    draw = random.Random(2)
    texts = [dump_yaml(recipe) for recipe in RECIPES]
    pieces = [
        "&a ", "*a", "- ", ": ", "[", "]", "{", "}", "\n", "\t", "!!python/name:os.system", "|", "'", '"',
        "%", "---\n", "<<: ", "? ", "\x00", "1e999", "é", "#", "!!binary x", "2020-13-01", "0x", "-",
    ]  # fmt: skip

    def text() -> str:
        made = draw.choice(texts)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(made))
            end = at + draw.choice((0, 0, 1, 5))
            made = made[:at] + draw.choice(pieces) + made[end:]
        return made

    good = sum(outcome(lambda: parse_recipe(load_yaml(text()))) for _ in range(1500))
    assert 5 < good < 1495


def header_bytes(header: object) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


def test_broken_safetensors(models: dict[str, CheckpointHeader], tmp_path: Path) -> None:
    draw = random.Random(3)
    whole = (models["a"].folder / SINGLE_FILE).read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:length])
    toy.save(tmp_path / "m", models["a"].config, {})
    file = tmp_path / "m" / SINGLE_FILE

    def content() -> bytes:
        kind = draw.randrange(3)
        if kind == 0:
            return header_bytes(broken(header, draw)) + whole[length:]
        if kind == 1:
            return whole[: draw.randrange(len(whole))]
        made = bytearray(whole)
        for _ in range(draw.randint(1, 8)):
            made[draw.randrange(length)] = draw.randrange(256)
        return bytes(made)

    def read() -> None:
        found = open_header(file.parent)
        layer_names(found)
        sources = SourceTensors()
        for name in found.tensors:
            sources.tensor(TensorRef(model=str(file.parent), name=name))

    good = 0
    for _ in range(600):
        file.write_bytes(content())
        good += outcome(read)
    assert 3 < good < 597


def test_broken_model_configs(models: dict[str, CheckpointHeader], tmp_path: Path) -> None:
    draw = random.Random(4)
    folder = toy.save(tmp_path / "m", {}, {})
    (folder / SINGLE_FILE).write_bytes((models["a"].folder / SINGLE_FILE).read_bytes())
    settings = {
        **models["a"].config,
        "text_config": {"num_hidden_layers": 2, "layer_types": ["x", "y"], "vocab_size": 8},
        "vision_config": {"depth": 2},
        "num_nextn_predict_layers": 1,
        "layer_types": ["x", "y"],
    }
    recipe = parse_recipe(RECIPES[1])

    def read() -> None:
        header = open_header(folder)
        plan = make_plan(recipe, lambda name: header if name == "a" else models[name])
        for stack in plan.stacks:
            origins = [Origin(config=header.config, index=layer.index) for layer in stack.layers]
            with_layers(header.config, stack.path, stack.old_count, origins, main=stack.main)

    good = 0
    for _ in range(600):
        (folder / "config.json").write_text(json.dumps(broken(settings, draw)))
        good += outcome(read)
    assert 100 < good < 590
