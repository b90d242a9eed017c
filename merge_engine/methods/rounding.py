"""Rounding of fp32 intermediates to the dtype that the merge is done in.

The ecosystem's merges compute in the merge dtype, step by step. To give its numbers, kernels compute in fp32
and round where it does.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rounded(x_N: Tensor, dtype: torch.dtype) -> Tensor:
    r"""``x_N`` (fp32) rounded to nearest even in ``dtype``, as fp32.

    bfloat16 keeps 8 of fp32's 24 significant bits; Veltkamp's splitting (Dekker 1971, A floating-point
    technique for extending the available precision) does that in three operations, where a conversion there
    and back takes twelve. It is exact for 2**-126 <= \|x\| < 2**111, which no weight of a model leaves.
    """
    if dtype == torch.float32:
        return x_N
    if dtype == torch.bfloat16 and x_N.device.type == "cpu":
        scaled_N = x_N * 65537.0  # 2**16 + 1; a global would be read from memory for each vector
        return scaled_N - (scaled_N - x_N)
    return x_N.to(dtype).to(torch.float32)


def read(x_N: Tensor, dtype: torch.dtype) -> Tensor:
    """A stored tensor as fp32, rounded to the merge dtype where it is stored in another one."""
    return x_N.to(torch.float32) if x_N.dtype == dtype else rounded(x_N.to(torch.float32), dtype)
