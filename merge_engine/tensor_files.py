"""Tensors of safetensors files as views of the mapped file: nothing is copied."""

from __future__ import annotations

from pathlib import Path

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
MERGE_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class MappedFiles:
    """Open files by path; each is mapped once, privately: writing to a view never reaches the file."""

    def __init__(self) -> None:
        self._bytes: dict[Path, Tensor] = {}

    def tensor(self, info: TensorInfo) -> Tensor:
        """The tensor as a flat view of its file, shape (N,). It must not be written to."""
        if info.dtype not in STORED_DTYPES:
            raise CheckpointError(f"{info.file}: dtype {info.dtype} cannot be merged")
        dtype = STORED_DTYPES[info.dtype]
        raw = self._map(info.file)[info.begin : info.end]
        if info.begin % dtype.itemsize:  # a legal file whose header is not padded to the item size
            raw = raw.clone()
        return raw.view(dtype)

    def _map(self, file: Path) -> Tensor:
        if file not in self._bytes:
            size = file.stat().st_size
            try:
                self._bytes[file] = torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8)
            except RuntimeError as error:
                raise CheckpointError(f"{file}: cannot be mapped: {error}") from error
        return self._bytes[file]
