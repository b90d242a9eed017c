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
        {"model": a, "layer_range": [0, 4], "parameters": {"weight": [{"filter": "mlp", "value": 0.1}]}},
        {"model": b, "layer_range": [0, 4]},
    ]
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


def headless(folder: Path, name: str) -> str:
    """A model whose config says that it has an output head, which it has not."""
    tensors = toy.random_tensors(toy.config(tie_word_embeddings=True), 0)
    return str(toy.save(folder / name, toy.config(), tensors))


def test_a_tensor_that_one_model_lacks(tmp_path: Path) -> None:
    a, b = model(tmp_path, "a"), headless(tmp_path, "b")
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


def stacks(folder: Path, name: str, settings: dict[str, Any], layers: dict[str, int]) -> str:
    """A model of one small matrix for each layer, and embeddings, by the prefixes of its stacks."""
    names = [f"{prefix}{i}.w" for prefix, count in layers.items() for i in range(count)]
    tensors = {key: torch.zeros(2, 2) for key in ("embed_tokens.weight", *names)}
    return str(toy.save(folder / name, settings, tensors))


def test_layers_for_further_tokens_follow_the_new_ones(tmp_path: Path) -> None:
    settings = {"num_hidden_layers": 3, "num_nextn_predict_layers": 1}
    a = stacks(tmp_path, "a", settings, {"model.layers.": 4})
    slices = [{"sources": [{"model": a, "layer_range": layers}]} for layers in ([0, 3], [1, 3])]
    made = plan({"merge_method": "passthrough", "slices": slices})
    origins = {job.name: job.sources[0].name for job in made.jobs}
    assert origins["model.layers.4.w"] == "model.layers.2.w"
    assert origins["model.layers.5.w"] == "model.layers.3.w"
    assert len(origins) == 7
    slices[0]["sources"][0]["layer_range"] = [0, 4]
    with pytest.raises(PlanError, match=r"\[0, 4\] is out of range .*layers 0 to 2"):
        plan({"merge_method": "passthrough", "slices": slices})


def test_slices_are_of_the_language_model_and_the_rest_is_kept(tmp_path: Path) -> None:
    settings = {"text_config": {"num_hidden_layers": 2}, "vision_config": {"depth": 3}}
    layers = {"model.language_model.layers.": 2, "model.visual.blocks.": 3}
    a, b = (stacks(tmp_path, name, settings, layers) for name in "ab")
    slices = [
        {"sources": [{"model": a, "layer_range": [0, 1]}]},
        {"sources": [{"model": b, "layer_range": [0, 2]}]},
    ]
    made = plan({"merge_method": "passthrough", "slices": slices, "parameters": {"scale": 3.0}})
    scales = {job.name: (job.sources[0].model, job.values("scale")) for job in made.jobs}
    assert scales["model.language_model.layers.2.w"] == (b, [3.0])
    assert scales["model.visual.blocks.2.w"] == (a, [1.0])
    (stack,) = made.stacks
    assert (stack.path, stack.old_count, stack.main) == (("model", "language_model", "layers"), 2, True)


def test_slices_of_an_encoder_and_a_decoder_need_modules(tmp_path: Path) -> None:
    settings = {"encoder_layers": 2, "decoder_layers": 3}
    a = stacks(tmp_path, "a", settings, {"encoder.layers.": 2, "decoder.layers.": 3})
    piece = {"slices": [{"sources": [{"model": a, "layer_range": [0, 2]}]}]}
    with pytest.raises(
        PlanError, match=r"several stacks of layers \(say .* under modules: encoder, decoder\)"
    ):
        plan({"merge_method": "passthrough", **piece})
    with pytest.raises(PlanError, match=r"modules\.decodr: .* has no such part .did you mean decoder"):
        plan({"merge_method": "passthrough", "modules": {"decodr": piece}})
    made = plan({"merge_method": "passthrough", "modules": {"decoder": piece, "encoder": piece}})
    assert len(made.jobs) == 5
    assert [(stack.path[0], stack.main, len(stack.layers)) for stack in made.stacks] == [
        ("decoder", False, 2),
        ("encoder", False, 2),
    ]


def test_a_module_without_layers_has_no_slices(tmp_path: Path) -> None:
    settings = toy.config()
    tensors = toy.random_tensors(settings, 0) | {"multi_modal_projector.w": torch.zeros(2, 2)}
    a = str(toy.save(tmp_path / "a", settings, tensors))
    piece = {"slices": [{"sources": [{"model": a, "layer_range": [0, 1]}]}]}
    with pytest.raises(PlanError, match=rf"layer_range: \[0, 1\] is out of range \({a} has no layers there"):
        plan({"merge_method": "passthrough", "modules": {"multi_modal_projector": piece}})


def test_slices_that_hold_no_layers(tmp_path: Path) -> None:
    a = model(tmp_path, "a")
    slices = [{"sources": [{"model": a, "layer_range": [2, 2]}]}]
    with pytest.raises(PlanError, match="slices: no layers are left"):
        plan({"merge_method": "passthrough", "slices": slices})
    slices.append({"sources": [{"model": a, "layer_range": [0, 3]}]})
    assert plan({"merge_method": "passthrough", "slices": slices}).num_layers == 3


def test_parameters_of_a_module_stand_between_slice_and_merge(tmp_path: Path) -> None:
    a = model(tmp_path, "a")  # values as mergekit 0.1.5 gives them
    source = {"model": a, "layer_range": [0, 4], "parameters": {"weight": [{"filter": "mlp", "value": 3}]}}
    piece = {"sources": [source], "parameters": {"weight": [{"filter": "embed", "value": 11}]}}
    module = {"slices": [piece], "parameters": {"weight": [{"filter": "self_attn", "value": 5}]}}
    made = plan({"merge_method": "linear", "parameters": {"weight": 7}, "modules": {"default": module}})
    weights = {job.name: job.values("weight") for job in made.jobs}
    assert weights["model.embed_tokens.weight"] == [11]
    assert weights["model.layers.0.mlp.up_proj.weight"] == [3]
    assert weights["model.layers.0.self_attn.q_proj.weight"] == [5]
    assert weights["lm_head.weight"] == [7]


def test_a_base_that_is_not_listed_is_merged_like_the_others(tmp_path: Path) -> None:
    a, b = model(tmp_path, "a"), model(tmp_path, "b")
    data = linear(a, weight=5.0) | {"base_model": b, "parameters": {"weight": 2.0}}
    job = plan(data).jobs[0]  # so does mergekit 0.1.5
    assert [(ref.model, weight) for ref, weight in zip(job.sources, job.values("weight"), strict=True)] == [
        (a, 5.0),
        (b, 2.0),
    ]
    slices = [{"sources": [{"model": a, "layer_range": [0, 4]}]}]
    made = plan({"merge_method": "passthrough", "base_model": b, "slices": slices})
    assert {ref.model for job in made.jobs for ref in job.sources} == {a}
    assert made.config_source == b


def test_architectures_that_differ_need_a_word(tmp_path: Path) -> None:
    a, b = model(tmp_path, "a"), model(tmp_path, "b", architectures=["MistralForCausalLM"])
    with pytest.raises(PlanError, match=rf"{b}: it is a MistralForCausalLM, but {a} .*pass --allow-crimes"):
        plan(linear(a, b))
    recipe = parse_recipe(linear(a, b))
    made = make_plan(recipe, lambda reference: open_header(Path(reference)), allow_crimes=True)
    assert len(made.jobs) == len(toy.shapes(toy.config()))
    c = model(tmp_path, "c", architectures=None)
    assert plan(linear(a, c)).jobs
    d = model(tmp_path, "d", architectures=None, model_type="mistral")
    with pytest.raises(PlanError, match=rf"{d}: it is a mistral, but {a} a llama"):
        plan(linear(a, d))


def test_what_only_another_model_has_is_not_dropped(tmp_path: Path) -> None:
    a, b = headless(tmp_path, "a"), model(tmp_path, "b")
    with pytest.raises(PlanError, match=rf"lm_head\.weight: missing in {a}, but {b} has it"):
        plan(linear(a, b))
    vision = {"text_config": {"num_hidden_layers": 2}}
    c = stacks(tmp_path, "c", vision, {"layers.": 2})
    d = stacks(tmp_path, "d", vision, {"layers.": 2, "visual.blocks.": 3})
    with pytest.raises(PlanError, match=rf"visual\.blocks\.0\.w: missing in {c}, but {d} has it"):
        plan(linear(c, d))
    recipe = parse_recipe(linear(c, d))
    made = make_plan(recipe, lambda reference: open_header(Path(reference)), allow_crimes=True)
    assert len(made.jobs) == 3


def test_computed_tensors_need_not_be_in_all_models(tmp_path: Path) -> None:
    settings = toy.config()
    tensors = toy.random_tensors(settings, 0)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    a = str(toy.save(tmp_path / "a", settings, tensors | {name: torch.ones(4)}))
    b = str(toy.save(tmp_path / "b", settings, tensors))
    kept = {job.name: job for job in plan(linear(a, b)).jobs}[name]
    assert (kept.method, [ref.model for ref in kept.sources]) == ("passthrough", [a])
    assert name not in {job.name for job in plan(linear(b, a)).jobs}


def test_models_of_several_dtypes_are_merged_in_one_that_holds_all(tmp_path: Path) -> None:
    settings = toy.config()
    stored = {"bf": torch.bfloat16, "half": torch.float16, "single": torch.float32}
    models = {
        name: str(toy.save(tmp_path / name, settings, toy.random_tensors(settings, 0, dtype=dtype)))
        for name, dtype in stored.items()
    }

    def dtypes(*names: str, **more: str) -> set[tuple[str | None, str | None]]:
        made = plan({**linear(*(models[name] for name in names)), **more})
        return {(job.dtype, job.out_dtype) for job in made.jobs}

    assert dtypes("bf") == {("bfloat16", "bfloat16")}
    assert dtypes("bf", "half") == dtypes("half", "bf") == {("float32", "float32")}
    assert dtypes("half", "single") == {("float32", "float32")}
    assert dtypes("bf", "single", dtype="float16") == {("float16", "float16")}
    assert dtypes("bf", "half", out_dtype="bfloat16") == {("float32", "bfloat16")}


def _one_byte(folder: Path, **more: Any) -> str:
    settings = toy.config(**more)
    tensors = toy.random_tensors(settings, 0, dtype=torch.float8_e4m3fn)
    return str(toy.save(folder, settings, tensors))


def test_numbers_of_one_byte_are_merged_where_a_dtype_is_given(tmp_path: Path) -> None:
    a, b = _one_byte(tmp_path / "a"), model(tmp_path, "b")
    with pytest.raises(PlanError, match=r"stores it in one byte \(F8_E4M3\) \(say in which dtype to merge"):
        plan(linear(b, a))
    assert {job.dtype for job in plan({**linear(b, a), "dtype": "bfloat16"}).jobs} == {"bfloat16"}
    copied = plan({"merge_method": "passthrough", "models": [{"model": a}]})
    assert {job.dtype for job in copied.jobs} == {None}


def test_quantised_models_are_only_copied(tmp_path: Path) -> None:
    a = _one_byte(tmp_path / "a", quantization_config={"quant_method": "fp8"})
    with pytest.raises(PlanError, match="is quantised: its numbers cannot be merged"):
        plan({**linear(model(tmp_path, "b"), a), "dtype": "bfloat16"})
    copied = plan({"merge_method": "passthrough", "models": [{"model": a}], "dtype": "bfloat16"})
    assert {job.dtype for job in copied.jobs} == {None}
