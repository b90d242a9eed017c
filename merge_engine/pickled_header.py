"""The tensors of a pickled checkpoint (``.bin``) and where their bytes lie, found without running its pickle.

`torch.load` reads the file with its weights-only unpickler, which knows tensors and plain containers and
refuses everything else, and under a fake-tensor mode, which reads no data but notes where it lies.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from merge_engine.checkpoint_header import TensorInfo
from merge_engine.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_COUNT_BYTES = 8
_CONVERT = (
    "convert it once: load the model with transformers and save_pretrained() it, which writes safetensors"
)


def read_pickled_header(file: Path) -> dict[str, TensorInfo]:
    """Every tensor of one ``.bin`` file; torch is loaded only here. Raises `CheckpointError`.

    Of the format of before PyTorch 1.6 the file is in memory as a whole meanwhile.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        entries = _entries(file)
    begins = {name: _stored_offset(value) for name, value in entries.items()}
    if None in begins.values():
        entries = _entries(file)
        begins = _found_offsets(file, entries)
    return {name: _info(file, name, value, begins.get(name)) for name, value in entries.items()}


def _entries(file: Path) -> dict[str, Tensor]:
    import torch

    try:
        entries = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file}: this pickle holds more than tensors, which could run code; it is not loaded "
            f"({_reason(str(error))}). If you trust it, {_CONVERT}"
        ) from error
    except Exception as error:  # torch raises what its readers of zip files and pickles happen to raise
        raise CheckpointError(f"{file}: no PyTorch checkpoint, or damaged: {_reason(str(error))}") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{file}: holds no mapping of names to tensors; {_CONVERT}")
    for name, value in entries.items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{file}: {name!r} is no tensor but a {type(value).__name__}; {_CONVERT}")
    return {str(name): value for name, value in entries.items()}


def _info(file: Path, name: str, value: Tensor, storage_begin: int | None) -> TensorInfo:
    from merge_engine.tensor_files import STORED_DTYPES

    dtype = next((known for known, torch_dtype in STORED_DTYPES.items() if torch_dtype == value.dtype), None)
    if dtype is None or storage_begin is None or not value.is_contiguous():
        what = f"dtype {value.dtype}" if dtype is None else "a layout that cannot be read in place"
        raise CheckpointError(f"{file}: {name!r} has {what}; {_CONVERT}")
    begin = storage_begin + int(value.storage_offset()) * value.itemsize
    end = begin + value.numel() * value.itemsize
    if end > file.stat().st_size:
        raise CheckpointError(f"{file}: {name!r} claims bytes beyond the end of the file: it is cut short")
    return TensorInfo(dtype=dtype, shape=tuple(value.shape), file=file, begin=begin, end=end)


def _stored_offset(value: Tensor) -> int | None:
    """Where the bytes of a fake tensor's storage begin; None in the format of before PyTorch 1.6."""
    offset = getattr(value.untyped_storage(), "_checkpoint_offset", None)
    return None if offset is None else int(offset)


def _found_offsets(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, int | None]:
    """Where the bytes of each tensor's storage begin in a file of before PyTorch 1.6.

    Such a file ends with one block for each storage: its number of elements (8 bytes), then its bytes. In
    which order is told by comparing: blocks of equal bytes may stand for each other.
    """
    storages = {_storage_id(tensor): tensor for tensor in tensors.values()}
    left = [(key, tensor.itemsize, _bytes_of(tensor)) for key, tensor in storages.items()]
    begins: dict[int, int] = {}
    with file.open("rb") as stream:
        begin = file.stat().st_size - sum(_COUNT_BYTES + len(content) for _, _, content in left)
        while left and begin >= 0:
            stream.seek(begin)
            count = int.from_bytes(stream.read(_COUNT_BYTES), "little")
            begin += _COUNT_BYTES
            fitting = [i for i, (_, size, content) in enumerate(left) if len(content) == count * size]
            found = next((i for i in fitting if _holds(stream, begin, left[i][2])), None)
            if found is None:
                break
            key, _, content = left.pop(found)
            begins[key] = begin
            begin += len(content)
    return {name: begins.get(_storage_id(tensor)) for name, tensor in tensors.items()}


def _storage_id(tensor: Tensor) -> int:
    """The same for tensors of one storage; addresses are not, those of empty storages are all 0."""
    return int(tensor.untyped_storage()._cdata)


def _bytes_of(tensor: Tensor) -> memoryview:
    """All bytes of the storage that a tensor is part of."""
    import torch

    whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    return whole.numpy().data


def _holds(stream: BinaryIO, begin: int, content: memoryview) -> bool:
    stream.seek(begin)
    return stream.read(len(content)) == content


def _reason(message: str) -> str:
    """The line of torch's message that says what it met."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    telling = [line for line in lines if "WeightsUnpickler error" in line or "GLOBAL" in line]
    return (telling or lines or ["unknown"])[0][:200]
