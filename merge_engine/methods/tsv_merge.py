"""TSV-Merge: the leading singular vectors of each task, decorrelated.

Gargiulo et al. 2025, Task Singular Vectors, arXiv 2412.00081, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from merge_engine.methods.matrices import matrix_family, polar


def merged_singular_vectors(deltas: Sequence[Tensor]) -> Tensor:
    """U' S V'^T of the first K / M singular triples of each of M task vectors.

    U' and V' are the orthogonal matrices nearest to all left and all right vectors side by side (Procrustes).
    """
    kept = max(min(deltas[0].shape) // len(deltas), 1)
    parts = [torch.linalg.svd(delta_RC, full_matrices=False) for delta_RC in deltas]
    left_RK, _ = polar(torch.cat([left[:, :kept] for left, _, _ in parts], dim=1))
    right_KC, _ = polar(torch.cat([right[:kept] for _, _, right in parts]))
    values_K = torch.cat([values[:kept] for _, values, _ in parts])
    return left_RK @ (values_K[:, None] * right_KC)


TSV_MERGE = matrix_family(merged_singular_vectors)
