"""Several merges in one text: order, places of the results, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from merge_engine.documents import merge_documents, read_documents
from merge_engine.engine import Engine
from merge_engine.errors import OutputError, RecipeError
from merge_engine.folder import write_model
from merge_engine.spec.recipe import Recipe
from tests.merge_engine import toy


def document(name: str | None, *models: str, **more: str) -> str:
    lines = [] if name is None else [f"name: {name}"]
    lines += ["merge_method: linear", "dtype: float32", "models:"]
    lines += [f"  - {{model: {model}, parameters: {{weight: 1}}}}" for model in models]
    return "\n".join([*lines, *(f"{key}: {value}" for key, value in more.items())])


def joined(*documents: str) -> str:
    return "\n---\n".join(documents)


def write(recipe: Recipe, out: Path) -> None:
    write_model(Engine(compile="never"), recipe, out)


def names(text: str) -> list[str | None]:
    return [entry.recipe.name for entry in read_documents(text)]


def test_documents_run_after_those_they_need() -> None:
    text = joined(
        document(None, "top", "m"),
        document("top", "left", "right+adapter"),
        document("right", "m", base_model="m"),
        document("left", "m", "right", tokenizer_source="right"),
    )
    assert names(text) == ["right", "left", "top", None]
    assert read_documents(text)[1].needs == ("right",)


def test_where_all_are_named_the_one_that_no_other_needs_is_the_result() -> None:
    assert names(joined(document("second", "first", "m"), document("first", "m"))) == ["first", "second"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            joined(document("a", "b"), document("b", "a"), document(None, "a")),
            "document 1: needs its own result: a -> b -> a",
        ),
        (joined(document("a", "a"), document(None, "a")), "document 1: needs its own result: a -> a"),
        (joined(document("a", "b"), document("b", "a")), "they need each other in a circle"),
        (joined(document("a", "m"), document("a", "m"), document(None, "a")), "document 2: is named 'a' too"),
        (joined(document(None, "m"), document(None, "m")), "document 2: has no name either, as document 1"),
        (joined(document("a", "m"), document("b", "m")), "which one is the result.*: a, b"),
        (
            joined(document("../a", "m"), document(None, "../a")),
            "document 1: name: '../a' cannot be a folder",
        ),
        (
            joined(document("a", "m"), document(None, "a") + "\nbase_modle: m", document("c", "m", dtpe="x")),
            "document 2: base_modle: unknown key.*\ndocument 3: dtpe: unknown key",
        ),
        ("", "top level: expected a mapping"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_documents(text)


def test_paths_of_results_are_names_too() -> None:
    """As in configs of before documents had names."""
    text = joined(
        document(None, "./models/half", "m", out_path="./models/whole"),
        document(None, "m", out_path="./models/half"),
    )
    half, whole = read_documents(text)
    assert (half.recipe.name, whole.recipe.name, whole.needs) == ("half", "whole", ("half",))


def test_what_has_no_effect_is_remarked_on() -> None:
    text = joined(
        document("a", "m", density="0.5", notes="mine"), document(None, "a", parameters="{int8_mask: true}")
    )
    first, last = read_documents(text)
    assert [str(remark) for remark in (*first.remarks, *last.remarks)] == [
        "document 1: density: unknown key (it has no effect)",
        "document 1: notes: unknown key (it has no effect)",
        "document 2: parameters.int8_mask: linear has no parameter 'int8_mask' (it has no effect)",
    ]


def test_a_result_that_nobody_needs_is_refused_before_anything_runs(tmp_path: Path) -> None:
    text = joined(document("a", "m"), document("b", "m"), document(None, "b"))
    with pytest.raises(RecipeError, match=r"document 1: no other needs its result \(its result would be"):
        merge_documents(text, tmp_path / "out", write)
    assert list(tmp_path.iterdir()) == []


def test_results_of_others_are_merged_and_removed(tmp_path: Path) -> None:
    base, a, b = toy.family(tmp_path / "models", sources="ab")
    text = joined(document(None, "half", base), document("half", a, b))
    merge_documents(text, tmp_path / "out", write)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "out"]

    merge_documents(text, tmp_path / "again", write, keep=tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["half"]
    with pytest.raises(OutputError, match="half: already exists"):
        merge_documents(text, tmp_path / "third", write, keep=tmp_path / "kept")
    by_hand = document(None, str(tmp_path / "kept" / "half"), base)
    merge_documents(by_hand, tmp_path / "by_hand", write)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again", "by_hand")]
    assert weights[0] == weights[1] == weights[2]


def test_nothing_is_left_of_a_failed_run(tmp_path: Path) -> None:
    _, a, b = toy.family(tmp_path / "models", sources="ab")
    with pytest.raises(Exception, match="no such folder"):
        merge_documents(
            joined(document("half", a, b), document(None, "half", "./missing")), tmp_path / "out", write
        )
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_an_existing_result_is_told_before_the_first_merge(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()

    def never(recipe: Recipe, out: Path) -> None:
        raise AssertionError(out)

    with pytest.raises(OutputError, match="already exists"):
        merge_documents(joined(document("a", "m"), document(None, "a")), tmp_path / "out", never)
