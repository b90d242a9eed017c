"""Paths through layers: reading the search file, vector <-> recipe, what counts and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genome import (
    ModelFacts,
    RefusedRecipe,
    SearchFileError,
    build_space,
    frozen_search_file,
    parse_search_file,
)
from genome.slice_layout import LayoutSpec
from genome.slice_layout_space import LayoutSpace
from merge_engine.spec import Filtered, Recipe, dump_yaml, load_yaml, parse_recipe, recipe_data

LAYER = (
    "input_layernorm.weight",
    "mlp.down_proj.weight",
    "post_attention_layernorm.weight",
    "self_attn.o_proj.weight",
)
FACTS = ModelFacts(num_layers=3, dtype="bfloat16", model_type="llama", layer_tensors=LAYER, vocab_size=9)
MODELS = {"a": FACTS, "b": replace(FACTS, num_layers=4)}


def space(models: dict[str, ModelFacts] | None = None, **changes: Any) -> LayoutSpace:
    given = MODELS if models is None else models
    return LayoutSpace(LayoutSpec(**{"models": tuple(given), "repeats": 2} | changes), given)


def parsed(text: str) -> LayoutSpec:
    genome = parse_search_file(f"layout: {text}\ntasks: [t]\n").genome
    assert isinstance(genome, LayoutSpec)
    return genome


def at(made: LayoutSpace, *on: str, **scales: float) -> Recipe:
    """The recipe where the named slots (``"b 1, turn 0"``) are on and all others off."""
    vector = np.array([1.0 if kind == "real" else 0.0 for kind in made.kinds])
    for slot in on:
        vector[made.names.index(f"use {slot.replace(' ', ' layer ', 1)}")] = 1.0
    for slot, scale in scales.items():
        model, layer, *turn = slot.split("_")
        where = f"{model} layer {layer}" + (f", turn {turn[0]}" if turn else "")
        vector[made.names.index(f"scale into {where}")] = scale
    return made.decode(vector)


def path(recipe: Recipe) -> list[tuple[str, int, int]]:
    return [(piece.sources[0].model, *piece.sources[0].layer_range) for piece in recipe.slices or ()]


def factors(recipe: Recipe) -> list[object]:
    """What multiplies the output projections of each slice."""
    scales = [piece.sources[0].parameters.get("scale") for piece in recipe.slices or ()]
    return [scale[0].value if isinstance(scale, tuple) else 1.0 for scale in scales]  # type: ignore[union-attr]


def test_the_defaults_are_those_of_the_paper_and_frozen_in_full() -> None:
    spec = parsed("{models: [a, b]}")
    assert spec == LayoutSpec(models=("a", "b"), repeats=3, keep_ends=True, scales="hop", max_layers=None)
    text = "{models: [a], repeats: 1, keep_ends: false, scales: none, max_layers: 7}"
    for file in (
        f"layout: {text}\ntasks: [t]\n",
        "layout: {models: [a, b], scale_bounds: [-1, 2]}\ntasks: [t]\n",
    ):
        search_file = parse_search_file(file)
        assert parse_search_file(dump_yaml(frozen_search_file(search_file))) == search_file


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", r"layout\.models: no model is given"),
        ("{models: [a, a]}", r"layout\.models\[1\]: 'a' is already in the list"),
        ("{models: [1]}", r"layout\.models\[0\]: expected a text"),
        ("{models: [a], repeats: 0}", r"layout\.repeats: 0 is out of range"),
        ("{models: [a], scales: all}", r"layout\.scales: unknown value 'all'.*none, layer, hop"),
        ("{models: [a], scale_bounds: [2, 3]}", r"layout\.scale_bounds: .* leaves out 1"),
        ("{models: [a], scale_bounds: [2]}", r"expected \[low, high\]"),
        ("{models: [a], scales: none, scale_bounds: [0.5, 2]}", "has no effect"),
        ("{models: [a], hops: 3}", r"layout\.hops: unknown key"),
    ],
)
def test_a_wrong_layout_is_refused(text: str, problem: str) -> None:
    with pytest.raises(SearchFileError, match=problem):
        parsed(text)


@pytest.mark.parametrize(
    ("facts", "changes", "problem"),
    [
        ({"a": FACTS, "b": replace(FACTS, model_type="qwen2")}, {}, r"b \('qwen2'\) is not built like a"),
        ({"a": FACTS, "b": replace(FACTS, layer_tensors=LAYER[:2])}, {}, "is not built like a"),
        ({"a": replace(FACTS, num_layers=1)}, {}, r"keep_ends: a has only one layer"),
        (MODELS, {"max_layers": 2}, r"max_layers: 2 is less than the 3 layers of a"),
        ({"a": replace(FACTS, model_type="gemma2")}, {}, "'gemma2' models.*scales: none"),
        ({"a": replace(FACTS, model_type="gemma")}, {"scale_bounds": (-1.0, 2.0)}, "cannot take a negative"),
    ],
)
def test_models_that_make_no_path_are_refused(
    facts: dict[str, ModelFacts], changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(SearchFileError, match=problem):
        space(facts, **changes)


def test_without_scales_any_architecture_is_taken() -> None:
    odd = replace(FACTS, model_type="made_up")
    assert path(space({"a": odd}, scales="none").baselines()[0].recipe) == [("a", 0, 3)]


def test_the_start_is_the_first_models_own_path() -> None:
    for keep_ends in (True, False):
        made = space(keep_ends=keep_ends)
        assert path(made.decode(made.start)) == [("a", 0, 3)]
        assert factors(made.decode(made.start)) == [1.0]


def test_slots_are_all_layers_of_all_models_so_many_times() -> None:
    uses = [name for name in space(keep_ends=False, scales="none").names if name.startswith("use")]
    assert uses[:8] == [
        *(f"use a layer {i}, turn 0" for i in range(3)),
        *(f"use b layer {i}, turn 0" for i in range(4)),
        "use a layer 0, turn 1",
    ]
    assert len(uses) == 14
    kept = space(scales="none")
    assert set(uses) - set(kept.names) == {"use a layer 0, turn 0", "use a layer 2, turn 0"}
    assert set(kept.kinds) == {"categorical"}


def test_scale_genes_are_one_for_each_slot_or_for_each_layer() -> None:
    # The first slot of all is entered from nowhere.
    assert space(keep_ends=False).kinds.count("real") == 13
    assert space(keep_ends=False, scales="layer").kinds.count("real") == 7


def test_contiguous_layers_become_one_slice() -> None:
    on = ("a 1, turn 0", "b 0, turn 0", "b 1, turn 0", "b 3, turn 0", "a 1, turn 1")
    recipe = at(space(max_layers=9), *on)
    assert path(recipe) == [("a", 0, 2), ("b", 0, 2), ("b", 3, 4), ("a", 1, 3)]


def test_hop_scales_count_where_the_path_jumps_and_add_up() -> None:
    on = ("a 1, turn 0", "b 2, turn 0", "b 3, turn 0")
    recipe = at(space(), *on, a_1_0=0.5, b_2_0=0.5, b_3_0=0.6, a_2_0=1.5, b_1_0=0.7)
    assert path(recipe) == [("a", 0, 2), ("b", 2, 4), ("a", 2, 3)]
    assert factors(recipe) == [1.0, 2.0, pytest.approx(1 / 0.75, rel=1e-5)]


def test_layer_scales_count_wherever_the_layer_is_entered() -> None:
    recipe = at(space(scales="layer"), "a 1, turn 0", "a 1, turn 1", a_1=0.5)
    assert path(recipe) == [("a", 0, 1), ("a", 1, 2), ("a", 1, 3)]  # a 2 keeps the scale
    assert factors(recipe) == [1.0, 2.0, 4.0]


def test_scales_are_written_on_output_projections_and_signs_on_norms() -> None:
    made = space(scale_bounds=(-2.0, 2.0))
    recipe = at(made, "a 1, turn 0", "b 1, turn 0", b_1_0=-0.5)
    entries = (recipe.slices or ())[1].sources[0].parameters["scale"]
    assert entries == (
        Filtered(filter="self_attn.o_proj", value=-2.0),
        Filtered(filter="mlp.down_proj", value=-2.0),
        Filtered(filter="input_layernorm.weight", value=-1.0),
        Filtered(filter="post_attention_layernorm.weight", value=-1.0),
    )
    last = (recipe.slices or ())[-1].sources[0].parameters["scale"]
    assert last == (*entries, Filtered(filter="model.norm.weight", value=-1.0))


def test_embeddings_and_head_are_the_first_models_even_without_its_layers() -> None:
    recipe = at(space(keep_ends=False), "b 1, turn 0")
    assert path(recipe) == [("a", 0, 0), ("b", 1, 2), ("a", 0, 0)]
    turned = at(space(keep_ends=False, scale_bounds=(-2.0, 2.0)), "a 0, turn 0", "b 1, turn 0", b_1_0=-0.5)
    last = (turned.slices or ())[-1].sources[0].parameters["scale"]
    assert Filtered(filter="model.norm.weight", value=-1.0) in last  # type: ignore[operator]


def test_slots_beyond_max_layers_do_not_count_but_the_last_layer_stays() -> None:
    on = [f"{model} {i}, turn 0" for model, i in (("a", 1), ("b", 0), ("b", 1), ("b", 2), ("b", 3))]
    assert path(at(space(max_layers=4), *on)) == [("a", 0, 2), ("b", 0, 1), ("a", 2, 3)]
    assert path(at(space(max_layers=3, keep_ends=False), *on)) == [("a", 1, 2), ("b", 0, 2), ("a", 0, 0)]


def test_what_makes_no_merge_is_refused_by_type() -> None:
    with pytest.raises(RefusedRecipe, match="the path has no layers"):
        at(space(keep_ends=False))
    made = space(scales="layer", repeats=20, max_layers=60, scale_bounds=(0.01, 2.0))
    vector = np.where(np.array(made.kinds) == "real", 0.25, 1.0)
    with pytest.raises(RefusedRecipe, match="scales along the path multiply to"):
        made.decode(vector)


@given(
    data=st.data(),
    keep_ends=st.booleans(),
    scales=st.sampled_from(["none", "layer", "hop"]),
    bounds=st.sampled_from([(0.5, 1.5), (-1.0, 2.0)]),
)
def test_any_vector_is_a_recipe_that_encodes_or_is_refused(
    data: st.DataObject, keep_ends: bool, scales: str, bounds: tuple[float, float]
) -> None:
    made = space(keep_ends=keep_ends, scales=scales, scale_bounds=bounds)
    coordinates = [
        st.sampled_from([low, high])
        if kind == "categorical"
        else st.one_of(st.sampled_from([low, high, 1.0]), st.floats(low, high))
        for kind, low, high in zip(made.kinds, made.lower, made.upper, strict=True)
    ]
    vector = np.array(data.draw(st.tuples(*coordinates)), dtype=np.float64)
    try:
        recipe = made.decode(vector)
    except RefusedRecipe:
        return
    assert parse_recipe(load_yaml(dump_yaml(recipe_data(recipe)))) == recipe
    layers = sum(end - start for _, start, end in path(recipe))
    assert 1 <= layers <= made.most_layers
    found = made.encode(recipe)
    assert found is not None
    assert np.all((made.lower <= found) & (found <= made.upper))
    assert made.decode(found) == recipe


@pytest.mark.parametrize(
    "slices",
    [
        [("b", 0, 2), ("a", 2, 3)],  # does not begin with a's first layer
        [("a", 0, 1), ("c", 1, 2), ("a", 2, 3)],  # no such model
        [("a", 0, 1), *[("b", 1, 2)] * 3, ("a", 2, 3)],  # more often than there are slots
        [("a", 0, 3), ("b", 0, 4), ("b", 0, 3)],  # longer than may be, and the wrong end
    ],
)
def test_a_recipe_that_is_no_path_has_no_vector(slices: list[tuple[str, int, int]]) -> None:
    data = {
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": m, "layer_range": [i, j]}]} for m, i, j in slices],
        "dtype": "bfloat16",
    }
    assert space().encode(parse_recipe(data)) is None


def test_baselines_are_the_models_alone_and_all_layers_once() -> None:
    made = space(max_layers=7)
    found = {baseline.name: baseline for baseline in made.baselines()}
    assert list(found) == ["source:a", "source:b", "stacked"]
    assert found["source:b"].vector is None
    assert recipe_data(found["source:b"].recipe)["models"] == [{"model": "b"}]
    assert path(found["stacked"].recipe) == [("a", 0, 2), ("b", 0, 4), ("a", 2, 3)]
    for name in ("source:a", "stacked"):
        vector = found[name].vector
        assert vector is not None
        assert made.decode(vector) == found[name].recipe


def test_baselines_leave_out_what_cannot_be_scored() -> None:
    other = {"a": FACTS, "b": replace(FACTS, vocab_size=10)}
    assert [baseline.name for baseline in space(other, max_layers=5).baselines()] == ["source:a"]


def test_the_search_file_makes_the_space() -> None:
    search_file = parse_search_file("layout: {models: [a, b], repeats: 1}\ntasks: [t]\n")
    made = build_space(search_file, MODELS)
    assert path(made.decode(made.start)) == [("a", 0, 3)]
