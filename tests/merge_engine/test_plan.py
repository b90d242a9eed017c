"""What a recipe and the models' headers give, and every way in which they do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from merge_engine.checkpoint_header import SINGLE_FILE, open_header
from merge_engine.errors import PlanError
from merge_engine.layers import layer_names
from merge_engine.plan import LayerOrigin, Plan, make_plan
from merge_engine.spec.recipe import parse_recipe
from tests.merge_engine import toy


def plan(data: dict[str, Any]) -> Plan:
    return make_plan(parse_recipe(data), lambda reference: open_header(Path(reference)))


def model(folder: Path, name: str, **more: Any) -> str:
    settings = toy.config(**more)
    return str(toy.save(folder / name, settings, toy.random_tensors(settings, 0)))


def linear(*models: str, **parameters: Any) -> dict[str, Any]:
    entries = [{"model": name, "parameters": {"weight": 1.0, **parameters}} for name in models]
    return {"merge_method": "linear", "models": entries}


def test_precedence_of_parameters(tmp_path: Path) -> None:
    a, b = model(tmp_path, "a"), model(tmp_path, "b")
    sources = [
        {"model": a, "layer_range": [0, 4], "parameters": {"weight": {"filter": "mlp", "value": 0.1}}},
        {"model": b, "layer_range": [0, 4]},
    ]
    sources[0]["parameters"] = {"weight": [{"filter": "mlp", "value": 0.1}]}
    slices = [{"sources": sources, "parameters": {"weight": [{"filter": "self_attn", "value": 0.2}]}}]
    made = plan(
        {"merge_method": "linear", "slices": slices, "parameters": {"weight": 0.3, "normalize": False}}
    )
    jobs = {job.name: job for job in made.jobs}
    assert jobs["model.layers.0.mlp.up_proj.weight"].values("weight") == [0.1, 0.3]
    assert jobs["model.layers.0.self_attn.q_proj.weight"].values("weight") == [0.2, 0.2]
    assert jobs["lm_head.weight"].values("weight") == [0.3, 0.3]
    assert not jobs["lm_head.weight"].flag("normalize")


def test_slices_are_renumbered_and_remember_their_origin(tmp_path: Path) -> None:
    a, b = model(tmp_path, "a"), model(tmp_path, "b")
    slices = [
        {"sources": [{"model": a, "layer_range": [0, 3]}]},
        {"sources": [{"model": b, "layer_range": [2, 4]}]},
    ]
    made = plan({"merge_method": "passthrough", "slices": slices})
    assert made.num_layers == 5
    assert made.layers[-1] == LayerOrigin(model=b, index=3)
    sources = {job.name: job.sources[0] for job in made.jobs}
    assert sources["model.layers.4.input_layernorm.weight"].name == "model.layers.3.input_layernorm.weight"
    assert sources["model.embed_tokens.weight"].model == a
    assert sources["model.norm.weight"].model == b


def test_layers_are_found_in_any_naming(tmp_path: Path) -> None:
    shape = torch.zeros(4, 4)
    names = [
        "tower.block.0.w",
        "tower.block.1.w",
        "tower.block.2.w",
        "tok_emb.weight",
        "experts.0.w",
        "experts.1.w",
        "ln_f.weight",
    ]
    folder = toy.save(tmp_path / "m", {"n_layer": 3}, {name: shape.clone() for name in names})
    found = layer_names(open_header(folder))
    assert found.main is not None
    assert (found.main.prefix, found.layers) == ("tower.block.", (("w",), ("w",), ("w",)))
    assert found.main.name(2, "w") == "tower.block.2.w"
    assert [stack.prefix for stack in found.stacks] == ["experts.", "tower.block."]
    assert (found.before, found.after) == ((), ("ln_f.weight", "tok_emb.weight"))


def test_config_and_weights_that_do_not_belong_together(tmp_path: Path) -> None:
    folder = model(tmp_path, "a")
    settings = json.loads((Path(folder) / "config.json").read_text()) | {"num_hidden_layers": 7}
    (Path(folder) / "config.json").write_text(json.dumps(settings))
    with pytest.raises(PlanError, match="no tensors numbered as 7 layers"):
        plan(linear(folder))


def test_all_models_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    good = model(tmp_path, "a")
    with pytest.raises(PlanError) as caught:
        plan(linear(good, str(tmp_path / "no"), str(tmp_path / "nowhere")))
    assert [problem.where for problem in caught.value.problems] == [
        str(tmp_path / "no"),
        str(tmp_path / "nowhere"),
    ]


def test_shapes_that_differ(tmp_path: Path) -> None:
    a, b = model(tmp_path, "a"), model(tmp_path, "b", hidden=64)
    with pytest.raises(PlanError, match="merge models of one architecture and size") as caught:
        plan(linear(a, b))
    text = str(caught.value)
    assert f"model.norm.weight: shapes differ: {a} has [32], {b} has [64]" in text or "and 19 more" in text
    assert len(caught.value.problems) == 21


def test_vocabularies_that_differ(tmp_path: Path) -> None:
    a, b = model(tmp_path, "a"), model(tmp_path, "b", vocabulary=70)
    with pytest.raises(
        PlanError, match=r"model\.embed_tokens\.weight: shapes differ.*vocabularies differ"
    ) as caught:
        plan(linear(a, b))
    assert [problem.where for problem in caught.value.problems] == [
        "model.embed_tokens.weight",
        "lm_head.weight",
    ]


def test_a_tensor_that_one_model_lacks(tmp_path: Path) -> None:
    a, b = model(tmp_path, "a"), model(tmp_path, "b", tie_word_embeddings=True)
    with pytest.raises(PlanError, match=rf"lm_head\.weight: missing in {b}"):
        plan(linear(a, b))


def test_numbers_of_layers_that_differ(tmp_path: Path) -> None:
    a, b = model(tmp_path, "a"), model(tmp_path, "b", layers=3)
    with pytest.raises(
        PlanError, match=rf"numbers of layers \(model.layers.\*\) differ: {a} has 4, {b} has 3 .*slices"
    ):
        plan(linear(a, b))


def test_layer_ranges_out_of_bounds(tmp_path: Path) -> None:
    a = model(tmp_path, "a")
    slices = [{"sources": [{"model": a, "layer_range": list(bounds)}]} for bounds in ((0, 4), (2, 5), (7, 9))]
    with pytest.raises(PlanError) as caught:
        plan({"merge_method": "passthrough", "slices": slices})
    assert [problem.where for problem in caught.value.problems] == [
        "slices[1].sources[0].layer_range",
        "slices[2].sources[0].layer_range",
    ]
    assert f"[2, 5] is out of range ({a} has layers 0 to 3)" in str(caught.value)


def test_a_parameter_that_no_filter_gives(tmp_path: Path) -> None:
    a = model(tmp_path, "a")
    with pytest.raises(PlanError, match=r"no filter matches 'model\.embed_tokens\.weight'.*without a filter"):
        plan(linear(a, weight=[{"filter": "mlp", "value": 1.0}]))


def test_planning_reads_no_tensor_data(tmp_path: Path) -> None:
    a = model(tmp_path, "a")
    file = Path(a) / SINGLE_FILE
    size = file.stat().st_size
    with file.open("r+b") as stream:  # wipe the data behind the header
        length = int.from_bytes(stream.read(8), "little")
        stream.truncate(8 + length)
        stream.truncate(size)
    assert len(plan(linear(a)).jobs) == len(toy.shapes(toy.config()))
