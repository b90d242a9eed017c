"""Vector <-> recipe: what is decoded, that it is a valid recipe, and the exact way back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genome import Space, VectorError
from merge_engine.spec import Filtered, Recipe, dump_yaml, load_yaml, parse_recipe, recipe_data
from tests.genome.made import LAYERS, space

SPACES: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear"},
    "linear with base": {"merge_method": "linear", "base_model": "b"},
    "task_arithmetic": {"merge_method": "task_arithmetic", "allow_negative_weights": True},
    "ties": {"filters": ["mlp", "self_attn"]},
    "ties in steps": {"layer_granularity": 3},
    "ties in steps with filters": {"layer_granularity": 2, "filters": ["mlp"], "tokenizer_source": "base"},
    "dare_ties smooth": {"merge_method": "dare_ties", "layer_granularity": 3, "smooth": True},
    "dare_linear smooth": {
        "merge_method": "dare_linear",
        "layer_granularity": 2,
        "smooth": True,
        "filters": ["mlp"],
        "bounds": {"lambda": [0.5, 2]},
    },
    "one model": {"models": ["a"], "bounds": {"lambda": [0.5, 2]}, "layer_granularity": 4},
    "slerp": {"merge_method": "slerp", "models": ["a", "b"]},
    "slerp in steps": {
        "merge_method": "slerp",
        "models": ["a", "b"],
        "base_model": "b",
        "layer_granularity": 2,
    },
    "slerp smooth": {"merge_method": "slerp", "models": ["a", "b"], "layer_granularity": 2, "smooth": True},
    "slerp of three": {"merge_method": "slerp", "filters": ["mlp"]},
    "slerp of three in steps": {"merge_method": "slerp", "layer_granularity": 3, "tokenizer_source": "base"},
    "passthrough": {"merge_method": "passthrough", "models": ["a"], "bounds": {"scale": [0.5, 2]}},
}
BUILT = {name: space(**changes) for name, changes in SPACES.items()}
DIRECT = {name: built for name, built in BUILT.items() if "of three" not in name}


def vectors(built: Space) -> st.SearchStrategy[np.ndarray]:
    """Points of the box, its faces and corners included."""
    ends = zip(built.lower.tolist(), built.upper.tolist(), strict=True)
    return st.tuples(*(st.floats(low, high) for low, high in ends)).map(np.array)


def check_ranges(recipe: Recipe) -> None:
    """The recipe is valid, survives YAML exactly, and covers every layer once."""
    data = recipe_data(recipe)
    assert parse_recipe(load_yaml(dump_yaml(data))) == recipe
    if recipe.slices is not None:
        ranges = [piece.sources[0].layer_range for piece in recipe.slices]
        assert [layer for start, end in ranges for layer in range(start, end)] == list(range(LAYERS))


@pytest.mark.parametrize("name", BUILT)
def test_every_point_of_the_box_is_a_valid_recipe(name: str) -> None:
    @given(vectors(BUILT[name]))
    def check(vector: np.ndarray) -> None:
        check_ranges(BUILT[name].decode(vector))

    check()


@pytest.mark.parametrize("name", DIRECT)
def test_the_way_back_is_exact(name: str) -> None:
    @given(vectors(DIRECT[name]))
    def check(vector: np.ndarray) -> None:
        found = DIRECT[name].encode(DIRECT[name].decode(vector))
        assert found is not None
        assert found.tolist() == vector.tolist()

    check()


@pytest.mark.parametrize("name", BUILT)
def test_names_bounds_and_start_fit_together(name: str) -> None:
    built = BUILT[name]
    assert len(set(built.names)) == len(built.names) == built.lower.size
    assert built.lower.dtype == built.upper.dtype == built.start.dtype == np.float64
    assert np.all(built.lower < built.upper)
    assert np.all((built.lower <= built.start) & (built.start <= built.upper))
    with pytest.raises(ValueError, match="read-only"):
        built.start[0] = 0.0


def test_other_recipes_have_no_vector() -> None:
    built = space()
    other = space(merge_method="task_arithmetic").decode(space(merge_method="task_arithmetic").start)
    assert built.encode(other) is None
    steps = BUILT["ties in steps"]
    assert built.encode(steps.decode(np.linspace(0.1, 1.0, len(steps.start)))) is None
    assert built.encode(space(dtype="float32").decode(built.start)) is None
    assert (
        built.encode(space(bounds={"weight": [2, 3]}).decode(space(bounds={"weight": [2, 3]}).start)) is None
    )
    assert space(models=["a", "b"]).encode(built.decode(built.start)) is None
    three = BUILT["slerp of three"]
    assert three.encode(three.decode(three.start)) is None


def test_a_recipe_over_whole_models_is_found_among_slices_and_filters() -> None:
    steps = BUILT["ties in steps with filters"]
    vector = steps.encode(space(tokenizer_source="base").decode(np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])))
    assert vector is not None
    assert vector.reshape(-1, 6).tolist() == [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]] * 8


def test_one_set_for_all_layers_is_a_recipe_over_whole_models() -> None:
    built = space(models=["a", "b"])
    assert built.names == ("weight of a", "density of a", "weight of b", "density of b")
    recipe = built.decode(np.array([0.1, 0.2, 0.3, 0.4]))
    assert recipe_data(recipe) == {
        "merge_method": "ties",
        "base_model": "root",
        "models": [
            {"model": "root"},
            {"model": "a", "parameters": {"weight": 0.1, "density": 0.2}},
            {"model": "b", "parameters": {"weight": 0.3, "density": 0.4}},
        ],
        "parameters": {"normalize": True, "int8_mask": True},
        "dtype": "bfloat16",
    }


def test_steps_are_slices_and_filters_values_with_one_for_the_rest() -> None:
    built = space(models=["a"], merge_method="task_arithmetic", layer_granularity=4, filters=["mlp"])
    assert built.names == (
        "weight of a, layers 0-3, mlp",
        "weight of a, layers 0-3, rest",
        "weight of a, layers 4-6, mlp",
        "weight of a, layers 4-6, rest",
    )
    recipe = built.decode(np.array([0.1, 0.2, 0.3, 0.4]))
    assert recipe.models is None
    assert recipe.slices is not None
    assert [source.layer_range for piece in recipe.slices for source in piece.sources] == [(0, 4)] * 2 + [
        (4, 7)
    ] * 2
    assert [source.model for source in recipe.slices[1].sources] == ["root", "a"]
    assert recipe.slices[1].sources[0].parameters == {}
    assert recipe.slices[1].sources[1].parameters == {
        "weight": (Filtered(filter="mlp", value=0.3), Filtered(value=0.4))
    }


def test_smooth_sets_are_nodes_of_gradients() -> None:
    built = space(models=["a"], merge_method="task_arithmetic", layer_granularity=3, smooth=True)
    assert built.names == ("weight of a, node 0", "weight of a, node 1", "weight of a, node 2")
    recipe = built.decode(np.array([0.1, 0.2, 0.3]))
    assert recipe.models is not None
    assert recipe.models[1].parameters == {"weight": (0.1, 0.2, 0.3)}


def test_two_models_are_blended_from_the_base() -> None:
    recipe = space(merge_method="slerp", models=["a", "b"], base_model="b").decode(np.array([0.25]))
    assert recipe.base_model == "b"
    assert recipe.models is not None
    assert [entry.model for entry in recipe.models] == ["b", "a"]
    assert recipe.parameters == {"t": 0.25}
    assert space(merge_method="slerp", models=["a", "b"]).decode(np.array([0.25])).base_model == "a"


def test_of_three_models_the_two_with_the_largest_genes_are_blended() -> None:
    built = space(merge_method="slerp", layer_granularity=4)
    assert built.names[:3] == (
        "preference of a, layers 0-3",
        "preference of b, layers 0-3",
        "preference of c, layers 0-3",
    )
    recipe = built.decode(np.array([1.0, -1.0, 2.0, 0.5, 0.5, 0.5]))
    assert recipe.slices is not None
    first, second = recipe.slices
    assert ([source.model for source in first.sources], first.base_model) == (["a", "c"], "a")
    assert first.parameters == {"t": pytest.approx(math.exp(2) / (math.exp(1) + math.exp(2)))}
    assert ([source.model for source in second.sources], second.base_model) == (["a", "b"], "a")
    assert second.parameters == {"t": 0.5}


def test_with_filters_the_pair_is_chosen_by_the_sum_and_each_filter_blends_on_its_own() -> None:
    built = space(merge_method="slerp", filters=["mlp"])
    recipe = built.decode(np.array([3.0, 0.0, 1.0, 0.0, 0.5, 1.0]))
    assert recipe.base_model == "a"
    assert recipe.models is not None
    assert [entry.model for entry in recipe.models] == ["a", "c"]
    assert recipe.parameters == {
        "t": (
            Filtered(filter="mlp", value=pytest.approx(1 / (1 + math.exp(2)))),
            Filtered(value=pytest.approx(1 / (1 + math.exp(-1)))),
        )
    }


@pytest.mark.parametrize(
    "changes", [{}, {"layer_granularity": 3}, {"filters": ["mlp"], "merge_method": "linear"}]
)
def test_models_in_another_order_give_the_same_merge(changes: dict[str, Any]) -> None:
    plain, turned = space(**changes), space(models=["c", "a", "b"], **changes)
    moved = [turned.names.index(name) for name in plain.names]

    @given(vectors(plain))
    def check(vector: np.ndarray) -> None:
        other = np.empty_like(vector)
        other[moved] = vector
        assert by_model(plain.decode(vector)) == by_model(turned.decode(other))

    check()


def by_model(recipe: Recipe) -> list[tuple[object, dict[str, object]]]:
    """Per slice what each model gets, whatever the order of the models."""
    if recipe.models is not None:
        return [(recipe.parameters, {entry.model: entry.parameters for entry in recipe.models})]
    return [
        (
            piece.parameters,
            {source.model: (source.layer_range, source.parameters) for source in piece.sources},
        )
        for piece in recipe.slices or ()
    ]


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ([0.1, 0.2, 0.3], r"a vector of this space has the shape \(4,\), not \(3,\)"),
        ([0.1, 0.2, -0.3, 0.4], r"weight of b: .*-0.3.* lies outside \[0, 1.5\]"),
        ([0.1, 1.2, 0.3, 0.4], r"density of a: .*1.2.* lies outside \[0.1, 1\]"),
        ([0.1, 0.2, 0.3, math.nan], r"density of b: .*nan.* lies outside"),
        ([math.inf, 0.2, 0.3, 0.4], r"weight of a: .*inf.* lies outside"),
    ],
)
def test_bounds_are_bounds(vector: list[float], message: str) -> None:
    with pytest.raises(VectorError, match=message):
        space(models=["a", "b"]).decode(np.array(vector))


def test_a_rounding_error_beyond_the_bounds_is_moved_onto_them() -> None:
    built = space(models=["a", "b"])
    recipe = built.decode(np.array([-1e-12, 1 + 1e-12, 0.3, 0.4]))
    assert recipe.models is not None
    assert recipe.models[1].parameters == {"weight": 0.0, "density": 1.0}


def test_the_start_is_uniform_within_the_bounds() -> None:
    assert space().start.tolist() == [1 / 3, 1.0] * 3
    assert space(bounds={"weight": [0.5, 1]}).start.tolist() == [0.5, 1.0] * 3
    assert space(bounds={"lambda": [0.5, 2]}).start.tolist() == [1 / 3, 1.0] * 3 + [1.0]
    assert space(merge_method="slerp", models=["a", "b"]).start.tolist() == [0.5]


def test_a_granularity_beyond_the_layers_is_one_set_for_all() -> None:
    wide, whole = space(layer_granularity=8), space()
    assert wide.names == whole.names
    assert wide.decode(wide.start) == whole.decode(whole.start)


def test_the_dtype_of_the_search_file_goes_before_that_of_the_models() -> None:
    assert space().decode(space().start).dtype == "bfloat16"
    assert space(dtype="float32").decode(space().start).dtype == "float32"


@pytest.mark.parametrize(
    ("changes", "source"),
    [
        ({}, None),
        ({"tokenizer_source": "union"}, "union"),
        ({"tokenizer_source": "c"}, "c"),
        ({"tokenizer_source": "base"}, "base"),
        ({"tokenizer_source": "base", "merge_method": "linear"}, "a"),
        ({"tokenizer_source": "base", "merge_method": "linear", "base_model": "b"}, "base"),
        ({"tokenizer_source": "base", "merge_method": "linear", "base_model": "other"}, "other"),
        ({"tokenizer_source": "base", "merge_method": "slerp", "base_model": "c"}, "c"),
    ],
)
def test_the_tokenizer_is_that_of_the_search_file(changes: dict[str, Any], source: str | None) -> None:
    built = space(**changes)
    assert built.decode(built.start).tokenizer_source == source
