"""Reading model folders without torch, and refusing what is no model folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from merge_engine.checkpoint_header import INDEX_FILE, SINGLE_FILE, open_header
from merge_engine.errors import CheckpointError
from tests.merge_engine import toy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    settings = toy.config()
    return toy.save(tmp_path / "model", settings, toy.random_tensors(settings, 0), shards=2)


def test_sharded_and_single_files_read_alike(tmp_path: Path, folder: Path) -> None:
    settings = toy.config()
    single = toy.save(tmp_path / "single", settings, toy.random_tensors(settings, 0))
    for path in (folder, single):
        header = open_header(path)
        assert {name: info.shape for name, info in header.tensors.items()} == toy.shapes(settings)
        assert {info.dtype for info in header.tensors.values()} == {"BF16"}
        assert header.num_layers == settings["num_hidden_layers"]
        assert all(info.end - info.begin == 2 * info.elements for info in header.tensors.values())


def test_reads_without_torch(folder: Path) -> None:
    code = (
        "import pathlib, sys, merge_engine.plan; from merge_engine.checkpoint_header import open_header;"
        f"open_header(pathlib.Path({str(folder)!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _rewrite_header(file: Path, change: Callable[[dict[str, dict[str, object]]], None]) -> None:
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def _set(key: str, value: object) -> Callable[[dict[str, dict[str, object]]], None]:
    def change(header: dict[str, dict[str, object]]) -> None:
        header["model.norm.weight"][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("data_offsets", [0, 10**12]), r"claims bytes 0 to 1000000000000 .* cut short or damaged"),
        (_set("data_offsets", [10, 4]), "claims bytes 10 to 4"),
        (_set("data_offsets", [-2, 62]), "malformed"),
        (_set("shape", [33]), r"shape \[33\] \(BF16\) claims 64 bytes"),
        (_set("shape", "large"), "malformed"),
        (_set("shape", [True, 32]), "malformed"),
        (_set("dtype", "Q4"), "dtype 'Q4'; known: BOOL"),
        (_set("dtype", ["BF16"]), r"dtype \['BF16'\]; known"),
        (_set("shape", [1] * 65), "malformed"),
        (_set("shape", [2**62, 4]), rf"shape \[{2**62}, 4\] \(BF16\) claims 64 bytes"),
        (_set("shape", [2**40, 2**40, 0]), "claims 64 bytes"),
        (_set("data_offsets", [0, 64]), r"tensors '.*' and '.*' lie in the same bytes"),
        (_set("data_offsets", [0, 64, 1]), "malformed"),
    ],
)
def test_lying_header_entries(
    tmp_path: Path, change: Callable[[dict[str, dict[str, object]]], None], message: str
) -> None:
    settings = toy.config()
    path = toy.save(tmp_path / "model", settings, toy.random_tensors(settings, 0))
    _rewrite_header(path / SINGLE_FILE, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_header(path)
    assert SINGLE_FILE in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut short"),
        (b"\xff" * 16, "no safetensors file"),
        ((10).to_bytes(8, "little") + b"not json!!", "header is no JSON"),
        ((2).to_bytes(8, "little") + b"[]", "no JSON object"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f" + b"{}", r"header of 9223372036854775807 bytes, file of 10"),
        ((200_000).to_bytes(8, "little") + b'{"a":' * 40_000, "the safetensors header is no JSON"),
        (
            (63).to_bytes(8, "little") + b'{"a": {"shape": []}, "a": {"dtype": "F32", "data_offsets": []}}',
            "the key 'a' stands twice in one object",
        ),
        ((20).to_bytes(8, "little") + b'{"a": ' + b"9" * 13 + b"}", "the header entry of tensor 'a' is malf"),
        ((4).to_bytes(8, "little") + b"\xff\xfe{}", "the safetensors header is no JSON"),
    ],
)
def test_files_that_are_no_safetensors(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / SINGLE_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_header(tmp_path)


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd", "..", "a/b.safetensors", ""])
def test_index_must_stay_in_the_folder(folder: Path, name: str) -> None:
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(CheckpointError, match="leaves the model folder"):
        open_header(folder)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_names_that_no_file_can_have(folder: Path, name: str) -> None:
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(CheckpointError, match="1 of 1 shards are missing"):
        open_header(folder)


def test_files_of_a_folder_may_be_links_as_in_the_hubs_cache(folder: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    folder.rename(blobs)
    snapshot.mkdir()
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("..") / "blobs" / file.name)
    assert open_header(snapshot).tensors.keys() == open_header(blobs).tensors.keys()


def test_missing_shard_is_named(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 of 2 shards are missing: model-00002-of-00002"):
        open_header(folder)


def test_tensor_in_two_shards(folder: Path) -> None:
    first, second = sorted(folder.glob("*.safetensors"))
    second.write_bytes(first.read_bytes())
    with pytest.raises(CheckpointError, match="is also in model-00001"):
        open_header(folder)


def test_index_that_promises_too_much(folder: Path) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    index["weight_map"]["model.extra.weight"] = "model-00001-of-00002.safetensors"
    (folder / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"'model\.extra\.weight' is not in"):
        open_header(folder)


def test_no_model_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is this a Hugging Face model folder"):
        open_header(tmp_path)
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(CheckpointError, match="no JSON"):
        open_header(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="no JSON"):
        open_header(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no weights to merge"):
        open_header(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no PyTorch checkpoint, or damaged"):
        open_header(tmp_path)
