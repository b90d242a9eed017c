"""The card of a merged model: what a hub reads of it, and what people do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from merge_engine.card import front_matter, merge_card
from merge_engine.spec.recipe import parse_recipe


def header(card: str) -> dict[str, Any]:
    _, front, _ = card.split("---\n", 2)
    found = yaml.safe_load(front)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("references", "ids"),
    [
        (["org/name", "gpt2"], ["org/name", "gpt2"]),
        (["org/name@v2", "org/other@refs/pr/1"], ["org/name", "org/other"]),
        (["org/name@v2", "org/name@v3", "org/name"], ["org/name"]),
        (["org/name@v2+org/lora@main"], ["org/name", "org/lora"]),
        (["/models/a", "./models/a", "~/a", "deep/models/a", "org/name+/models/lora"], ["org/name"]),
    ],
)
def test_a_hub_reads_ids_alone(references: list[str], ids: list[str]) -> None:
    assert header(front_matter(references)) == {
        "base_model": ids,
        "library_name": "transformers",
        "tags": ["merge", "mergevolve"],
    }


def test_folders_have_no_id_whatever_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["models/a", "b@v2", "models/c+d", "e"]
    for name in names:
        Path(name).mkdir(parents=True)
    assert "base_model" not in header(front_matter([*names, "models/a+e"]))


def test_people_read_the_revisions(tmp_path: Path) -> None:
    models = [{"model": "org/a@v2", "parameters": {"weight": 1.0}}, {"model": str(tmp_path)}]
    recipe = parse_recipe({"merge_method": "linear", "models": models, "parameters": {"weight": 0.5}})
    card = merge_card(recipe, "as it was\n", title="half", seed=3)
    assert header(card)["base_model"] == ["org/a"]
    body = card.split("---\n", 2)[2]
    assert f"- `org/a@v2`\n- `{tmp_path}`\n" in body
    assert "```yaml\nas it was\n```" in body
