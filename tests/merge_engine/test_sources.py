"""From references to folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from merge_engine.errors import CheckpointError
from merge_engine.sources import open_source, resolve
from merge_engine.spec.recipe import parse_recipe
from tests.merge_engine import toy


def test_a_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a+b").mkdir()
    assert resolve(str(tmp_path / "a+b")) == tmp_path / "a+b"
    monkeypatch.chdir(tmp_path)
    assert resolve("a+b") == Path("a+b")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("/no/such/folder", "no such folder"),
        ("./models/base", "no such folder"),
        ("./base+./adapter", "./base: no such folder"),
        ("base+one+two", "expected model.adapter"),
        ("base+", "expected model.adapter"),
        ("org/name with spaces", "neither a folder nor a hub id"),
    ],
)
def test_refusals_say_what_to_do(reference: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        resolve(reference)


def test_hub_ids_go_through_the_hub_with_their_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        assert "*.safetensors" in allow_patterns
        assert not any(pattern.endswith((".bin", ".py")) for pattern in allow_patterns)
        (tmp_path / "model.safetensors").touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve("org/name@v2") == tmp_path
    assert resolve("org/name") == tmp_path
    assert asked == [("org/name", "v2"), ("org/name", None)]


def _in_hub_cache(cache: Path, name: str, revision: str, commit: str) -> None:
    """A model as `huggingface_hub` keeps it: files that are links to blobs, revisions that name commits."""
    repo = cache / f"models--{name.replace('/', '--')}"
    snapshot = repo / "snapshots" / commit
    for folder in (snapshot, repo / "refs", repo / "blobs"):
        folder.mkdir(parents=True, exist_ok=True)
    (repo / "refs" / revision).write_text(commit)
    model = toy.save(cache / commit, toy.config(), toy.random_tensors(toy.config(), int(commit[0])))
    for file in model.iterdir():
        blob = file.rename(repo / "blobs" / f"{commit}-{file.name}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)


def test_revisions_are_found_in_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    first, second = "1" * 40, "2" * 40
    _in_hub_cache(tmp_path, "org/name", "main", first)
    _in_hub_cache(tmp_path, "org/name", "v2", second)
    for reference, commit in {"org/name": first, "org/name@v2": second, f"org/name@{second}": second}.items():
        header = open_source(reference)
        assert header.folder.name == commit
        assert "lm_head.weight" in header.tensors
    parts = {"model": {"path": "org/name", "revision": "v2"}}
    recipe = parse_recipe({"merge_method": "passthrough", "models": [{"model": parts}]})
    assert open_source(recipe.model_references()[0]).folder.name == second


def test_pickled_weights_are_fetched_where_there_are_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve("org/name") == tmp_path
    assert ["pytorch_model*.bin" in patterns for patterns in asked] == [False, True]


def test_offline_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="no such folder, and"):
        resolve("org/this-model-is-nowhere")
