"""Parameter values of a recipe: scalars, gradients over the layers, values that depend on the tensor's
name.

The meaning is that of mergekit 0.1.5, found by merging constant models with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

Scalar: TypeAlias = "bool | int | float"
Gradient: TypeAlias = "tuple[Scalar, ...]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filtered:
    """``value`` for the tensors whose name contains ``filter``; for all where that is None or "*"."""

    value: Scalar | Gradient
    filter: str | None = None

    def matches(self, tensor_name: str) -> bool:
        return self.filter is None or self.filter == "*" or self.filter in tensor_name


Value: TypeAlias = "Scalar | Gradient | tuple[Filtered, ...]"


def is_filtered(value: Value) -> bool:
    """Whether the value of a tensor depends on its name."""
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], Filtered)


def evaluate(value: Value, tensor_name: str, t: float) -> Scalar | None:
    """The value for one tensor; None where no filter matches its name.

    ``tensor_name`` is the checkpoint name; ``t`` in [0, 1] is the tensor's place in its slice
    (`layer_place`). Of a conditional value the first entry whose filter is part of the name counts: plain
    text, no pattern. A gradient of n numbers has its nodes at 0, 1/(n-1), ..., 1 and is linear in between.
    """
    if not isinstance(value, tuple):
        return value
    if is_filtered(value):
        for entry in value:
            assert isinstance(entry, Filtered)
            if entry.matches(tensor_name):
                return evaluate(entry.value, tensor_name, t)
        return None
    return _interpolate(value, t)  # type: ignore[arg-type]


def first_match(values: Iterable[Value | None], tensor_name: str, t: float) -> Scalar | None:
    """The first of ``values`` that says something about this tensor; None where none does.

    The order of precedence is source, slice, whole merge (for ``models``: model, whole merge). Where a
    conditional value has no entry for the tensor, the next level is asked. A caller turns None into the
    method's default, or into an error where it has none.
    """
    for value in values:
        found = None if value is None else evaluate(value, tensor_name, t)
        if found is not None:
            return found
    return None


def layer_place(index: int | None, count: int) -> float:
    """The place t of layer ``index`` among the ``count`` layers of its slice: 0 the first, 1 the last.

    All of ``models`` is one slice. A slice of one layer stands at 1. Tensors outside the layers (``index``
    None) stand at 0, the final norm and the head too, although those belong to the last slice.
    """
    if index is None:
        return 0.0
    return index / (count - 1) if count > 1 else 1.0


def _interpolate(nodes: Gradient, t: float) -> Scalar:
    if len(nodes) == 1:
        return nodes[0]
    place = min(max(t, 0.0), 1.0) * (len(nodes) - 1)
    left = min(math.floor(place), len(nodes) - 2)
    part = place - left
    if part == 0.0:
        return nodes[left]
    return (1.0 - part) * nodes[left] + part * nodes[left + 1]
