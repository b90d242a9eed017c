"""Which tensors are merged in one go: calls on short tensors cost more than their work."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from merge_engine.methods.family import GROUP_ELEMENTS, SHORT_ELEMENTS
from merge_engine.plan import TensorJob


def grouped(jobs: Iterable[TensorJob]) -> Iterator[tuple[TensorJob, ...]]:
    """The jobs in their order: long tensors alone, short neighbours with the same parameters together."""
    group: list[TensorJob] = []
    room = 0
    for job in jobs:
        elements = math.prod(job.shape)
        is_short = elements < SHORT_ELEMENTS
        if group and not (is_short and elements <= room and _alike(group[0], job)):
            yield tuple(group)
            group = []
        if not group:
            room = GROUP_ELEMENTS if is_short else -1
        group.append(job)
        room -= elements
    if group:
        yield tuple(group)


def _alike(a: TensorJob, b: TensorJob) -> bool:
    return (
        (a.method, a.dtype, a.out_dtype, a.base is None, len(a.sources))
        == (b.method, b.dtype, b.out_dtype, b.base is None, len(b.sources))
        and a.per_source == b.per_source
        and a.shared == b.shared
    )
