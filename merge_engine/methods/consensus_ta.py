"""Consensus task arithmetic: only changes that matter to several models. Wang et al. 2024, arXiv 2405.07813.

Elements that matter to one model alone or to none ("selfish" and "catastrophic" ones) keep the base's value.

Suffixes: N elements, M models.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from merge_engine.methods.family import Call, Family, Group
from merge_engine.methods.masks import kept_from
from merge_engine.methods.rounding import wide_dtype
from merge_engine.methods.task_vectors import (
    add_to_base,
    factor_or_none,
    rounded_weights,
    task_vector,
    weighted,
)


def consensus_ta(
    sources: Sequence[Tensor],
    base_N: Tensor,
    first: Tensor,
    dtype: torch.dtype,
    weights_M: Tensor,
    limits_M: Tensor,
    agreeing: Tensor,
    factor: Tensor | None,
) -> Tensor:
    r"""base + lambda * tau where at least ``agreeing`` models have the element in their mask, else base.

    tau = sum_m tau_m with tau_m = w_m (x_m - base). The TALL mask of model m holds the elements with
    \|tau_m\| >= limit_m \|tau - tau_m\|; how many masks hold an element decides.
    """
    terms = [
        weighted(task_vector(source_N, base_N, dtype), weights_M[m], dtype)
        for m, source_N in enumerate(sources)
    ]
    total_N = functools.reduce(torch.add, terms)
    count_N = functools.reduce(
        torch.add, [_reaches(term_N, (total_N - term_N) * limits_M[m]) for m, term_N in enumerate(terms)]
    )
    return add_to_base(base_N, kept_from(total_N, count_N, agreeing), None, factor, dtype)


def _reaches(x_N: Tensor, y_N: Tensor) -> Tensor:
    r"""1.0 where \|x\| >= \|y\|, else 0.0."""
    if torch.compiler.is_compiling():
        return torch.where(x_N.abs() >= y_N.abs(), 1.0, 0.0)
    return x_N.abs().ge_(y_N.abs_())


def _calls(group: Group) -> Iterator[Call]:
    job = group.job
    arguments = (
        rounded_weights(job.values("weight"), group.dtype),
        torch.tensor(job.values("mask_lambda"), dtype=wide_dtype(group.dtype)),
        torch.tensor(job.value("min_agreeing"), dtype=torch.float32),
        factor_or_none(job.value("lambda"), group.dtype),
    )
    yield Call(start=0, stop=group.elements, arguments=arguments)


CONSENSUS_TA = Family(kernel=consensus_ta, calls=_calls)
