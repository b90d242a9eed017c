"""Recipes over the winners of earlier stages, written so that they need nothing but the original models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from evolve.export import config_text
from evolve.winners import Winner, documents
from merge_engine.documents import read_documents
from tests.evolve.made import candidate


def linear(*models: str, **parameters: Any) -> dict[str, Any]:
    entries = [{"model": model, "parameters": {"weight": 0.5}} for model in models]
    return {"merge_method": "linear", "models": entries, **parameters}


ONE = Winner(stage="one", folder="/run/stages/one/final_model", recipe=linear("a", "b"))
TWO = Winner(stage="two", folder="/run/stages/two/final_model", recipe=linear(ONE.folder, "c"))
OTHER = Winner(stage="other", folder="/run/stages/other/final_model", recipe=linear("a", "c"))


def test_a_recipe_of_original_models_stays_as_it_is() -> None:
    assert documents(linear("a", "b"), [ONE, TWO]) == [linear("a", "b")]


def test_winners_come_first_and_are_called_by_their_names() -> None:
    found = documents(linear(TWO.folder, f"{TWO.folder}+lora", "d"), [ONE, OTHER, TWO])
    assert found == [
        {"name": "winner-one", **linear("a", "b")},
        {"name": "winner-two", **linear("winner-one", "c")},
        linear("winner-two", "winner-two+lora", "d"),
    ]


def test_the_file_runs_in_this_order_and_holds_no_path_of_the_search() -> None:
    record = replace(candidate(4), recipe=linear(TWO.folder, "d"))
    text = config_text(record, 7, [ONE, TWO])
    assert "/run/" not in text
    read = read_documents(text)
    assert [document.recipe.name for document in read] == ["winner-one", "winner-two", None]
    assert [document.needs for document in read] == [(), ("winner-one",), ("winner-two",)]
