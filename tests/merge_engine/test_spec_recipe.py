"""Recipes: exact round trips, and every problem of a wrong one at once, with its place and remedy."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merge_engine.spec import (
    DTYPES,
    METHODS,
    Filtered,
    InputModel,
    Method,
    OutputModule,
    OutputSlice,
    Parameter,
    Recipe,
    RecipeError,
    SliceSource,
    Value,
    dump_yaml,
    load_yaml,
    parse_recipe,
    recipe_data,
)

names = st.sampled_from(["alpha", "org/beta@main", "./gamma", "delta+lora", "1e5", "true"])


def values(parameter: Parameter) -> st.SearchStrategy[Value]:
    if parameter.kind == "bool":
        return st.booleans()
    scalar: st.SearchStrategy[int | float]
    if parameter.kind == "integer":
        scalar = st.integers(int(parameter.low or 0), int(parameter.high or 1000))
    else:
        low = parameter.low if parameter.low is not None else -1e300
        high = parameter.high if parameter.high is not None else 1e300
        scalar = st.floats(low, high, exclude_min=parameter.low_open) | st.just(1 if high >= 1 else 0)
    gradient = st.lists(scalar, min_size=1, max_size=4).map(tuple)
    filters = st.none() | st.sampled_from(["mlp", "self_attn", "*"])
    entry = st.builds(lambda part, value: Filtered(filter=part, value=value), filters, scalar | gradient)
    return scalar | gradient | st.lists(entry, min_size=1, max_size=3).map(tuple)


def parameters(method: Method, scopes: tuple[str, ...]) -> st.SearchStrategy[dict[str, Value]]:
    """Those without a default always; the others sometimes."""
    known = [parameter for parameter in method.parameters if parameter.scope in scopes]
    return st.fixed_dictionaries(
        {p.name: values(p) for p in known if p.default is None},
        optional={p.name: values(p) for p in known if p.default is not None},
    )


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Any recipe that is valid, over whole models or slices."""
    method = draw(st.sampled_from(list(METHODS.values())))
    most = method.max_models or 3
    models = draw(st.lists(names, min_size=method.min_models, max_size=most, unique=True))
    inputs = (["base"] if method.takes_base else []) + models
    own = parameters(method, ("model",))
    shared = draw(parameters(method, ("global",)))
    common: dict[str, Any] = {
        "merge_method": method.name,
        "base_model": "base" if method.takes_base else None,
        "parameters": shared,
        "dtype": draw(st.none() | st.sampled_from(DTYPES)),
        "out_dtype": draw(st.none() | st.sampled_from(DTYPES)),
        "tokenizer_source": draw(st.none() | st.sampled_from(["union", "base", "alpha"])),
        "chat_template": draw(st.none() | st.just("{{ 'x' }}\n  y: #z")),
        "name": draw(st.none() | st.just("a name")),
    }
    parts = {
        name: draw(module(inputs, own, st.just(shared)))
        for name in draw(st.lists(st.sampled_from(["decoder", "encoder", "1"]), max_size=2, unique=True))
    }
    if parts:
        return Recipe(modules=parts, **common)
    whole = draw(module(inputs, own, st.just({})))
    return Recipe(models=whole.models, slices=whole.slices, **common)


@st.composite
def module(
    draw: st.DrawFn,
    inputs: list[str],
    own: st.SearchStrategy[dict[str, Value]],
    shared: st.SearchStrategy[dict[str, Value]],
) -> OutputModule:
    """Whole models or slices, with parameters for the module where there are any."""
    level = draw(shared)
    if draw(st.booleans()):
        entries = tuple(InputModel(model=model, parameters=draw(own)) for model in inputs)
        return OutputModule(models=entries, parameters=level)
    slices = []
    for start in range(draw(st.integers(1, 3))):
        sources = tuple(
            SliceSource(model=model, layer_range=(start, start + 2), parameters=draw(own)) for model in inputs
        )
        base = draw(st.none() | st.just(inputs[0]))
        slices.append(OutputSlice(sources=sources, base_model=base, parameters=draw(shared)))
    return OutputModule(slices=tuple(slices), parameters=level)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(recipes())
def test_a_recipe_survives_plain_data_and_yaml_exactly(recipe: Recipe) -> None:
    data = recipe_data(recipe)
    assert parse_recipe(data) == recipe
    assert parse_recipe(load_yaml(dump_yaml(data))) == recipe


words = st.sampled_from(
    ["merge_method", "models", "slices", "sources", "model", "parameters", "weight", "ties", "a"]
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.integers(), inner, max_size=3),
    max_leaves=15,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(anything)
def test_any_plain_data_gives_a_recipe_or_its_problems(data: object) -> None:
    if isinstance(data, dict):
        data = {"merge_method": "linear", **data}
    try:
        recipe = parse_recipe(data)
    except RecipeError:
        return
    assert parse_recipe(recipe_data(recipe)) == recipe


def ties() -> dict[str, Any]:
    return {
        "merge_method": "ties",
        "base_model": "base",
        "models": [
            {"model": "a", "parameters": {"weight": 0.5, "density": 0.5}},
            {"model": "b", "parameters": {"weight": [0, 1], "density": [{"filter": "mlp", "value": 1}]}},
        ],
        "parameters": {"normalize": True},
    }


def sliced() -> dict[str, Any]:
    sources = [{"model": model, "layer_range": [0, 4]} for model in ("a", "b")]
    return {
        "merge_method": "slerp",
        "base_model": "a",
        "slices": [{"sources": sources}],
        "parameters": {"t": 0.5},
    }


def modular(modules: dict[str, Any]) -> dict[str, Any]:
    return {"merge_method": "linear", "modules": modules}


def at(data: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """``data`` with ``value`` put at ``path``, keys and list positions joined by dots."""
    *way, last = path.split(".")
    place: Any = data
    for key in way:
        place = place[int(key) if isinstance(place, list) else key]
    place[int(last) if isinstance(place, list) else last] = value
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("text", r"top level: expected a mapping of keys to values, found 'text'"),
        ({}, r"merge_method: missing \(this key is required\)"),
        (at(ties(), "merge_method", "tie"), r"merge_method: unknown value 'tie' \(did you mean ties\?\)"),
        (at(ties(), "modles", []), r"modles: unknown key \(did you mean modules or models\?\)"),
        (at(ties(), "modules", {"x": 1}), r"modules\.x: expected a mapping of keys to values, found 1"),
        (at(ties(), "modules", {"x": {}}), r"modules\.x: expected models or slices, found none of them"),
        (
            at(ties(), "modules", {"x": ties()}),
            r"modules\.x\.merge_method: unknown key",
        ),
        (modular({}), r"modules: there are none \(name at least one"),
        (
            modular({"decoder": {"models": [{"model": "a"}]}}),
            r"modules\.decoder\.models\[0\]\.parameters\.weight: missing",
        ),
        (at(ties(), "tokenizer", {"source": 1}), r"tokenizer\.source: expected a text, found 1"),
        (
            at(ties(), "slices", sliced()["slices"]),
            r"expected models, slices or modules, found models and slices",
        ),
        ({"merge_method": "linear"}, r"expected models, slices or modules, found none of them"),
        (
            at(ties(), "base_model", None),
            r"base_model: missing \(ties merges differences from a base model\)",
        ),
        (at(ties(), "base_model", 7), r'base_model: expected a text, found 7 \(write it in quotes: "7"\)'),
        (at(ties(), "dtype", "bf16"), r"dtype: unknown value 'bf16' \(did you mean bfloat16\?\)"),
        (
            at(ties(), "models", {"a": 1}),
            r"models: expected a list, found \{'a': 1\} \(start each entry with '- '",
        ),
        (
            at(ties(), "models", []),
            r"models: ties takes at least 1 model\(s\) beside the base model, found 0",
        ),
        (at(ties(), "models.0", "a"), r"models\[0\]: expected a mapping of keys to values, found 'a'"),
        (
            at(ties(), "models.1.model", "a"),
            r"models\[1\]: 'a' is already models\[0\] \(list each model once\)",
        ),
        (at(ties(), "models.1.modle", "a"), r"models\[1\].modle: unknown key \(did you mean model\?\)"),
        (
            at(ties(), "models.1.parameters.density", -0.1),
            r"models\[1\].parameters.density: -0.1 is out of range: allowed is a number in \[0, 1\]",
        ),
        (
            at(ties(), "models.1.parameters.density", [{"filter": "mlp", "value": [0.5, 1.5]}]),
            r"models\[1\].parameters.density\[0\].value\[1\]: 1.5 is out of range",
        ),
        (
            at(ties(), "models.0.parameters.weight", "much"),
            r"models\[0\].parameters.weight: expected a number, found 'much'",
        ),
        (at(ties(), "models.0.parameters.weight", float("nan")), r"weight: expected a number, found nan"),
        (at(ties(), "models.0.parameters.weight", True), r"weight: expected a number, found True"),
        (at(ties(), "models.0.parameters.weight", []), r"weight: expected at least one number, found \[\]"),
        (
            at(ties(), "models.0.parameters.weight", [{"filter": "mlp"}]),
            r"weight\[0\].value: missing \(each entry needs a value, and may have a filter\)",
        ),
        (
            at(ties(), "models.0.parameters.weight", [{"value": 1}, 2]),
            r"weight\[1\]: expected a mapping of keys to values, found 2",
        ),
        (
            at(ties(), "models.0.parameters.normalize", True),
            r"models\[0\].parameters.normalize: has no effect on a single model \(move it up",
        ),
        (
            at(ties(), "parameters.normalize", "perhaps"),
            r"parameters.normalize: expected true or false, found 'perhaps'",
        ),
        (
            at(ties(), "parameters.wieght", 1),
            r"parameters.wieght: ties has no parameter 'wieght' \(did you mean weight",
        ),
        (
            at(ties(), "models.1.parameters", {}),
            r"models\[1\].parameters.weight: missing \(ties has no default for it\)",
        ),
        (at(sliced(), "slices", []), r"slices: the list is empty \(give at least one slice\)"),
        (at(sliced(), "parameters", {}), r"parameters.t: missing \(slerp has no default for it\)"),
        (
            at(sliced(), "base_model", "c"),
            r"slices\[0\].sources: the base model 'c' is not in the list \(add it\)",
        ),
        (
            at(sliced(), "slices.0.sources.1.layer_range", [0, 3]),
            r"slices\[0\].sources: the layer ranges differ in length: \[4, 3\] \(all must be equally long\)",
        ),
        (
            at(sliced(), "slices.0.sources.1.layer_range", [4, 3]),
            r"sources\[1\].layer_range: expected \[first, end\] with 0 <= first <= end, found \[4, 3\]",
        ),
        (
            at(sliced(), "slices.0.sources.1.layer_range", None),
            r"layer_range: .* missing \(the end is not incl",
        ),
        (
            at(sliced(), "slices.0.sources.1.model", "a"),
            r"slices\[0\].sources: slerp takes exactly 1 model\(s\) beside the base model, found 0",
        ),
        (
            {
                "merge_method": "linear",
                "base_model": "c",
                "models": [{"model": "a", "parameters": {"weight": 1}}],
            },
            r"models\[1\].parameters.weight: missing \(linear has no default for it\)",
        ),
        (
            {"merge_method": "passthrough", "models": [{"model": "a"}, {"model": "b"}]},
            r"models: passthrough takes exactly 1 model\(s\), found 2",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_is_refused(data: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(data)


def test_all_problems_are_reported_together_and_none_twice() -> None:
    data = at(ties(), "models.0.parameters.density", 3)
    at(data, "models.0.parameters.weight", "x")
    at(data, "models.1.model", None)
    at(data, "dtype", "int8")
    at(data, "nonsense", 1)
    with pytest.raises(RecipeError) as caught:
        parse_recipe(data)
    places = [problem.where for problem in caught.value.problems]
    assert sorted(places) == [
        "dtype",
        "models[0].parameters.density",
        "models[0].parameters.weight",
        "models[1].model",
        "nonsense",
    ]


def test_model_references_are_each_named_once_in_order() -> None:
    assert parse_recipe(ties()).model_references() == ("a", "b", "base")
    assert parse_recipe(sliced()).model_references() == ("a", "b")


def test_older_spellings_of_a_switch_are_read() -> None:
    assert parse_recipe(at(ties(), "parameters.normalize", 0)).parameters == {"normalize": 0}


@pytest.mark.parametrize(
    ("written", "reference"),
    [
        ({"model": {"path": "org/a"}}, "org/a"),
        ({"model": {"path": "org/a", "revision": "v2"}, "lora": {"path": "l"}}, "org/a@v2+l"),
        ({"model": "org/a", "lora": None, "override_architecture": "X"}, "org/a"),
    ],
)
def test_models_written_in_parts(written: dict[str, Any], reference: str) -> None:
    recipe = parse_recipe({"merge_method": "passthrough", "models": [{"model": written}]})
    assert recipe.model_references() == (reference,)


def test_spellings_that_mergekit_reads_too() -> None:
    source = {
        "model": "a",
        "layer_range": [2, 2],
        "parameters": {"weight": {"filter": "mlp", "value": "0.5"}},
    }
    piece = {"sources": [source], "residual_weight": 0.5}
    recipe = parse_recipe(
        {
            "merge_method": "linear",
            "slices": [piece],
            "dtype": "torch.bfloat16",
            "parameters": {"weight": [{"value": 1}]},
        }
    )
    assert recipe.dtype == "bfloat16"
    assert recipe.slices is not None
    (found,) = recipe.slices[0].sources
    assert found.layer_range == (2, 2)
    assert found.parameters == {"weight": (Filtered(filter="mlp", value=0.5),)}


def test_modules_name_their_models() -> None:
    entry = {"model": "a", "parameters": {"weight": 1}}
    source = {"model": "b", "layer_range": [0, 1], "parameters": {"weight": 1}}
    recipe = parse_recipe(
        modular({"encoder": {"models": [entry]}, "decoder": {"slices": [{"sources": [source]}]}})
    )
    assert recipe.model_references() == ("a", "b")
    assert [name for name, _ in recipe.parts()] == ["encoder", "decoder"]
