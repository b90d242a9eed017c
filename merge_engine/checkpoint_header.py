"""Names, shapes and dtypes of a model folder, read from the file headers alone: no tensor data, and no torch
except for pickled weights.

A safetensors file is 8 bytes (little endian: length of the header), a JSON header, then the tensors' bytes;
offsets in the header count from the end of the header.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge_engine.config_layers import main_count
from merge_engine.errors import CheckpointError

if TYPE_CHECKING:
    from merge_engine.adapter_files import Change

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_MAX_DIMENSIONS = 64
_MAX_LENGTH = 2**63 - 1
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
    """What a model folder holds. ``num_layers`` is None where the config does not say.

    ``changes``: what an ``adapter`` does to some of the tensors, by name; shapes and dtypes stay.
    """

    folder: Path
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    num_layers: int | None
    changes: Mapping[str, Change] = field(default_factory=dict)
    adapter: CheckpointHeader | None = None


def open_header(folder: Path) -> CheckpointHeader:
    """Read ``config.json`` and the headers of the weights of ``folder``: safetensors, or else pickled ones.

    Raises `CheckpointError`, naming the file, for a missing, truncated or lying file, a tensor that two
    shards hold, and an index that names a file outside the folder. A file in the folder may be a symbolic
    link to anywhere: the hub's cache consists of them, and they are the owner's doing.
    """
    folder = Path(folder)
    config, num_layers = _config(folder / "config.json")
    format = _format(folder)
    tensors: dict[str, TensorInfo] = {}
    for file in _shards(folder, format):
        for name, info in format.read(file).items():
            if name in tensors:
                raise CheckpointError(f"{file}: tensor {name!r} is also in {tensors[name].file.name}")
            tensors[name] = info
    _check_index(folder / format.index, tensors)
    return CheckpointHeader(folder=folder, tensors=tensors, config=config, num_layers=num_layers)


def _config(file: Path) -> tuple[dict[str, Any], int | None]:
    """What the file holds, and the number of layers that it gives. Raises `CheckpointError`."""
    config = read_json(file, "is this a Hugging Face model folder?")
    try:
        return config, main_count(config)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error


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
            header = _json(stream.read(length))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: the safetensors header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: the safetensors header is no JSON object")
    header.pop("__metadata__", None)
    data_bytes = size - 8 - length
    found = {name: _tensor_info(file, name, entry, 8 + length, data_bytes) for name, entry in header.items()}
    infos = dict(sorted(found.items(), key=lambda item: (item[1].begin, item[1].end)))
    _check_overlaps(file, infos)
    return infos


def _tensor_info(file: Path, name: str, entry: Any, data_begin: int, data_bytes: int) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole or len(shape) > _MAX_DIMENSIONS:
        raise CheckpointError(f"{file}: the header entry of tensor {name!r} is malformed")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointError(f"{file}: tensor {name!r} has dtype {dtype!r}; known: {', '.join(ITEM_BYTES)}")
    if not begin <= end <= data_bytes:
        raise CheckpointError(
            f"{file}: tensor {name!r} claims bytes {begin} to {end} of {data_bytes}: "
            "the file is cut short or damaged"
        )
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype] or max(shape, default=0) > _MAX_LENGTH:
        raise CheckpointError(
            f"{file}: tensor {name!r} of shape {list(shape)} ({dtype}) claims {end - begin} bytes"
        )
    return TensorInfo(dtype=dtype, shape=shape, file=file, begin=data_begin + begin, end=data_begin + end)


def _check_overlaps(file: Path, infos: Mapping[str, TensorInfo]) -> None:
    """Refuse tensors that share bytes; ``infos`` are in the order of their bytes."""
    end, last = 0, ""
    for name, info in infos.items():
        if info.begin < end and info.end > info.begin:
            raise CheckpointError(f"{file}: tensors {last!r} and {name!r} lie in the same bytes")
        if info.end > end:
            end, last = info.end, name


@dataclass(frozen=True, slots=True)
class _Format:
    """Weights in one or more files of a kind."""

    single: str
    index: str
    read: Callable[[Path], dict[str, TensorInfo]]


def _read_pickled(file: Path) -> dict[str, TensorInfo]:
    from merge_engine.pickled_header import read_pickled_header

    return read_pickled_header(file)


_FORMATS = (
    _Format(SINGLE_FILE, INDEX_FILE, read_safetensors_header),
    _Format("pytorch_model.bin", "pytorch_model.bin.index.json", _read_pickled),
)


def _format(folder: Path) -> _Format:
    """The first format of which the folder has weights."""
    for format in _FORMATS:
        if (folder / format.index).exists() or (folder / format.single).is_file():
            return format
    names = ", ".join(name for format in _FORMATS for name in (format.single, format.index))
    raise CheckpointError(f"{folder}: no weights to merge: none of {names}")


def _shards(folder: Path, format: _Format) -> list[Path]:
    index = folder / format.index
    if not index.exists():
        return [folder / format.single]
    files = sorted(set(_weight_map(index).values()))
    outside = [name for name in files if Path(name).name != name or name in ("", ".", "..")]
    if outside:
        raise CheckpointError(f"{index}: {outside[0]!r} leaves the model folder; use plain file names")
    missing = [name for name in files if not _is_file(folder / name)]
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(files)} shards are missing: {', '.join(missing[:5])}"
        )
    return [folder / name for name in files]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index, "").get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{index}: no weight_map of tensor names to file names")
    return weight_map


def _check_index(index: Path, tensors: Mapping[str, TensorInfo]) -> None:
    if not index.exists():
        return
    for name, file in _weight_map(index).items():
        if name not in tensors or tensors[name].file.name != file:
            raise CheckpointError(f"{index}: tensor {name!r} is not in {file}")


def read_json(file: Path, hint: str) -> dict[str, Any]:
    """The JSON object in ``file``. Raises `CheckpointError`, with ``hint`` where there is no such file."""
    try:
        if file.stat().st_size > MAX_HEADER_BYTES:
            raise CheckpointError(f"{file}: {file.stat().st_size} bytes are too many for such a file")
        data = _json(file.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"{file}: cannot be read: {error.strerror or error}" + (f" ({hint})" if hint else "")
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: no JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file}: no JSON object")
    return data


def _json(text: bytes) -> Any:
    """The value in a JSON text. Raises `ValueError`, for a key that stands twice in one object too."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {key!r} stands twice in one object")
        made[key] = value
    return made
