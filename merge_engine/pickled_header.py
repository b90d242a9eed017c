"""The tensors of a pickled checkpoint (``.bin``) and where their bytes lie, found without running its pickle.

`torch.load` reads the file with its weights-only unpickler, which knows tensors and plain containers and
refuses everything else, and under a fake-tensor mode, which reads no data but notes where it lies.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge_engine.checkpoint_header import TensorInfo
from merge_engine.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_CONVERT = (
    "convert it once: load the model with transformers and save_pretrained() it, which writes safetensors"
)


def read_pickled_header(file: Path) -> dict[str, TensorInfo]:
    """Every tensor of one ``.bin`` file; torch is loaded only here. Raises `CheckpointError`."""
    entries = _entries(file)
    infos = {}
    for name, value in entries.items():
        infos[str(name)] = _info(file, str(name), value)
    return infos


def _entries(file: Path) -> dict[Any, Any]:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode():
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
    return entries


def _info(file: Path, name: str, value: object) -> TensorInfo:
    import torch

    from merge_engine.tensor_files import STORED_DTYPES

    if not isinstance(value, torch.Tensor):
        raise CheckpointError(f"{file}: {name!r} is no tensor but a {type(value).__name__}; {_CONVERT}")
    dtype = next((known for known, torch_dtype in STORED_DTYPES.items() if torch_dtype == value.dtype), None)
    begin = _offset(value)
    if dtype is None or begin is None or not value.is_contiguous():
        what = f"dtype {value.dtype}" if dtype is None else "a layout that cannot be read in place"
        raise CheckpointError(f"{file}: {name!r} has {what}; {_CONVERT}")
    end = begin + value.numel() * value.itemsize
    if end > file.stat().st_size:
        raise CheckpointError(f"{file}: {name!r} claims bytes beyond the end of the file: it is cut short")
    return TensorInfo(dtype=dtype, shape=tuple(value.shape), file=file, begin=begin, end=end)


def _offset(value: Tensor) -> int | None:
    """Where a tensor's bytes begin in its file; None in the format of before PyTorch 1.6."""
    offset = getattr(value.untyped_storage(), "_checkpoint_offset", None)
    return None if offset is None else int(offset) + int(value.storage_offset()) * value.itemsize


def _reason(message: str) -> str:
    """The line of torch's message that says what it met."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    telling = [line for line in lines if "WeightsUnpickler error" in line or "GLOBAL" in line]
    return (telling or lines or ["unknown"])[0][:200]
