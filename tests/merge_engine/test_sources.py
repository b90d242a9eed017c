"""From references to folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from merge_engine.errors import CheckpointError
from merge_engine.sources import resolve


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
