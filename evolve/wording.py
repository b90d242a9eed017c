"""Numbers for people."""

from __future__ import annotations


def some(count: int, noun: str) -> str:
    """``1 worker``, ``3 workers``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def gigabytes(number: float) -> str:
    """Bytes: ``0.75 GB``, ``5.4 MB``."""
    return f"{number / 1e9:.2g} GB" if number >= 1e8 else f"{number / 1e6:.2g} MB"
