"""DELLA: drop task vector elements at random, small ones more often. Deep et al. 2024, arXiv 2406.11617.

An element that stands at share r of its row (0 the smallest magnitude, 1 the largest) is kept with
probability density - epsilon + 2 epsilon r (MAGPRUNE). A row holds what belongs to one index of the first
dimension; a vector is one row. The field of uniforms that DARE has decides: u >= 1 - probability.

``rescale`` multiplies what is kept by the sum of all magnitudes over that which is to be expected of the kept
ones. mergekit 0.1.5 takes the sum of those that were kept, which varies around it; the paper divides each
element by its own probability.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from merge_engine.methods.family import Call, Family, Group, Inputs
from merge_engine.methods.masks import kept_from
from merge_engine.methods.random_field import FIELD_ELEMENTS, field_N, limit
from merge_engine.methods.rounding import rounded, wide_dtype
from merge_engine.methods.task_vectors import (
    add_terms,
    factor_or_none,
    rounded_weights,
    task_vector,
    weighted,
)
from merge_engine.row_ranks import LEVELS, STRIDE, row_length

_RUN_ELEMENTS = 2**21  # in twice as many, a place times 1 / row length gives the row exactly in fp32
_RUN_ROWS = 2**13  # a run touches one more at most; kernels are compiled for one size of their thresholds
_LEAST_SUM = 1e-7  # task vectors of less are not rescaled


def della(
    sources: Sequence[Tensor],
    base_N: Tensor,
    first: Tensor,
    dtype: torch.dtype,
    weights_M: Tensor,
    fields: Sequence[Tensor],
    ranks: Sequence[Tensor],
    place: tuple[Tensor, ...] | None,
    limits_M: Tensor,
    slopes_M: Tensor,
    gains: Sequence[Tensor] | None,
    elect: bool,
    normalize: bool,
    factor: Tensor | None,
) -> Tensor:
    """base + lambda * sum_m of the terms w_m * gain_m * mask_m * delta_m.

    Short tensors: ``fields`` are uniforms, fp32 of shape (N,), ``ranks`` how many of the `LEVELS` thresholds
    of its row each element reaches, uint8 of shape (N,), and ``place`` is None. Long ones: the keys of the
    fields, the thresholds of the rows that the run touches (`_table`), and `_place` of the run. ``elect``:
    only terms of the elected sign count (TIES, algorithm 1, steps 2 and 3).
    """
    starts_N = None if place is None else _row_starts(first, sources[0].numel(), *place[1:])
    terms = []
    for m, source_N in enumerate(sources):
        delta_N = task_vector(source_N, base_N, dtype)
        if place is None or starts_N is None:
            needed_N = (limits_M[m] - fields[m]) * slopes_M[m]
            kept_N = kept_from(delta_N, ranks[m] - needed_N, torch.zeros_like(limits_M[m]))
        else:
            uniforms_N = field_N(first + place[0], source_N.numel(), fields[m])
            needed_N = (limits_M[m] - uniforms_N) * slopes_M[m]
            level_N = needed_N.ceil().clamp(0.0, LEVELS + 1.0).to(torch.int32)
            kept_N = kept_from(delta_N, delta_N.abs(), ranks[m].index_select(0, starts_N + level_N))
        if gains is not None:
            kept_N = rounded(kept_N * gains[m], dtype)
        terms.append(weighted(kept_N, weights_M[m], dtype))
    return add_terms(base_N, terms, weights_M, factor, dtype, elect=elect, normalize=normalize)


def _row_starts(first: Tensor, count: int, in_row: Tensor, inverse: Tensor) -> Tensor:
    """Where the thresholds of each element's row start: ``in_row`` is the place of element 0 in its row."""
    place_N = torch.arange(count, dtype=torch.int32, device=first.device) + (first + in_row)
    return ((place_N.to(torch.float32) + 0.5) * inverse).to(torch.int32) * STRIDE


def narrowed(density: float, epsilon: float) -> float:
    """``epsilon``, or as much of it as leaves probabilities within [0, 1] and ``density`` their mean."""
    return min(epsilon, density, 1.0 - density)


def _calls(group: Group, *, elect: bool) -> Iterator[Call]:
    job = group.job
    spans = [(d, narrowed(d, e)) for d, e in zip(job.values("density"), job.values("epsilon"), strict=True)]
    rest = (
        torch.tensor([limit(1.0 - density + epsilon) for density, epsilon in spans], dtype=torch.float32),
        # An epsilon of nothing leaves a step so steep that it keeps all or nothing.
        torch.tensor([LEVELS / (2.0**32 * max(2.0 * e, 1e-30)) for _, e in spans], dtype=torch.float32),
        _gains(group, spans) if job.flag("rescale") else None,
        elect,
        job.flag("normalize"),
        factor_or_none(job.value("lambda"), group.dtype),
    )
    weights_M = rounded_weights(job.values("weight"), group.dtype)
    models = range(len(spans))
    if group.is_short:
        fields = tuple(torch.cat([tensor.uniforms(m) for tensor in group.tensors]) for m in models)
        reached = tuple(torch.cat([tensor.reached(m) for tensor in group.tensors]) for m in models)
        yield Call(start=0, stop=group.elements, arguments=(weights_M, fields, reached, None, *rest))
        return
    (tensor,) = group.tensors
    columns = row_length(tensor.job.shape)
    for start, stop in _runs(group.elements, columns):
        block = start // FIELD_ELEMENTS
        keys = tuple(torch.tensor(tensor.key(m, block), dtype=torch.int32) for m in models)
        row, in_row = divmod(start, columns)
        rows = slice(row * STRIDE, ((stop - 1) // columns + 1) * STRIDE)
        thresholds = tuple(_table(tensor.ranks(m).thresholds[rows]) for m in models)
        place = _place(start % FIELD_ELEMENTS, in_row, stop - start, columns)
        yield Call(start=start, stop=stop, arguments=(weights_M, keys, thresholds, place, *rest))


def _runs(elements: int, columns: int) -> Iterator[tuple[int, int]]:
    """Runs short enough for `_row_starts` and `_table`; a row longer than that has its runs for itself."""
    step = min(_RUN_ELEMENTS, _RUN_ROWS * columns)
    row_ends = range(0, elements, columns) if columns > _RUN_ELEMENTS else ()
    blocks = range(0, elements, FIELD_ELEMENTS)
    yield from itertools.pairwise(sorted({*range(0, elements, step), *row_ends, *blocks, elements}))


def _table(thresholds: Tensor) -> Tensor:
    """`STRIDE` thresholds for each row of a run, in a tensor that has one size for all runs."""
    table = torch.empty((_RUN_ROWS + 1) * STRIDE, dtype=wide_dtype(thresholds.dtype))
    table[: thresholds.numel()] = thresholds
    return table


def _place(in_field: int, in_row: int, length: int, columns: int) -> tuple[Tensor, ...]:
    """A run's place in its field and in its first row (int32), and 1 / row length, 0 if it is in one row."""
    inverse = 0.0 if in_row + length <= columns else 1.0 / columns
    return (
        torch.tensor(in_field, dtype=torch.int32),
        torch.tensor(in_row if inverse else 0, dtype=torch.int32),
        torch.tensor(inverse, dtype=torch.float32),
    )


def _gains(group: Group, spans: Sequence[tuple[float, float]]) -> tuple[Tensor, ...]:
    """What gives each thinned task vector the L1 norm of the whole one, in expectation."""
    return tuple(
        group.spread([_gain(tensor, m, density, epsilon) for tensor in group.tensors])
        for m, (density, epsilon) in enumerate(spans)
    )


def _gain(tensor: Inputs, source: int, density: float, epsilon: float) -> float:
    if density >= 1.0 or not tensor.elements:
        return 1.0
    ranks = tensor.ranks(source)
    kept = (density - epsilon) * ranks.total + 2.0 * epsilon * ranks.ranked
    return ranks.total / kept if kept >= _LEAST_SUM else 1.0


DELLA = Family(kernel=della, calls=functools.partial(_calls, elect=True))
DELLA_LINEAR = Family(kernel=della, calls=functools.partial(_calls, elect=False))
