"""Numbers that belong to the vectors of a tensor (its rows, say), as arguments of kernels.

Suffixes: N elements, L vectors of a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from merge_engine.geometry import Along, of_elements
from merge_engine.methods.family import GROUP_ELEMENTS, Call, Group, Inputs
from merge_engine.methods.rounding import wide_dtype


def vector_calls(group: Group, along: Along, numbers: Callable[[Inputs], Sequence[Tensor]]) -> Iterator[Call]:
    """Calls that cover a group, with ``numbers`` of each tensor's vectors, shape (L,), as their arguments.

    Scalars for a single tensor that is one vector, otherwise one for each element, and the calls are short.
    """
    of_tensors = [
        [number_L.to(wide_dtype(group.dtype)) for number_L in numbers(tensor)] for tensor in group.tensors
    ]
    if len(of_tensors) == 1 and all(len(number_L) == 1 for number_L in of_tensors[0]):
        scalars = tuple(number_L[0] for number_L in of_tensors[0])
        yield Call(start=0, stop=group.elements, arguments=scalars)
        return
    if group.is_short:
        parts = [
            [of_elements(number_L, tensor.job.shape, along, 0, tensor.elements) for number_L in numbers_of]
            for numbers_of, tensor in zip(of_tensors, group.tensors, strict=True)
        ]
        arguments = tuple(map(torch.cat, zip(*parts, strict=True)))
        yield Call(start=0, stop=group.elements, arguments=arguments)
        return
    for start in range(0, group.elements, GROUP_ELEMENTS):
        stop = min(start + GROUP_ELEMENTS, group.elements)
        spread = [of_elements(number_L, group.job.shape, along, start, stop) for number_L in of_tensors[0]]
        yield Call(start=start, stop=stop, arguments=tuple(spread), compiles=False)
