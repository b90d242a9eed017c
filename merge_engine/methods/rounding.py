"""Arithmetic in the merge dtype, as the ecosystem's merges do it: each step in fp32, its result rounded.

Run eagerly, tensors have the merge dtype and torch rounds by itself. Compiled, bfloat16 tensors are fp32
tensors of bfloat16 values, rounded where kernels say so: that takes a quarter of the instructions.
"""

from __future__ import annotations

import torch
from torch import Tensor

MODERATE_WEIGHT, MODERATE_PARAMETER = 2.0**20, 2.0**10  # far above those of any trained model


def rounded(x_N: Tensor, dtype: torch.dtype) -> Tensor:
    r"""``x_N`` rounded to nearest even in ``dtype``: in that dtype or, compiled, as fp32 of such values.

    bfloat16 keeps 8 of fp32's 24 significant bits. Veltkamp's splitting (Dekker 1971, A floating-point
    technique for extending the available precision) rounds to them in three operations, where a conversion
    there and back takes twelve. It is exact for 2**-126 <= \|x\| < 2**111: tensors that could leave it are
    merged eagerly (`is_moderate`), and what is smaller is wrong by less than 2**-133.
    """
    if x_N.dtype == torch.float32 and dtype == torch.bfloat16 and _on_compiled_cpu(x_N):
        scaled_N = x_N * 65537.0  # 2**16 + 1; a global would be read from memory for each vector
        return scaled_N - (scaled_N - x_N)
    return x_N.to(dtype)


def is_moderate(x_N: Tensor) -> bool:
    """Whether a stored tensor is so small that no step of a merge leaves what compiled kernels can round.

    With parameters up to `MODERATE_PARAMETER`, a task vector (2**21) times a gain (2**33 at most), a weight
    and lambda (2**20), over a sum of weights (1e-8 at least), stays below 2**111.
    """
    if not x_N.numel():
        return True
    low, high = (x_N.to(torch.float32) if x_N.dtype.itemsize == 1 else x_N).aminmax()
    return bool(low > -MODERATE_WEIGHT) and bool(high < MODERATE_WEIGHT)  # false for NaN


def read(x_N: Tensor, dtype: torch.dtype) -> Tensor:
    """A stored tensor as the merge dtype holds it, ready for arithmetic in it."""
    if dtype == torch.bfloat16 and _on_compiled_cpu(x_N):
        return x_N.to(torch.float32) if x_N.dtype == dtype else rounded(x_N.to(torch.float32), dtype)
    return x_N.to(dtype)


def _on_compiled_cpu(x_N: Tensor) -> bool:
    return torch.compiler.is_compiling() and x_N.device.type == "cpu"
