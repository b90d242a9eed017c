"""Names, shapes and dtypes of a model folder, read from the file headers alone: no torch, no tensor data.

A safetensors file is 8 bytes (little endian: length of the header), a JSON header, then the tensors' bytes;
offsets in the header count from the end of the header.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_engine.config_layers import main_count
from merge_engine.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """Where one tensor lies: bytes [begin, end) of ``file``. ``dtype`` is safetensors' name (``BF16``)."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointHeader:
    """What a model folder holds. ``num_layers`` is None where the config does not say."""

    folder: Path
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    num_layers: int | None


def open_header(folder: Path) -> CheckpointHeader:
    """Read ``config.json`` and the safetensors headers of ``folder``.

    Raises `CheckpointError`, naming the file, for a missing, truncated or lying file, a tensor that two
    shards hold, and an index that names a file outside the folder.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json", "is this a Hugging Face model folder?")
    tensors: dict[str, TensorInfo] = {}
    for file in _shards(folder):
        for name, info in read_safetensors_header(file).items():
            if name in tensors:
                raise CheckpointError(f"{file}: tensor {name!r} is also in {tensors[name].file.name}")
            tensors[name] = info
    _check_index(folder, tensors)
    return CheckpointHeader(folder=folder, tensors=tensors, config=config, num_layers=main_count(config))


def read_safetensors_header(file: Path) -> dict[str, TensorInfo]:
    """Every tensor of one safetensors file, in the order of their bytes. Raises `CheckpointError`."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(
                    f"{file}: no safetensors file, or cut short (header of {length} bytes, file of {size})"
                )
            header = json.loads(stream.read(length))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: the safetensors header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: the safetensors header is no JSON object")
    header.pop("__metadata__", None)
    data_bytes = size - 8 - length
    infos = {name: _tensor_info(file, name, entry, 8 + length, data_bytes) for name, entry in header.items()}
    return dict(sorted(infos.items(), key=lambda item: item[1].begin))


def _tensor_info(file: Path, name: str, entry: Any, data_begin: int, data_bytes: int) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise CheckpointError(f"{file}: the header entry of tensor {name!r} is malformed")
    if dtype not in ITEM_BYTES:
        raise CheckpointError(f"{file}: tensor {name!r} has dtype {dtype!r}; known: {', '.join(ITEM_BYTES)}")
    if not begin <= end <= data_bytes:
        raise CheckpointError(
            f"{file}: tensor {name!r} claims bytes {begin} to {end} of {data_bytes}: "
            "the file is cut short or damaged"
        )
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise CheckpointError(
            f"{file}: tensor {name!r} of shape {list(shape)} ({dtype}) claims {end - begin} bytes"
        )
    return TensorInfo(dtype=dtype, shape=shape, file=file, begin=data_begin + begin, end=data_begin + end)


def _shards(folder: Path) -> list[Path]:
    if (folder / INDEX_FILE).exists():
        files = sorted(set(_weight_map(folder).values()))
        outside = [name for name in files if Path(name).name != name or name in ("", ".", "..")]
        if outside:
            raise CheckpointError(
                f"{folder / INDEX_FILE}: {outside[0]!r} leaves the model folder; use plain file names"
            )
        missing = [name for name in files if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder}: {len(missing)} of {len(files)} shards are missing: {', '.join(missing[:5])}"
            )
        return [folder / name for name in files]
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if list(folder.glob("pytorch_model*.bin")):
        raise CheckpointError(
            f"{folder}: only pickled weights (.bin); convert them once: load the model with transformers "
            "and save_pretrained() it, which writes safetensors"
        )
    raise CheckpointError(f"{folder}: neither {SINGLE_FILE} nor {INDEX_FILE}: no weights to merge")


def _weight_map(folder: Path) -> dict[str, str]:
    index = read_json(folder / INDEX_FILE, "")
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{folder / INDEX_FILE}: no weight_map of tensor names to file names")
    return weight_map


def _check_index(folder: Path, tensors: Mapping[str, TensorInfo]) -> None:
    if not (folder / INDEX_FILE).exists():
        return
    for name, file in _weight_map(folder).items():
        if name not in tensors or tensors[name].file.name != file:
            raise CheckpointError(f"{folder / INDEX_FILE}: tensor {name!r} is not in {file}")


def read_json(file: Path, hint: str) -> dict[str, Any]:
    """The JSON object in ``file``. Raises `CheckpointError`, with ``hint`` where there is no such file."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{file}: cannot be read: {error.strerror or error}" + (f" ({hint})" if hint else "")
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: no JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file}: no JSON object")
    return data
