"""Tensors of safetensors files: views of mapped files, or windows that last as long as they are used."""

from __future__ import annotations

import mmap
import weakref
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from merge_engine.checkpoint_header import TensorInfo
from merge_engine.errors import CheckpointError

STORED_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
MERGE_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}

_WINDOW_FROM_BYTES = 2**18  # a window costs a file descriptor and a mapping; less is read


class TensorFiles(Protocol):
    """Where tensors come from."""

    def tensor(self, info: TensorInfo) -> Tensor:
        """The stored tensor, flat, shape (N,). It must not be written to. Raises `CheckpointError`."""


class MappedFiles:
    """Files mapped once, privately, and kept so: for many merges of the same models."""

    def __init__(self) -> None:
        self._bytes: dict[Path, Tensor] = {}

    def tensor(self, info: TensorInfo) -> Tensor:
        """The tensor as a flat view of its file, shape (N,). It must not be written to."""
        return _typed(self._map(info.file)[info.begin : info.end], info)

    def _map(self, file: Path) -> Tensor:
        if file not in self._bytes:
            size = file.stat().st_size
            try:
                self._bytes[file] = torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8)
            except RuntimeError as error:
                raise CheckpointError(f"{file}: cannot be mapped: {error}") from error
        return self._bytes[file]


class FileWindows:
    """Each tensor is mapped on its own until nothing refers to it any more: for one merge of any size.

    Neither the address space nor the resident set ever holds more of the files than the tensors in use.
    """

    def __init__(self) -> None:
        self._windows: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

    def tensor(self, info: TensorInfo) -> Tensor:
        """The tensor as a flat view of its window, shape (N,). It must not be written to."""
        begin = info.begin - info.begin % mmap.ALLOCATIONGRANULARITY
        try:
            with info.file.open("rb") as file:
                if info.end - info.begin < _WINDOW_FROM_BYTES:
                    file.seek(info.begin)
                    return _typed(_bytes(bytearray(file.read(info.end - info.begin))), info)
                window = mmap.mmap(file.fileno(), info.end - begin, access=mmap.ACCESS_COPY, offset=begin)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{info.file}: cannot be read: {error}") from error
        self._windows.add(window)
        return _typed(_bytes(window)[info.begin - begin :], info)

    def drop_pages(self) -> None:
        """Give back the memory of all windows; what is used again comes from the page cache."""
        for window in list(self._windows):
            window.madvise(mmap.MADV_DONTNEED)


def _bytes(buffer: bytearray | mmap.mmap) -> Tensor:
    return torch.frombuffer(buffer, dtype=torch.uint8) if len(buffer) else torch.empty(0, dtype=torch.uint8)


def _typed(raw: Tensor, info: TensorInfo) -> Tensor:
    if info.dtype not in STORED_DTYPES:
        raise CheckpointError(f"{info.file}: dtype {info.dtype} cannot be merged")
    dtype = STORED_DTYPES[info.dtype]
    if raw.storage_offset() % dtype.itemsize:  # a legal file whose header is not padded to the item size
        raw = raw.clone()
    return raw.view(dtype)
