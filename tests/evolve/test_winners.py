"""Recipes over the winners of earlier stages, written so that they need nothing but the original models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from evolve.export import config_text
from evolve.winners import Winner, documents, references, renamed
from genome.stages import Stage
from merge_engine.documents import read_documents
from tests.evolve.made import candidate


def linear(*models: str, **parameters: Any) -> dict[str, Any]:
    entries = [{"model": model, "parameters": {"weight": 0.5}} for model in models]
    return {"merge_method": "linear", "models": entries, **parameters}


def winner(stage: str, recipe: dict[str, Any]) -> Winner:
    folder = f"/run/stages/{stage}/final_model"
    return Winner(stage=stage, reference=f"winner:{stage}", folder=folder, recipe=recipe)


ONE = winner("one", linear("a", "b"))
TWO = winner("two", linear(ONE.reference, "c"))
OTHER = winner("other", linear("a", "c"))


def test_a_recipe_of_original_models_stays_as_it_is() -> None:
    assert documents(linear("a", "b"), [ONE, TWO]) == [linear("a", "b")]


def test_winners_come_first_and_are_called_by_their_names() -> None:
    found = documents(linear(TWO.reference, f"{TWO.reference}+lora", "d"), [ONE, OTHER, TWO])
    assert found == [
        {"name": "winner-one", **linear("a", "b")},
        {"name": "winner-two", **linear("winner-one", "c")},
        linear("winner-two", "winner-two+lora", "d"),
    ]


def test_the_file_runs_in_this_order_and_holds_no_path_of_the_search() -> None:
    record = replace(candidate(4), recipe=linear(TWO.reference, "d"))
    text = config_text(record, 7, [ONE, TWO])
    assert "/run/" not in text
    read = read_documents(text)
    assert [document.recipe.name for document in read] == ["winner-one", "winner-two", None]
    assert [document.needs for document in read] == [(), ("winner-one",), ("winner-two",)]


def test_models_are_renamed_with_their_adapters_and_nothing_else_is() -> None:
    found = renamed(linear("winner:one", "winner:one+lora", "winner:oneself"), {"winner:one": "/there"})
    assert found == linear("/there", "/there+lora", "winner:oneself")


def stage(*models: str) -> Stage:
    data = linear(*models)
    return Stage(name="two", data=data, own=frozenset(data), needs=("one",), place="stages[1]")


def test_a_stage_names_winners_as_its_file_does() -> None:
    assert references(stage("winner:one", "b"), {}) == {"one": "winner:one"}
    assert references(stage("winner:one", "b"), {"model winner:one": "digest"}) == {"one": "winner:one"}


def test_a_journal_that_has_winners_by_their_folders_goes_on_with_these_names() -> None:
    folder, other = "/then/stages/one/final_model", "/other/stages/one/final_model"
    inputs = {f"model {name}": "digest" for name in (folder, other, "b")} | {"scored by": "transformers"}
    assert references(stage("winner:one", other, "b"), inputs) == {"one": folder}
    of_adapter = {f"model {folder}+lora": "digest"}
    assert references(stage("winner:one+lora"), of_adapter) == {"one": folder}
