"""Small files, and streams to large ones, that are on the disk when they are closed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write_json(file: Path, data: object) -> None:
    """Write ``data`` as transformers formats its JSON files, and fsync it."""
    write_text(file, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write and fsync a text file."""
    with synced(file) as stream:
        stream.write(text.encode())


@contextmanager
def synced(file: Path) -> Iterator[BinaryIO]:
    """A new file that is on the disk when the block is left without an error."""
    with file.open("xb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
