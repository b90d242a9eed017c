"""Search files: upstream's format as it is, our own keys, and every problem of a wrong one at once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genome import (
    Budget,
    HoldoutShare,
    HoldoutTasks,
    OptimizerSpec,
    SearchFileError,
    TaskEntry,
    frozen_search_file,
    parse_search_file,
)
from merge_engine.spec import dump_yaml

UPSTREAM = """
genome:
  models: [a, b, c]              # ids, folders, or model+lora
  merge_method: dare_ties
  base_model: base
  tokenizer_source: null         # null | base | union | model
  layer_granularity: 8
  normalize: null
  allow_negative_weights: false
  smooth: false
  filters: [self_attn, mlp]
tasks:
  - name: task
    weight: 1.0
    metric: "acc,none"
limit: null
num_fewshot: null
shuffle: false
random_init: false
apply_chat_template: true
fewshot_as_multiturn: true
"""


def minimal() -> dict[str, Any]:
    return {
        "genome": {"models": ["a", "b"], "merge_method": "ties", "base_model": "base"},
        "tasks": ["task"],
    }


def at(data: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """``data`` with ``value`` put at ``path``, keys joined by dots."""
    *way, last = path.split(".")
    place = data
    for key in way:
        place = place.setdefault(key, {})
    place[last] = value
    return data


def test_a_search_file_of_upstream_is_read_as_it_is() -> None:
    found = parse_search_file(UPSTREAM)
    assert found.genome.models == ("a", "b", "c")
    assert found.genome.model_references() == ("a", "b", "c", "base")
    assert found.genome.merge_method == "dare_ties"
    assert found.genome.layer_granularity == 8
    assert found.genome.normalize is True
    assert found.genome.filters == ("self_attn", "mlp")
    assert found.tasks == (TaskEntry(name="task", weight=1.0, metric="acc,none"),)
    assert found.apply_chat_template is True
    assert (found.holdout, found.budget, found.optimizer) == (None, Budget(), OptimizerSpec())


def test_defaults() -> None:
    found = parse_search_file(dump_yaml(minimal()))
    assert found.tasks == (TaskEntry(name="task", weight=1.0, metric="acc,none"),)
    assert found.genome.layer_granularity == 0
    assert found.genome.bounds == {"weight": (0.0, 1.5), "density": (0.1, 1.0)}
    assert (found.limit, found.num_fewshot, found.apply_chat_template) == (None, None, None)
    assert (found.shuffle, found.random_init, found.fewshot_as_multiturn) == (False, False, True)
    assert found.scheduler == "sync"


@pytest.mark.parametrize(
    ("method", "normalize"),
    [
        ("linear", True),
        ("ties", True),
        ("dare_ties", True),
        ("task_arithmetic", False),
        ("dare_linear", False),
        ("slerp", None),
    ],
)
def test_normalize_left_open_is_what_upstream_makes_of_it(method: str, normalize: bool | None) -> None:
    data = at(minimal(), "genome.merge_method", method)
    assert parse_search_file(dump_yaml(data)).genome.normalize is normalize


def test_negative_weights_mirror_the_default_bounds_but_not_given_ones() -> None:
    data = at(minimal(), "genome.allow_negative_weights", True)
    assert parse_search_file(dump_yaml(data)).genome.bounds["weight"] == (-1.5, 1.5)
    at(data, "genome.bounds", {"weight": [-0.5, 2]})
    assert parse_search_file(dump_yaml(data)).genome.bounds == {"weight": (-0.5, 2.0), "density": (0.1, 1.0)}


def test_bounds_let_a_parameter_vary_that_otherwise_does_not() -> None:
    data = at(minimal(), "genome.bounds", {"lambda": [0.5, 2]})
    assert parse_search_file(dump_yaml(data)).genome.bounds["lambda"] == (0.5, 2.0)


def test_bounds_of_flags_and_whole_numbers_are_of_their_kind() -> None:
    data = at(minimal(), "genome.merge_method", "consensus_ta")
    at(data, "genome.bounds", {"min_agreeing": [1, 3]})
    bounds = parse_search_file(dump_yaml(data)).genome.bounds
    assert repr(bounds["min_agreeing"]) == "(1, 3)"
    data = at(at(minimal(), "genome.bounds", {"normalize": [False, True]}), "genome.normalize", None)
    found = parse_search_file(dump_yaml(data))
    assert found.genome.bounds["normalize"] == (False, True)
    assert found.genome.normalize is None
    assert parse_search_file(dump_yaml(frozen_search_file(found))) == found


def test_recipes_to_begin_with() -> None:
    found = parse_search_file(dump_yaml(at(minimal(), "initial", ["a.yml", "b.yml"])))
    assert found.initial == ("a.yml", "b.yml")


def test_the_base_may_be_one_of_two_models_to_blend() -> None:
    data = at(at(minimal(), "genome.merge_method", "slerp"), "genome.base_model", "b")
    assert parse_search_file(dump_yaml(data)).genome.bounds == {"t": (0.0, 1.0)}


@pytest.mark.parametrize("holdout", [0.25, {"share": 0.25}])
def test_a_share_of_the_items_can_be_held_out(holdout: object) -> None:
    found = parse_search_file(dump_yaml(at(minimal(), "holdout", holdout)))
    assert found.holdout == HoldoutShare(share=0.25)


def test_tasks_can_be_held_out() -> None:
    data = at(minimal(), "holdout", {"tasks": ["other", {"name": "third", "metric": "f1,none"}]})
    assert parse_search_file(dump_yaml(data)).holdout == HoldoutTasks(
        tasks=(
            TaskEntry(name="other", weight=1.0, metric="acc,none"),
            TaskEntry(name="third", weight=1.0, metric="f1,none"),
        )
    )


def test_optimizer_and_budget() -> None:
    data = at(minimal(), "optimizer", {"name": "sep-cma", "popsize": 8, "sigma0": 0.1, "restarts": 2})
    at(data, "budget", {"candidates": 40, "hours": 1.5})
    found = parse_search_file(dump_yaml(data))
    assert found.optimizer == OptimizerSpec(name="sep-cma", popsize=8, sigma0=0.1, restarts=2)
    assert found.budget == Budget(candidates=40, hours=1.5)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("genome", None, r"genome: missing \(it names the models and the merge_method\)"),
        ("genome", [1], r"genome: expected a mapping of keys to values, found \[1\]"),
        ("genome.models", None, r"genome.models: ties needs at least 1 model\(s\), found 0"),
        ("genome.models", "a", r"genome.models: expected a list, found 'a'"),
        (
            "genome.models",
            ["a", "b", "a"],
            r"genome.models\[2\]: 'a' is already in the list \(list each once",
        ),
        (
            "genome.models",
            ["a", 3],
            r'genome.models\[1\]: expected a text, found 3 \(write it in quotes: "3"',
        ),
        (
            "genome.models",
            ["a", "base"],
            r"genome.models\[1\]: the base model stands in the list too: ties gives",
        ),
        ("genome.merge_method", None, r"genome.merge_method: missing \(this key is required\)"),
        ("genome.merge_method", "tie", r"genome.merge_method: unknown value 'tie' \(did you mean ties\?\)"),
        (
            "genome.merge_method",
            "passthrough",
            r"merge_method: passthrough has nothing that a search varies \(give",
        ),
        (
            "genome.base_model",
            None,
            r"genome.base_model: missing \(ties merges differences from a base model\)",
        ),
        ("genome.base_modle", "x", r"genome.base_modle: unknown key \(did you mean base_model"),
        (
            "genome.layer_granularity",
            -1,
            r"granularity: -1 is out of range: allowed is a whole number of at least 0",
        ),
        (
            "genome.layer_granularity",
            1.5,
            r"layer_granularity: expected a whole number of at least 0, found 1.5",
        ),
        ("genome.layer_granularity", True, r"expected a whole number of at least 0, found True"),
        (
            "genome.smooth",
            True,
            r"genome.smooth: has no effect: all layers share one parameter set \(set layer_g",
        ),
        ("genome.smooth", "yes please", r"genome.smooth: expected true or false, found 'yes please'"),
        (
            "genome.filters",
            ["mlp", "mlp.up"],
            r"filters\[1\]: 'mlp.up' never applies: 'mlp' stands before it",
        ),
        ("genome.filters", ["*"], r"genome.filters\[0\]: '\*' matches everything"),
        ("genome.dtype", "int8", r"genome.dtype: unknown value .int8. \(known: bfloat16, float16, float32, "),
        (
            "genome.bounds",
            {"weigth": [0, 1]},
            r"bounds.weigth: ties has no parameter 'weigth' .*did you mean weight",
        ),
        (
            "genome.bounds",
            {"normalize": [0.5, 1]},
            r"genome.bounds.normalize: expected true or false, found 0.5",
        ),
        ("genome.bounds", {"weight": 1}, r"genome.bounds.weight: expected \[low, high\], found 1"),
        (
            "genome.bounds",
            {"weight": [1, 1]},
            r"genome.bounds.weight: low must be below high, found \[1, 1\]",
        ),
        (
            "genome.bounds",
            {"density": [-1, 1]},
            r"bounds.density: -1 is out of range: allowed is .* in \[0, 1\]",
        ),
        (
            "genome",
            {
                "models": ["a", "b"],
                "merge_method": "ties",
                "base_model": "base",
                "normalize": True,
                "bounds": {"normalize": [False, True]},
            },
            r"genome.normalize: is searched: bounds names it \(drop one of the two\)",
        ),
        ("initial", "a.yml", r"initial: expected a list, found 'a.yml'"),
        ("initial", [3], r"initial\[0\]: expected a text, found 3"),
        ("tasks", None, r"tasks: no task is given \(name at least one lm-eval task"),
        ("tasks", [], r"tasks: no task is given"),
        ("tasks", ["x", "x"], r"tasks\[1\]: the task 'x' with metric 'acc,none' is already in the list"),
        ("tasks", [{"weight": 1}], r"tasks\[0\].name: missing"),
        ("tasks", [{"name": "x", "weight": "1"}], r"tasks\[0\].weight: expected a number, found '1'"),
        ("tasks", [{"name": "x", "weight": 0}], r"tasks: every task has weight 0"),
        (
            "tasks",
            [{"name": "x", "metric": "acc"}],
            r"metric: expected 'metric,filter', found 'acc' .*'acc,none'",
        ),
        (
            "tasks",
            [{"name": "x", "metrc": "acc"}],
            r"tasks\[0\].metrc: unknown key \(did you mean metric\?\)",
        ),
        ("holdout", 1, r"holdout: 1 is out of range: allowed is a number in \(0, 1\)"),
        ("holdout", "half", r"holdout: expected a number in \(0, 1\), found 'half'"),
        ("holdout", {}, r"holdout: expected either share or tasks, found neither"),
        ("holdout", {"share": 0.5, "tasks": ["x"]}, r"holdout: expected either share or tasks, found both"),
        ("holdout", {"tasks": ["task"]}, r"holdout.tasks\[0\]: the task 'task' is searched on"),
        ("optimizer", {"name": "cmaes"}, r"optimizer.name: unknown value 'cmaes' \(did you mean cma\?\)"),
        ("scheduler", "asynch", r"scheduler: unknown value 'asynch' \(did you mean async or sync\?\)"),
        ("optimizer", {"popsize": 1}, r"popsize: 1 is out of range: allowed is a whole number of at least 4"),
        ("optimizer", {"sigma0": 0}, r"optimizer.sigma0: 0 is out of range: allowed is a number in \(0, 1\]"),
        ("optimizer", {"restarts": -1}, r"optimizer.restarts: -1 is out of range"),
        ("budget", {"candidates": 0}, r"budget.candidates: 0 is out of range"),
        ("budget", {"hours": -1}, r"budget.hours: -1 is out of range: allowed is a number above 0"),
        ("budget", {"days": 1}, r"budget.days: unknown key \(known: candidates, hours\)"),
        ("limit", 0, r"limit: 0 is out of range: allowed is a number above 0"),
        ("limit", 2.5, r"limit: expected a whole number of items or a share below 1, found 2.5"),
        ("num_fewshot", -1, r"num_fewshot: -1 is out of range"),
        ("shuffle", 1, r"shuffle: expected true or false, found 1"),
        ("limits", 5, r"limits: unknown key \(did you mean limit\?\)"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value and "\\" not in value else "",
)
def test_what_is_refused(path: str, value: object, message: str) -> None:
    with pytest.raises(SearchFileError, match=message):
        parse_search_file(dump_yaml(at(minimal(), path, value)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"merge_method": "linear", "models": ["a"]},
            r"genome.models: linear needs at least 2 model\(s\), found 1",
        ),
        (
            {"merge_method": "slerp", "models": ["a"]},
            r"genome.models: slerp needs at least 2 model\(s\), found 1",
        ),
        (
            {"merge_method": "slerp", "normalize": True},
            r"genome.normalize: slerp has no such parameter \(drop it\)",
        ),
        (
            {"merge_method": "slerp", "allow_negative_weights": True},
            r"allow_negative_weights: slerp has no weights",
        ),
        (
            {"merge_method": "slerp", "models": ["a", "b", "c"], "smooth": True, "layer_granularity": 2},
            r"genome.smooth: slerp of more than two models takes other pairs in other layers",
        ),
        (
            {"merge_method": "slerp", "models": ["a", "b", "c"], "bounds": {"t": [0, 1]}},
            r"genome.bounds.t: slerp has no parameter 't' that a search could vary \(known: preference\)",
        ),
        (
            {"merge_method": "passthrough", "bounds": {"scale": [0, 1]}},
            r"genome.models: passthrough needs exactly 1 model\(s\), found 2",
        ),
    ],
    ids=lambda value: value["merge_method"] if isinstance(value, dict) else "",
)
def test_methods_and_models_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    data = minimal()
    data["genome"].update(changes)
    with pytest.raises(SearchFileError, match=message):
        parse_search_file(dump_yaml(data))


def test_wrong_yaml_is_named_with_its_line() -> None:
    with pytest.raises(SearchFileError, match="line 2, column 7: mapping values are not allowed"):
        parse_search_file("genome:\n  a: b: c")
    with pytest.raises(SearchFileError, match="line 2: the key 'tasks' stands twice"):
        parse_search_file("tasks: [a]\ntasks: [b]")


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(SearchFileError, match="top level: expected a mapping"):
        parse_search_file("")


def test_all_problems_are_reported_together() -> None:
    data = at(minimal(), "genome.merge_method", "tie")
    at(data, "genome.models", ["a", "a"])
    at(data, "tasks", [{"nam": "x"}])
    at(data, "holdout", 2)
    at(data, "limt", 3)
    with pytest.raises(SearchFileError) as caught:
        parse_search_file(dump_yaml(data))
    assert [problem.where for problem in caught.value.problems] == [
        "genome.models[1]",
        "genome.merge_method",
        "tasks[0].name",
        "tasks[0].nam",
        "holdout",
        "limt",
    ]


keys = st.sampled_from(
    [
        "genome",
        "models",
        "merge_method",
        "bounds",
        "tasks",
        "holdout",
        "share",
        "optimizer",
        "filters",
        "limit",
    ]
)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["ties", "slerp", "weight", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)


@given(anything)
def test_any_yaml_gives_a_search_file_or_its_problems(data: object) -> None:
    text = dump_yaml(data)
    try:
        search_file = parse_search_file(text)
    except SearchFileError:
        return
    assert parse_search_file(dump_yaml(frozen_search_file(search_file))) == search_file
