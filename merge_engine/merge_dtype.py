"""In which dtype a tensor is merged. Stored tensors have safetensors' names of dtypes, recipes their own."""

from __future__ import annotations

from collections.abc import Collection

DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
EIGHT_BITS = frozenset({"F8_E4M3", "F8_E5M2"})
_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}


def is_real(stored: str) -> bool:
    """Whether it stores real numbers, which can be merged: not integers, which are copied."""
    return stored in DTYPE_NAMES or stored in EIGHT_BITS


def common_dtype(stored: Collection[str]) -> str:
    """The narrowest dtype that holds what all of ``stored`` hold: of bfloat16 and float16 it is float32.

    So does mergekit where a config names no dtype. Raises `KeyError` for dtypes of one byte and for integers.
    """
    names = {DTYPE_NAMES[dtype] for dtype in stored}
    return "float32" if names == {"bfloat16", "float16"} else max(names, key=lambda name: _BYTES[name])
