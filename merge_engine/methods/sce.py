"""SCE: select, calculate, erase. Wan et al. 2024, FuseChat, arXiv 2408.07990.

Suffixes: N elements, M models.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from merge_engine.methods.family import Call, Family, Group
from merge_engine.methods.masks import elected_sign, kept_from, sum_of_positive
from merge_engine.methods.rounding import rounded, wide, wide_dtype
from merge_engine.methods.task_vectors import add_to_base, task_vector, weighted
from merge_engine.methods.trimming import runs


def sce(
    sources: Sequence[Tensor],
    base_N: Tensor,
    first: Tensor,
    dtype: torch.dtype,
    weights: Sequence[Tensor],
    threshold: Tensor | None,
) -> Tensor:
    """base + the mean of the task vectors that agree in sign, each weighted by its energy.

    Elements on which the models vary less than ``threshold`` keep the base's value (select). Weights
    (calculate) and the threshold are scalars or one number for each element. Of an element, task vectors of
    the sign that their sum has not do not count (erase).
    """
    deltas = [task_vector(source_N, base_N, dtype) for source_N in sources]
    if threshold is not None:
        spread_N = variance(deltas, dtype)
        selected_N = kept_from(torch.ones_like(spread_N), spread_N, threshold)
        deltas = [rounded(delta_N * selected_N, dtype) for delta_N in deltas]
    sign_N = elected_sign(functools.reduce(torch.add, [wide(delta_N) for delta_N in deltas]))
    terms = [weighted(delta_N, weight, dtype) for delta_N, weight in zip(deltas, weights, strict=True)]
    agreeing = [term_N * sign_N for term_N in terms]
    return add_to_base(
        base_N, sum_of_positive(agreeing, terms), sum_of_positive(agreeing, weights), None, dtype
    )


def variance(deltas: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The variance of each element over the models, for merges in bfloat16 as that holds it."""
    exact = [wide(delta_N) for delta_N in deltas]
    mean_N = functools.reduce(torch.add, exact) / len(exact)
    squares = [(delta_N - mean_N).square() for delta_N in exact]
    return rounded(functools.reduce(torch.add, squares) / len(exact), variance_dtype(dtype))


def variance_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.bfloat16 if dtype == torch.bfloat16 else wide_dtype(dtype)


def energy_weights(energies: Sequence[float], elements: int, dtype: torch.dtype) -> list[float]:
    """Each model's share of the sum of the energies, rounded as the ecosystem's merges do it in ``dtype``.

    Means of squares that float16 does not hold are not rounded to it.
    """
    means_M = torch.tensor(energies, dtype=torch.float64) / max(elements, 1)
    info = torch.finfo(dtype)
    moved = means_M[means_M > 0]
    if not moved.numel():
        return [1.0 / len(energies)] * len(energies)
    if bool(moved.min() >= info.tiny) and bool(means_M.sum() <= info.max):
        means_M = means_M.to(dtype)
    return [float(weight) for weight in (means_M / means_M.sum()).to(dtype)]


def _calls(group: Group) -> Iterator[Call]:
    share = group.job.value("select_topk")
    selections = [tensor.selection(share) for tensor in group.tensors]
    weights_of_each = [
        energy_weights(selection.energies, tensor.elements, group.dtype)
        for selection, tensor in zip(selections, group.tensors, strict=True)
    ]
    weights = tuple(group.spread(numbers) for numbers in zip(*weights_of_each, strict=True))
    if share >= 1.0:
        yield Call(start=0, stop=group.elements, arguments=(weights, None))
        return
    kept = [selection.kept for selection in selections if selection.kept is not None]
    for start, stop, (threshold,) in runs(group, [kept], variance_dtype(group.dtype)):
        yield Call(start=start, stop=stop, arguments=(weights, threshold))


SCE = Family(kernel=sce, calls=_calls)
