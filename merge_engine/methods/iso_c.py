"""Iso-C: isotropic merging in the common subspace.

Marczak et al. 2025, No Task Left Behind, arXiv 2502.04959, section 4.1 (algorithm 1).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from merge_engine.methods.matrices import matrix_family, polar


def isotropic(deltas: Sequence[Tensor]) -> Tensor:
    """The sum of the task vectors with each singular value replaced by their mean."""
    orthogonal_RC, values = polar(functools.reduce(torch.add, deltas))
    return orthogonal_RC * (values.mean() if len(values) else 0.0)


ISO_C = matrix_family(isotropic)
