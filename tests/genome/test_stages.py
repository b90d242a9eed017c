"""Stages of a search file: what they share, what they name, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from genome.errors import SearchFileError
from genome.stages import map_texts, read_stages, with_winners

GENOME = {"models": ["a", "b"], "merge_method": "linear"}
LAYOUT = {"models": ["winner:params", "b"]}


def file(*stages: Any, **shared: Any) -> dict[str, Any]:
    return {"tasks": ["t"], **shared, "stages": list(stages)}


def test_an_ordinary_search_file_has_no_stages() -> None:
    assert read_stages({"genome": GENOME, "tasks": ["t"]}) == ()
    assert read_stages("no mapping at all") == ()


def test_a_stage_has_the_shared_keys_and_its_own() -> None:
    first, second = read_stages(
        file(
            {"name": "params", "genome": GENOME, "budget": {"candidates": 9}},
            {"name": "layout", "layout": LAYOUT, "tasks": ["u"]},
            holdout=0.5,
        )
    )
    assert first.data == {"tasks": ["t"], "holdout": 0.5, "genome": GENOME, "budget": {"candidates": 9}}
    assert second.data == {"tasks": ["u"], "holdout": 0.5, "layout": LAYOUT}
    assert (first.name, first.needs) == ("params", ())
    assert (second.name, second.needs) == ("layout", ("params",))


def test_a_stage_s_own_form_replaces_the_shared_one() -> None:
    first, second = read_stages(
        file({"name": "one"}, {"name": "two", "layout": {"models": ["a"]}}, genome=GENOME)
    )
    assert first.data["genome"] == GENOME
    assert "genome" not in second.data


def test_problems_are_placed_where_the_key_stands() -> None:
    stage = read_stages(file({"name": "params", "genome": GENOME}))[0]
    assert stage.where("genome.models[1]") == "stages[0].genome.models[1]"
    assert stage.where("tasks[0].name") == "tasks[0].name"
    assert stage.where("--wandb") == "--wandb"


def test_winners_become_folders_wherever_a_model_may_stand() -> None:
    template = {
        "base_model": "winner:one",
        "models": [{"model": {"choose": ["winner:one+lora", "a"]}, "parameters": {"weight": 0.5}}],
    }
    folders = {"one": "run/stages/one/final_model"}
    assert with_winners(template, folders.__getitem__) == {
        "base_model": "run/stages/one/final_model",
        "models": [
            {
                "model": {"choose": ["run/stages/one/final_model+lora", "a"]},
                "parameters": {"weight": 0.5},
            }
        ],
    }
    assert with_winners("a", folders.__getitem__) == "a"


def test_texts_are_changed_and_nothing_else() -> None:
    assert map_texts({"a": ["x", 1, None, True, 2.5]}, str.upper) == {"a": ["X", 1, None, True, 2.5]}


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (file(), "stages: expected a list of searches"),
        ({"stages": {"name": "a"}}, "stages: expected a list of searches"),
        (file("params"), r"stages\[0\]: expected the keys of a search, found 'params'"),
        (file({"genome": GENOME}), r"stages\[0\].name: the stage has no name"),
        (file({"name": "a/b"}), r"stages\[0\].name: 'a/b' cannot be a stage's name"),
        (file({"name": 3}), r"stages\[0\].name: 3 cannot be a stage's name"),
        (file({"name": "a"}, {"name": "A"}), r"stages\[1\].name: 'A' is already taken"),
        (file({"name": "a", "stages": []}), r"stages\[0\].stages: a stage cannot have stages of its own"),
        (
            file({"name": "one", "layout": {"models": ["a", "winner:two"]}}, {"name": "two"}),
            r"stages\[0\].layout.models\[1\]: winner:two: 'two' does not come before 'one'",
        ),
        (
            file({"name": "one", "layout": {"models": ["winner:one"]}}),
            r"stages\[0\].layout.models\[0\]: winner:one: 'one' does not come before 'one'",
        ),
        (
            file({"name": "params"}, {"name": "two", "layout": {"models": ["winner:parms"]}}),
            r"winner:parms: there is no stage 'parms' \(did you mean params\?\)",
        ),
        (
            file({"name": "one", "layout": {"models": ["winner:zero"]}}),
            r"there is no stage 'zero' \(the first stage can name no winner\)",
        ),
        (
            {"genome": {"models": ["winner:one", "b"]}},
            r"genome.models\[0\]: winner:one names a stage, and this file has none",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(data: dict[str, Any], problem: str) -> None:
    with pytest.raises(SearchFileError, match=problem):
        read_stages(data)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(SearchFileError) as refused:
        read_stages(file({"name": "a", "layout": {"models": ["winner:x"]}}, {}, {"name": "a"}))
    assert len(refused.value.problems) == 3
