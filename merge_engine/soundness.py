"""Numbers in a source that spoil a result: NaN, infinity, unlike integers. Put down to model and tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from merge_engine.errors import CheckpointError
from merge_engine.plan import TensorRef

_BLOCK_ELEMENTS = 2**16  # read twice, the second time from a core's cache
_INTEGERS = {
    torch.bfloat16: (torch.int16, np.uint16),
    torch.float16: (torch.int16, np.uint16),
    torch.float32: (torch.int32, np.uint32),
}


def check_result(
    merged_N: Tensor, refs: Iterable[TensorRef], tensor_of: Callable[[TensorRef], Tensor]
) -> None:
    """Raise `CheckpointError` where ``merged_N`` is not finite because one of its sources ``refs`` is not.

    One pass over the result; the sources are looked at only where it is not sound. A result that overflows
    although its sources are finite passes: that is the recipe's doing.
    """
    if _is_finite(merged_N):
        return
    for ref in refs:
        stored_N = tensor_of(ref)
        found = "NaN" if bool(stored_N.isnan().any()) else "infinite numbers"
        if not bool(stored_N.isfinite().all()):
            raise CheckpointError(
                f"{ref.model}: tensor {ref.name!r} holds {found}, which would spoil the merge; the model is "
                "damaged, or its training broke down: leave it out, or take an earlier checkpoint"
            )


def check_equal(refs: Sequence[TensorRef], tensor_of: Callable[[TensorRef], Tensor]) -> None:
    """Raise `CheckpointError` where integer tensors, of which the first is copied, are not all the same.

    Single numbers may differ: they count steps of training.
    """
    first_N, *others = map(tensor_of, refs)
    for ref, other_N in zip(refs[1:], others, strict=True):
        if first_N.numel() > 1 and not torch.equal(first_N, other_N):
            raise CheckpointError(
                f"{ref.model}: the integers of tensor {ref.name!r} are not those of {refs[0].model}, and "
                "cannot be merged; if the models are quantised, dequantise them before"
            )


def _is_finite(x_N: Tensor) -> bool:
    """Read as integers, which is far quicker: the bits of infinity and NaN are the largest of either sign."""
    if x_N.device.type != "cpu" or x_N.dtype not in _INTEGERS:
        return bool(x_N.isfinite().all())
    signed, unsigned = _INTEGERS[x_N.dtype]
    infinity = int(torch.tensor(math.inf, dtype=x_N.dtype).view(signed))
    bits_N = x_N.view(signed).numpy()
    for start in range(0, len(bits_N), _BLOCK_ELEMENTS):
        block = bits_N[start : start + _BLOCK_ELEMENTS]
        negative = int(block.view(unsigned).max()) & np.iinfo(block.dtype).max
        if max(int(block.max()), negative) >= infinity:
            return False
    return True
