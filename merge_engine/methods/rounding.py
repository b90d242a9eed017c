"""Arithmetic in the merge dtype, as the ecosystem's merges do it: each step in fp32, its result rounded.

Run eagerly, tensors have the merge dtype and torch rounds by itself. Compiled, bfloat16 tensors are fp32
tensors of bfloat16 values, rounded where kernels say so: that takes a quarter of the instructions.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Compiled kernels merge weights whose magnitudes are below 2**20, and parameters up to 2**10, far above those
# of any trained model. So no step leaves what they can round: a task vector (2**21) times a gain (2**33 at
# most), a weight and lambda (2**20), over a sum of weights (1e-8 at least), stays below 2**111.
MODERATE_PARAMETER = 2.0**10
MODERATE_BIN = 0x4980  # the upper half of 2.0**20 as fp32


def rounded(x_N: Tensor, dtype: torch.dtype) -> Tensor:
    r"""``x_N`` rounded to nearest even in ``dtype``: in that dtype or, compiled, as fp32 of such values.

    bfloat16 keeps 8 of fp32's 24 significant bits. (2**16 - 1) x, rounded to fp32, has lost all but those of
    2**16 x; so a product and a fused one with a difference round to them, where a conversion there and back
    takes twelve operations. (Veltkamp's splitting, Dekker 1971, takes three, with 2**16 + 1.) It is exact for
    2**-126 <= \|x\| < 2**111: tensors that could leave it are merged eagerly (`MODERATE_BIN`), and what is
    smaller is wrong by less than 2**-133.
    """
    if x_N.dtype == torch.float32 and dtype == torch.bfloat16 and _on_compiled_cpu(x_N):
        return x_N * 65536.0 - x_N * 65535.0  # the first product is exact
    return x_N.to(dtype)


def read(x_N: Tensor, dtype: torch.dtype) -> Tensor:
    """A stored tensor as the merge dtype holds it, ready for arithmetic in it."""
    if dtype == torch.bfloat16 and _on_compiled_cpu(x_N):
        return x_N.to(torch.float32) if x_N.dtype == dtype else rounded(x_N.to(torch.float32), dtype)
    return x_N.to(dtype)


def wide(x_N: Tensor) -> Tensor:
    """``x_N`` in what the steps of a merge are computed in (`wide_dtype`)."""
    return x_N if x_N.dtype == torch.float64 else x_N.to(torch.float32)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the steps of a merge in ``dtype`` are computed in: fp32, or float64 for that itself."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _on_compiled_cpu(x_N: Tensor) -> bool:
    return torch.compiler.is_compiling() and x_N.device.type == "cpu"
