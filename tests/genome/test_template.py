"""Templates: what each kind of hole decodes to, how variables are named, what is refused."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genome import RefusedRecipe, SearchFileError, frozen_search_file, parse_search_file
from genome.template_space import TemplateSpace
from merge_engine.spec import Filtered, Recipe, dump_yaml, load_yaml, parse_recipe, recipe_data
from tests.genome.made import template_space

# The example that came with the request.
EXAMPLE: dict[str, Any] = {
    "merge_method": {"choose": ["ties", "dare_ties", "task_arithmetic"]},
    "base_model": "base",
    "models": [
        {
            "model": "math",
            "parameters": {
                "weight": [
                    {"filter": "self_attn", "value": {"search": [0.0, 1.0], "init": 0.5, "every": 4}},
                    {"value": {"search": [0.0, 1.0], "name": "rest"}},
                ],
                "density": {"search": [0.1, 1.0], "every": 4, "smooth": True},
            },
        },
        {"model": "code", "parameters": {"weight": {"search": [0.0, 1.0], "name": "rest"}, "density": 0.6}},
    ],
    "parameters": {
        "lambda": {"search": [0.5, 2.0], "scale": "log"},
        "normalize": {"choose": [True, False]},
    },
}


def linear(**parameters: Any) -> dict[str, Any]:
    """A template of the mean of a and b, with these parameters of a."""
    return {
        "merge_method": "linear",
        "models": [{"model": "a", "parameters": parameters}, {"model": "b", "parameters": {"weight": 0.5}}],
    }


def at(space: TemplateSpace, **values: float) -> Recipe:
    """The recipe at the start, with the variables whose names begin so at these coordinates."""
    vector = space.start.copy()
    for begin, value in values.items():
        found = [i for i, name in enumerate(space.names) if name.startswith(begin)]
        assert found, f"{begin} is none of {space.names}"
        vector[found] = value
    return space.decode(vector)


def own(recipe: Recipe, model: str) -> dict[str, Any]:
    assert recipe.models is not None
    return dict(next(entry.parameters for entry in recipe.models if entry.model == model))


def test_the_example_has_these_variables() -> None:
    space = template_space(EXAMPLE, num_layers=8)
    assert list(zip(space.names, space.kinds, strict=True)) == [
        ("merge_method", "categorical"),
        ("weight of math, layers 0-3, self_attn", "real"),
        ("density of math, node 0", "real"),
        ("lambda", "real"),
        ("normalize", "categorical"),
        ("rest", "real"),
        ("weight of math, layers 4-7, self_attn", "real"),
        ("density of math, node 1", "real"),
    ]
    assert space.start.tolist() == [0, 0.5, 1.0, 0.0, 0, 0.5, 0.5, 1.0]
    assert space.upper.tolist() == [2, 1, 1, math.log(2), 1, 1, 1, 1]


def test_steps_cut_the_models_into_slices_in_which_gradients_go_on() -> None:
    space = template_space(EXAMPLE, num_layers=8)
    vector = np.array([0, 0.1, 0.3, math.log(1.5), 1, 0.2, 0.4, 1.0])
    recipe = space.decode(vector)
    assert recipe.merge_method == "ties"
    assert recipe.parameters == {"lambda": 1.5, "normalize": False}
    assert recipe.slices is not None
    first, second = recipe.slices
    assert [source.layer_range for source in first.sources] == [(0, 4)] * 3
    assert [source.model for source in second.sources] == ["base", "math", "code"]
    assert second.sources[1].parameters == {
        "weight": (Filtered(filter="self_attn", value=0.4), Filtered(value=0.2)),
        "density": pytest.approx(tuple(0.3 + 0.7 * layer / 7 for layer in range(4, 8))),
    }
    assert first.sources[2].parameters == {"weight": 0.2, "density": 0.6}


def test_parameters_that_a_chosen_method_does_not_have_are_left_out() -> None:
    recipe = at(template_space(EXAMPLE, num_layers=8), merge_method=2)
    assert recipe.merge_method == "task_arithmetic"
    assert recipe.slices is not None
    assert set(recipe.slices[0].sources[1].parameters) == {"weight"}
    assert set(recipe.parameters) == {"lambda", "normalize"}


def test_a_base_model_is_left_out_for_a_chosen_method_that_has_none() -> None:
    template = {**linear(weight={"search": [0, 1]}), "base_model": "root"}
    template["merge_method"] = {"choose": ["task_arithmetic", "linear"]}
    space = template_space(template)
    assert at(space, merge_method=0).base_model == "root"
    assert at(space, merge_method=1).base_model is None


def test_what_no_method_of_the_choice_has_is_a_mistake() -> None:
    template = copy.deepcopy(EXAMPLE)
    template["models"][1]["parameters"]["wieght"] = 1.0
    with pytest.raises(SearchFileError, match=r"ties has no parameter 'wieght' \(did you mean weight"):
        template_space(template)


def test_a_method_that_is_not_chosen_must_have_the_parameters() -> None:
    with pytest.raises(SearchFileError, match=r"template.models\[0\].parameters.density: linear has no para"):
        template_space(linear(weight=0.5, density={"search": [0.1, 1]}))


@pytest.mark.parametrize(
    ("hole", "kind", "ends", "place", "value"),
    [
        ({"search": [0, 2]}, "real", (0, 2), 0.25, 0.25),
        ({"search": [1, 8], "step": 1}, "integer", (0, 7), 3.2, 4),
        ({"search": [0.0, 1.0], "step": 0.25}, "integer", (0, 4), 3, 0.75),
        ({"search": [0.0, 1.0], "step": 0.3}, "integer", (0, 3), 3, pytest.approx(0.9)),
        ({"search": [0.01, 1.0], "scale": "log"}, "real", (math.log(0.01), 0), math.log(0.1), 0.1),
        ({"choose": [0.1, 0.2, 0.9]}, "categorical", (0, 2), 1.6, 0.9),
        ({"choose": [0.1, {"search": [0.5, 1.0]}]}, "categorical", (0, 1), 0, 0.1),
    ],
)
def test_holes_and_their_coordinates(
    hole: dict[str, object], kind: str, ends: tuple[float, float], place: float, value: object
) -> None:
    space = template_space(linear(weight=hole))
    assert space.kinds[0] == kind
    assert (space.lower[0], space.upper[0]) == ends
    vector = space.start.copy()
    vector[0] = place
    assert own(space.decode(vector), "a") == {"weight": value}


@pytest.mark.parametrize(
    ("parameter", "hole", "start"),
    [
        ("weight", {"search": [0, 1.5]}, 0.5),
        ("weight", {"search": [0.7, 1.5]}, 0.7),
        ("weight", {"search": [0, 1.5], "init": 1.2}, 1.2),
        ("weight", {"choose": [0.1, 0.7], "init": 0.7}, 1),
        ("weight", {"search": [0, 1.5], "step": 0.25, "init": 0.5}, 2),
    ],
)
def test_where_a_search_starts(parameter: str, hole: dict[str, object], start: float) -> None:
    assert template_space(linear(**{parameter: hole})).start.tolist() == [start]


def test_a_lone_middle_where_the_method_has_no_default() -> None:
    template = {
        "merge_method": "slerp",
        "base_model": "a",
        "models": [{"model": "a"}, {"model": "b"}],
        "parameters": {"t": {"search": [0.01, 1.0], "scale": "log"}},
    }
    assert template_space(template).decode(template_space(template).start).parameters == {"t": 0.1}


def test_smooth_alone_stays_a_gradient_over_whole_models() -> None:
    space = template_space(linear(weight={"search": [0, 1], "every": 3, "smooth": True}))
    recipe = space.decode(np.array([0.1, 0.2, 0.3]))
    assert own(recipe, "a") == {"weight": (0.1, 0.2, 0.3)}


def test_layer_boundaries_are_searched() -> None:
    template = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "a", "layer_range": [0, {"search": [2, 6], "step": 2, "name": "cut"}]}]},
            {"sources": [{"model": "b", "layer_range": [{"ref": "cut"}, 7]}]},
        ],
    }
    space = template_space(template)
    assert (space.names, space.kinds, space.upper.tolist()) == (("cut",), ("integer",), [2])
    for place, cut in enumerate((2, 4, 6)):
        recipe = space.decode(np.array([float(place)]))
        assert recipe.slices is not None
        assert [piece.sources[0].layer_range for piece in recipe.slices] == [(0, cut), (cut, 7)]
        assert space.encode(recipe) == np.array([place])


def test_an_alternative_may_be_a_list_of_slices() -> None:
    halves = [
        {"sources": [{"model": model, "layer_range": [start, start + 4]}]}
        for model, start in (("a", 0), ("b", 3))
    ]
    whole = [
        {"sources": [{"model": "a", "layer_range": [0, 7], "parameters": {"scale": {"search": [0, 2]}}}]}
    ]
    space = template_space({"merge_method": "passthrough", "slices": {"choose": [halves, whole]}})
    assert space.names == ("slices", "scale of a")
    recipes = [space.decode(np.array([choice, 1.25])) for choice in (0.0, 1.0)]
    assert [len(recipe.slices or ()) for recipe in recipes] == [2, 1]
    assert [space.encode(recipe).tolist() for recipe in recipes] == [[0, 1.0], [1, 1.25]]  # type: ignore[union-attr]


def test_runs_of_layers_are_counted_from_the_first_that_a_hole_can_reach() -> None:
    hole = {"search": [0, 2], "every": 2}
    sources = [{"model": "a", "layer_range": [3, 7], "parameters": {"scale": hole}}]
    space = template_space({"merge_method": "passthrough", "slices": [{"sources": sources}]})
    assert space.names == ("scale of a, layers 3-4", "scale of a, layers 5-6")
    recipe = space.decode(np.array([0.5, 1.5]))
    assert [(piece.sources[0].layer_range, piece.sources[0].parameters) for piece in recipe.slices or ()] == [
        ((3, 5), {"scale": 0.5}),
        ((5, 7), {"scale": 1.5}),
    ]


def test_gradients_that_are_written_out_go_on_across_cuts() -> None:
    template = linear(weight={"search": [0, 1], "every": 4})
    template["models"][1]["parameters"]["weight"] = [0.0, 0.6]
    recipe = template_space(template).decode(np.array([0.25, 0.75]))
    assert recipe.slices is not None
    found = [value for piece in recipe.slices for value in piece.sources[1].parameters["weight"]]  # type: ignore[union-attr]
    assert found == pytest.approx([0.1 * layer for layer in range(7)])


def test_shared_values_that_step_belong_to_slices() -> None:
    template = linear(weight=0.5) | {"parameters": {"normalize": {"choose": [True, False], "every": 4}}}
    recipe = template_space(template).decode(np.array([0.0, 1.0]))
    assert recipe.parameters == {}
    assert [piece.parameters for piece in recipe.slices or ()] == [{"normalize": True}, {"normalize": False}]


def test_the_recipe_has_the_models_dtype_unless_it_says_another() -> None:
    assert at(template_space(linear(weight={"search": [0, 1]}))).dtype == "bfloat16"
    assert at(template_space({**linear(weight={"search": [0, 1]}), "dtype": "float32"})).dtype == "float32"


def test_combinations_that_make_no_merge_are_refused_one_by_one() -> None:
    template = {
        "merge_method": {"choose": ["linear", "slerp"]},
        "base_model": {"choose": ["a", "c"]},
        "models": [{"model": name, "parameters": {"weight": {"search": [0, 1]}}} for name in "ab"],
        "parameters": {"t": 0.5},
    }
    space = template_space(template)
    assert at(space, merge_method=1).base_model == "a"
    with pytest.raises(RefusedRecipe, match="slerp takes exactly 1 model"):
        at(space, merge_method=1, base_model=1)


def test_names_are_unique_where_a_model_stands_twice() -> None:
    source = {"model": "a", "layer_range": [0, 4], "parameters": {"scale": {"search": [0.5, 1.5]}}}
    pieces = [{"sources": [copy.deepcopy(source)]} for _ in range(2)]
    space = template_space({"merge_method": "passthrough", "slices": pieces})
    assert space.names == tuple(f"slices[{i}].sources[0].parameters.scale" for i in range(2))


def test_baselines_of_a_template() -> None:
    hole = {"search": [0, 1], "init": 0.3}
    template = {
        "merge_method": "task_arithmetic",
        "base_model": "root",
        "models": [{"model": name, "parameters": {"weight": hole}} for name in "ab"],
    }
    space = template_space(template)
    found = {one.name: None if one.vector is None else one.vector.tolist() for one in space.baselines()}
    assert found == {
        "source:a": [1, 0],
        "source:b": [0, 1],
        "base": [0, 0],
        "start": [0.3, 0.3],
        "task_arithmetic": [1, 1],
    }


def test_a_fixed_weight_keeps_sources_out_of_the_space() -> None:
    found = {one.name: one.vector for one in template_space(linear(weight={"search": [0, 1]})).baselines()}
    assert found["source:a"] is None
    assert found["source:b"] is None


@given(st.lists(st.floats(0, 1), min_size=8, max_size=8), st.permutations([0, 1]))
def test_models_in_another_order_give_the_same_merge(shares: list[float], order: list[int]) -> None:
    turned = {**EXAMPLE, "models": [EXAMPLE["models"][i] for i in order]}
    plain, other = template_space(EXAMPLE, num_layers=8), template_space(turned, num_layers=8)
    vector = plain.lower + np.array(shares) * (plain.upper - plain.lower)
    moved = np.array([vector[plain.names.index(name)] for name in other.names])
    assert by_model(plain.decode(vector)) == by_model(other.decode(moved))


def by_model(recipe: Recipe) -> object:
    pieces = [
        (
            piece.parameters,
            {source.model: (source.layer_range, source.parameters) for source in piece.sources},
        )
        for piece in recipe.slices or ()
    ]
    return recipe.merge_method, recipe.parameters, pieces


@given(st.lists(st.floats(0, 1), min_size=8, max_size=8))
def test_the_way_back_through_yaml_is_exact(shares: list[float]) -> None:
    space = template_space(EXAMPLE, num_layers=8)
    recipe = space.decode(space.lower + np.array(shares) * (space.upper - space.lower))
    read = parse_recipe(load_yaml(dump_yaml(recipe_data(recipe))))
    found = space.encode(read)
    assert found is not None
    again = space.decode(found)
    assert again.merge_method == recipe.merge_method
    for piece, other in zip(recipe.slices or (), again.slices or (), strict=True):
        for source, same in zip(piece.sources, other.sources, strict=True):
            assert same.parameters == {
                name: pytest.approx(value) if name == "density" else value
                for name, value in source.parameters.items()
            }
    assert again.parameters == recipe.parameters


def test_a_frozen_template_reads_back_the_same() -> None:
    made = parse_search_file(dump_yaml({"template": EXAMPLE, "tasks": ["task"]}))
    frozen = frozen_search_file(made)
    assert frozen["template"] == EXAMPLE
    assert parse_search_file(dump_yaml(frozen)) == made


REFUSED: list[tuple[object, str]] = [
    (3, r"template: expected a merge config with holes, found 3"),
    ({"choose": [{"merge_method": "linear"}, {"merge_method": "ties"}]}, r"template: expected a merge con"),
    ({"merge_method": "linear", "models": []}, r"template: has no hole: there is nothing to search"),
    (linear(weight={"search": 1}), r"weight.search: expected \[low, high\], found 1"),
    (linear(weight={"search": [1, 0]}), r"weight.search: low must be below high"),
    (linear(weight={"search": [0, 1], "evry": 2}), r"weight.evry: unknown key \(did you mean every"),
    (linear(weight={"search": [0, 1], "init": 2}), r"weight.init: 2 lies outside \[0, 1\]"),
    (linear(weight={"search": [0, 1], "scale": "log"}), r"scale: a logarithmic scale needs bounds above 0"),
    (linear(weight={"search": [0, 1], "smooth": True}), r"weight.smooth: has no effect"),
    (linear(weight={"search": [0, 1], "step": 3}), r"weight.step: makes no or too many steps"),
    (linear(weight={"choose": [1]}), r"weight.choose: fewer than two alternatives"),
    (linear(weight={"choose": [1, 2], "init": 3}), r"weight.init: 3 is none of the alternatives"),
    (linear(weight={"ref": "nobody"}), r"template: no hole is named 'nobody'"),
    (
        linear(weight={"choose": [0.1, {"ref": "loop"}], "name": "loop"}),
        r"template: 'loop' contains itself",
    ),
    (linear(weight=[{"search": [0, 1], "every": 2}, 1.0]), r"every: a node of a gradient has its place"),
    ({**linear(weight={"search": [0, 1]}), "dtype": {"choose": ["float16", "float32"]}}, r"dtype: is the sa"),
    ({**linear(weight={"search": [0, 1]}), "dtype": "int8"}, r"template.dtype: unknown value 'int8'"),
    ({**linear(weight={"search": [0, 1]}), "colour": {"search": [0, 1]}}, r"colour: only whole numbers"),
]


@pytest.mark.parametrize(("template", "message"), REFUSED)
def test_what_is_refused_without_the_models(template: object, message: str) -> None:
    with pytest.raises(SearchFileError, match=message):
        parse_search_file(dump_yaml({"template": template, "tasks": ["task"]}))


def test_holes_of_one_name_must_say_the_same() -> None:
    template = linear(weight={"search": [0, 1], "name": "x"})
    template["models"][1]["parameters"]["weight"] = {"search": [0, 2], "name": "x"}
    with pytest.raises(SearchFileError, match="two different holes are named 'x'"):
        template_space(template)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            linear(weight={"search": [0, 1]}, t=1),
            r"template.models\[0\].parameters.t: linear has no parameter",
        ),
        ({**linear(weight={"search": [0, 1]}), "colour": 1}, r"template.colour: unknown key"),
        (
            {
                "merge_method": "passthrough",
                "slices": [
                    {"sources": [{"model": "a", "layer_range": [0, {"search": [8, 9], "step": 1}]}]},
                ],
            },
            r"layer_range: a has 7 layers, not 9",
        ),
        (
            {
                "merge_method": "ties",
                "base_model": "root",
                "models": [{"model": "a", "parameters": {"weight": 1, "density": {"search": [-1, 1]}}}],
            },
            r"density: -1 is out of range",
        ),
        (
            {
                "merge_method": "consensus_ta",
                "base_model": "root",
                "models": [{"model": name, "parameters": {"weight": 1}} for name in "ab"],
                "parameters": {"min_agreeing": {"search": [1, 2]}},
            },
            r"min_agreeing: is a whole number \(give a whole step",
        ),
        (
            linear(weight=1) | {"parameters": {"normalize": {"search": [0, 1]}}},
            r"normalize: is true or false",
        ),
    ],
)
def test_what_is_refused_at_the_start(template: dict[str, object], message: str) -> None:
    with pytest.raises(SearchFileError, match=message):
        template_space(template)


@pytest.mark.parametrize("other", ["genome", "layout"])
def test_only_one_form_is_taken(other: str) -> None:
    data = {"template": linear(weight={"search": [0, 1]}), other: {"models": ["a", "b"]}, "tasks": ["task"]}
    with pytest.raises(SearchFileError, match="each of them says what may vary: keep one"):
        parse_search_file(dump_yaml(data))
