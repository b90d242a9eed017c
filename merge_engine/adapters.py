"""A model with a LoRA adapter, merged once into a model folder that every later step reads like any other."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from merge_engine.adapter_files import Change, LowRank, changes, open_adapter
from merge_engine.checkpoint_header import CheckpointHeader, TensorInfo, open_header
from merge_engine.errors import CheckpointError, OutputError
from merge_engine.fingerprint import fingerprint
from merge_engine.new_folder import copy_files, new_folder
from merge_engine.shards import TensorSpec, write_shards
from merge_engine.tensor_files import MappedFiles
from merge_engine.tokenizer_files import TOKENIZER_FILES

_FORMAT = b"1"  # part of the folder's name: to be raised when the same inputs are merged differently
_SHARD_BYTES = 5e9
_COPIED = ("generation_config.json", *TOKENIZER_FILES, "config.json")


def merged_folder(model: Path, adapter: Path) -> Path:
    """The folder of ``model`` with ``adapter`` merged into it, made unless the cache has it.

    Tensors that the adapter leaves alone are copied byte for byte; so are the model's config and tokenizer.
    Memory: some fp32 copies of the largest changed tensor. Raises `CheckpointError`.
    """
    base, lora = open_header(model), open_adapter(adapter)
    changed = changes(lora, base)
    out = cache_folder() / "adapters" / _digest(base, lora)
    if out.is_dir():
        return out
    try:
        _write(base, changed, out)
    except OutputError as error:
        if not out.is_dir():  # else another worker was quicker
            raise CheckpointError(
                f"{error} (merging {adapter} into {model}; MERGEVOLVE_CACHE names another place)"
            ) from error
    return out


def cache_folder() -> Path:
    """Where mergevolve keeps what it can make again: $MERGEVOLVE_CACHE, or as XDG says."""
    named = os.environ.get("MERGEVOLVE_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mergevolve"


def _digest(base: CheckpointHeader, lora: CheckpointHeader) -> str:
    digest = hashlib.blake2b(_FORMAT, digest_size=16)
    digest.update(fingerprint(base).encode() + fingerprint(lora).encode())
    for name in _COPIED:
        file = base.folder / name
        digest.update(name.encode() + hashlib.blake2b(file.read_bytes() if file.is_file() else b"").digest())
    return digest.hexdigest()


def _write(base: CheckpointHeader, changed: Mapping[str, Change], out: Path) -> None:
    files = MappedFiles()
    specs = [
        TensorSpec(name=name, dtype=_stored(files, info).dtype, shape=info.shape)
        for name, info in base.tensors.items()
    ]
    with new_folder(out) as folder:
        write_shards(folder, specs, _merged(files, base, changed), _SHARD_BYTES)
        copy_files(base.folder, folder, _COPIED)


def _merged(
    files: MappedFiles, base: CheckpointHeader, changed: Mapping[str, Change]
) -> Iterator[tuple[str, Tensor]]:
    for name, info in base.tensors.items():
        weight = _stored(files, info)
        change = changed.get(name)
        yield name, weight if change is None else _changed(files, weight, change)


def _changed(files: MappedFiles, weight: Tensor, change: Change) -> Tensor:
    if change.replacement is not None:
        weight = _stored(files, change.replacement).to(weight.dtype)
    return weight if change.low_rank is None else _adapted(files, weight, change.low_rank)


def _adapted(files: MappedFiles, weight: Tensor, low_rank: LowRank) -> Tensor:
    """W + scale * B @ A in fp32 (LoRA, equation 3); with DoRA, its rows at the trained norms (equation 5)."""
    a, b = _stored(files, low_rank.a).float(), _stored(files, low_rank.b).float()
    delta = (b @ a).mul_(low_rank.scale)
    if low_rank.transposed:
        delta = delta.T
    if low_rank.embedding:  # peft adds the rounded product here, and the whole one everywhere else
        delta = delta.to(weight.dtype)
    adapted = weight.to(torch.promote_types(weight.dtype, torch.float32)) + delta
    if low_rank.magnitude is not None:
        along = 0 if low_rank.transposed else 1
        norms = torch.linalg.vector_norm(adapted, dim=along, keepdim=True)
        adapted *= _stored(files, low_rank.magnitude).float().view(norms.shape) / norms
    return adapted.to(weight.dtype)


def _stored(files: MappedFiles, info: TensorInfo) -> Tensor:
    return files.tensor(info).view(info.shape)
