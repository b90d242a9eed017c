"""Has a model folder changed? A quick answer that does not read all of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from merge_engine.checkpoint_header import CheckpointHeader
from merge_engine.errors import CheckpointError

_SAMPLES = 64
_SAMPLE_BYTES = 1 << 16


def fingerprint(header: CheckpointHeader) -> str:
    """A digest of a checkpoint's config and its files: each one's size and 64 evenly spaced blocks of 64 KiB.

    With an adapter, the digest of both.

    Retrained or requantised weights change nearly every block; a change of single bytes in a file of more
    than 4 MiB may go unnoticed. Cheap enough for every start: a few milliseconds for each file.

    Raises:
        CheckpointError: a file cannot be read.
    """
    digest = hashlib.blake2b(json.dumps(header.config, sort_keys=True).encode(), digest_size=16)
    for file in sorted({info.file for info in header.tensors.values()}):
        digest.update(file.name.encode())
        _add_samples(digest, file)
    if header.adapter is not None:
        digest.update(fingerprint(header.adapter).encode())
    return digest.hexdigest()


def _add_samples(digest: hashlib.blake2b, file: Path) -> None:
    try:
        size = file.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        step = max(_SAMPLE_BYTES, size // _SAMPLES)
        with file.open("rb") as stream:
            for start in range(0, size, step):
                stream.seek(start)
                digest.update(stream.read(_SAMPLE_BYTES))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from error
