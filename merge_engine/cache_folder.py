"""Where mergevolve keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$MERGEVOLVE_CACHE, or as XDG says."""
    named = os.environ.get("MERGEVOLVE_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mergevolve"
