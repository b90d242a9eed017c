"""Reinforced Agent Merging: what one model alone changes stays whole, what several change is averaged.

Yuan et al. 2026, Behavior Knowledge Merge in Reinforced Agentic Models, arXiv 2601.13572.

Suffixes: N elements, M models.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from merge_engine.methods.family import Call, Family, Group
from merge_engine.methods.rounding import read, rounded, wide, wide_dtype
from merge_engine.methods.task_vectors import add_to_base, task_vector
from merge_engine.overlap import Overlap


def ram(
    sources: Sequence[Tensor],
    base_N: Tensor,
    first: Tensor,
    dtype: torch.dtype,
    epsilon: Tensor,
    extras: Sequence[Tensor] | None,
) -> Tensor:
    """base + the mean of those task vectors that change the element by more than ``epsilon``.

    With ``extras``, what only model m changes is multiplied by 1 + ``extras[m]`` (RAM+), a scalar or one
    number for each element; that and the sum are not rounded, as in the ecosystem's merges.
    """
    deltas = [task_vector(source_N, base_N, dtype) for source_N in sources]
    changed = [_above(delta_N, epsilon) for delta_N in deltas]
    count_N = functools.reduce(torch.add, changed).clamp(min=1.0)
    terms = [
        wide(rounded(delta_N * changed_N / count_N, dtype))
        for delta_N, changed_N in zip(deltas, changed, strict=True)
    ]
    if extras is None:
        return add_to_base(base_N, functools.reduce(torch.add, terms), None, None, dtype)
    alone_N = torch.relu(2.0 - count_N)  # 1 where one model or none changes the element, else 0
    scaled = [term_N * (alone_N * extra + 1.0) for term_N, extra in zip(terms, extras, strict=True)]
    return wide(read(base_N, dtype)) + functools.reduce(torch.add, scaled)


def _above(x_N: Tensor, limit: Tensor) -> Tensor:
    r"""1.0 where \|x\| > limit, else 0.0, in fp32."""
    size_N = x_N.abs()
    if torch.compiler.is_compiling():
        return torch.where(size_N > limit, 1.0, 0.0)
    return size_N.gt_(limit).to(torch.float32)


def scale(overlap: Overlap, r: float, alpha: float) -> float:
    """What RAM+ adds to a model's unique changes: r times shared per unique changes, at most ``alpha``."""
    return r * min(overlap.shared / overlap.unique, alpha) if overlap.unique else 0.0


def _ram_calls(group: Group) -> Iterator[Call]:
    yield Call(start=0, stop=group.elements, arguments=(_epsilon(group), None))


def _ramplus_calls(group: Group) -> Iterator[Call]:
    job = group.job
    r, alpha = job.value("r"), job.value("alpha")
    scales = [
        [scale(overlap, r, alpha) for overlap in tensor.overlaps(job.value("epsilon"))]
        for tensor in group.tensors
    ]
    extras = tuple(group.spread(numbers) for numbers in zip(*scales, strict=True))
    yield Call(start=0, stop=group.elements, arguments=(_epsilon(group), extras))


def _epsilon(group: Group) -> Tensor:
    """As the merge dtype holds it, for comparisons in that and in its wide dtype alike."""
    return wide(torch.tensor(group.job.value("epsilon"), dtype=wide_dtype(group.dtype)).to(group.dtype))


RAM = Family(kernel=ram, calls=_ram_calls)
RAMPLUS_TL = Family(kernel=ram, calls=_ramplus_calls)
