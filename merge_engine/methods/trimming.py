"""Thresholds that say exactly which elements are among the k largest, though some may equal the last.

Suffix: N elements.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from merge_engine.magnitudes import Kept
from merge_engine.methods.family import Group
from merge_engine.methods.rounding import wide_dtype

_LEAST_SUM = 1e-7  # task vectors of less are not rescaled; as mergekit 0.1.5 behaves
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def runs(
    group: Group, choices: Sequence[Sequence[Kept]], dtype: torch.dtype
) -> Iterator[tuple[int, int, tuple[Tensor, ...]]]:
    """Runs of elements that cover a group, with what a number must reach there to be kept by each choice.

    ``choices``: for each of them, which elements of each tensor are kept. ``dtype``: of the numbers and of
    the thresholds. A long tensor is cut where the ties of a choice end, so that its thresholds are scalars;
    those of a short group have one number for each element.
    """
    if group.is_short:
        yield 0, group.elements, tuple(_threshold_of_each(group, choice, dtype) for choice in choices)
        return
    whole = [kept for (kept,) in choices]
    steps = [_steps([kept], dtype) for kept in whole]
    cuts = sorted({0, group.elements, *(min(kept.ties_end, group.elements) for kept in whole)})
    for start, stop in itertools.pairwise(cuts):
        yield (
            start,
            stop,
            tuple(
                (threshold if start < kept.ties_end else above)[0]
                for kept, (threshold, above) in zip(whole, steps, strict=True)
            ),
        )


def l1_gain(whole: float, kept: float, dtype: torch.dtype) -> float:
    """What gives what was kept of a task vector the L1 norm of the whole one, as ``dtype`` holds it.

    Both norms and their ratio are rounded to it.
    """
    if kept < _LEAST_SUM:
        return 1.0
    sums = torch.tensor([whole, kept], dtype=wide_dtype(dtype))
    if whole <= torch.finfo(dtype).max:  # float16 ends at 65504
        sums = sums.to(dtype)
    return float((sums[0] / sums[1]).to(dtype))


def _threshold_of_each(group: Group, choice: Sequence[Kept], dtype: torch.dtype) -> Tensor:
    thresholds_N = torch.empty(group.elements, dtype=dtype)
    steps = zip(*(step.tolist() for step in _steps(choice, dtype)), strict=True)
    parts = torch.split(thresholds_N, group.lengths)
    for part_N, kept, (threshold, above) in zip(parts, choice, steps, strict=True):
        part_N.fill_(above)
        part_N[: kept.ties_end] = threshold
    return thresholds_N


def _steps(choice: Sequence[Kept], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The thresholds of tensors and, one step of the dtype higher, those past the last tie that is kept."""
    thresholds = torch.tensor([kept.threshold for kept in choice], dtype=dtype)
    return thresholds, (thresholds.view(_INTEGERS[dtype.itemsize]) + 1).view(dtype)
