"""Writing tensors as safetensors shards, in a thread of its own, while the next tensors are made."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from merge_engine.checkpoint_header import INDEX_FILE, SINGLE_FILE
from merge_engine.handover import Handover
from merge_engine.synced_files import synced, write_json
from merge_engine.tensor_files import STORED_DTYPES

_DTYPE_NAMES = {dtype: name for name, dtype in STORED_DTYPES.items()}
_ALIGNMENT_BYTES = 8
_WAITING_BYTES = 2**26


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A tensor that is going to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_shards(
    folder: Path,
    specs: Sequence[TensorSpec],
    tensors: Iterable[tuple[str, Tensor]],
    shard_bytes: float,
    on_written: Callable[[str], None] = lambda name: None,
) -> None:
    """Write ``tensors``, which must come as ``specs`` say, into ``folder`` as transformers names its shards.

    Shards hold at most ``shard_bytes`` unless a single tensor is larger. Files are fsynced, the index is
    written last. At most 64 MiB wait to be written, or one larger tensor; ``on_written`` is told the name of
    each tensor, from the writing thread. Raises `OSError`.
    """
    handover = Handover(_WAITING_BYTES)
    with ThreadPoolExecutor(1) as writer:
        written = writer.submit(_take_all, handover, folder, specs, shard_bytes, on_written)
        try:
            for name, tensor in tensors:
                if not handover.give(name, tensor):
                    break
                del tensor  # it is not to live until the next one is made
            handover.end()
        except BaseException:
            handover.abandon()
            raise
        written.result()


def _take_all(
    handover: Handover,
    folder: Path,
    specs: Sequence[TensorSpec],
    shard_bytes: float,
    on_written: Callable[[str], None],
) -> None:
    try:
        _write_all(folder, specs, handover.taken(), shard_bytes, on_written)
    except BaseException:
        handover.abandon()
        raise


def _write_all(
    folder: Path,
    specs: Sequence[TensorSpec],
    stream: Iterator[tuple[str, Tensor]],
    shard_bytes: float,
    on_written: Callable[[str], None],
) -> None:
    shards = _split(specs, shard_bytes)
    names = _file_names(len(shards))
    for name, shard in zip(names, shards, strict=True):
        with synced(folder / name) as file:
            _write_shard(file, shard, stream, on_written)
    if len(shards) > 1:
        weight_map = {spec.name: name for name, shard in zip(names, shards, strict=True) for spec in shard}
        index = {
            "metadata": {
                "total_parameters": sum(math.prod(spec.shape) for spec in specs),
                "total_size": sum(spec.bytes for spec in specs),
            },
            "weight_map": dict(sorted(weight_map.items())),
        }
        write_json(folder / INDEX_FILE, index)


def _split(specs: Sequence[TensorSpec], shard_bytes: float) -> list[list[TensorSpec]]:
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if shards[-1] and size + spec.bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.bytes
    return shards


def _file_names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE_FILE]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _write_shard(
    file: BinaryIO,
    shard: Sequence[TensorSpec],
    stream: Iterator[tuple[str, Tensor]],
    on_written: Callable[[str], None],
) -> None:
    # Wide items first, so that every tensor is aligned to its items whatever the sizes are.
    offsets: dict[str, int] = {}
    size = 0
    for spec in sorted(shard, key=lambda spec: -spec.dtype.itemsize):
        offsets[spec.name] = size
        size += spec.bytes
    header = _header(shard, offsets)
    file.write(len(header).to_bytes(8, "little") + header)
    for spec in shard:
        name, tensor = next(stream, ("nothing", torch.empty(0)))
        if (name, tensor.dtype, tuple(tensor.shape)) != (spec.name, spec.dtype, spec.shape):
            raise ValueError(f"expected {spec}, got {name} ({tensor.dtype}, {list(tensor.shape)})")
        file.seek(8 + len(header) + offsets[spec.name])
        file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        del tensor
        on_written(name)


def _header(shard: Sequence[TensorSpec], offsets: dict[str, int]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for spec in sorted(shard, key=lambda spec: offsets[spec.name]):
        begin = offsets[spec.name]
        entries[spec.name] = {
            "dtype": _DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [begin, begin + spec.bytes],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % _ALIGNMENT_BYTES)
