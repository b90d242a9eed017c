"""Methods that look at a task vector of a matrix as a matrix: through its singular values and vectors.

Suffixes: R rows, C columns, N = R C elements, M models, K the smaller of R and C.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from merge_engine.methods.family import GROUP_ELEMENTS, Call, Family, Group, Inputs
from merge_engine.methods.rounding import read, wide, wide_dtype

# What a method makes of M weighted task vectors, float64 of shape (R, C): their merged one.
MatrixMerge = Callable[[Sequence[Tensor]], Tensor]

_IN_A_LAYER = re.compile(r"\.\d+\.")
_LEAST_EIGENVALUE = 1e-14  # of the largest, for each row: what is less is rounding


def add_change(
    sources: Sequence[Tensor], base_N: Tensor, first: Tensor, dtype: torch.dtype, change_N: Tensor
) -> Tensor:
    """base + change."""
    return wide(read(base_N, dtype)) + change_N


def matrix_family(merge: MatrixMerge) -> Family:
    """The method that merges the task vectors of the layers' matrices with ``merge``.

    Of all other tensors (norms, biases, embeddings, heads) it takes the mean of the weighted task vectors, as
    the authors of these methods do. ``lambda`` multiplies either.
    """

    def calls(group: Group) -> Iterator[Call]:
        begin = 0
        for tensor in group.tensors:
            for start, change_N in _changes(tensor, merge):
                place = begin + start
                factor = group.job.value("lambda")
                yield Call(
                    start=place,
                    stop=place + len(change_N),
                    arguments=((factor * change_N).to(wide_dtype(group.dtype)),),
                    compiles=False,
                )
            begin += tensor.elements

    return Family(kernel=add_change, calls=calls)


def polar(matrix_RC: Tensor) -> tuple[Tensor, Tensor]:
    """U V^T of the singular value decomposition U S V^T, and the singular values, float64.

    Found from the eigenvalues of the smaller of the two Gram matrices, which takes a fraction of the time and
    the memory of the whole decomposition. Directions of singular values that are zero are left out.
    """
    if matrix_RC.shape[0] > matrix_RC.shape[1]:
        orthogonal, values = polar(matrix_RC.T)
        return orthogonal.T, values
    eigenvalues_K, vectors_KK = torch.linalg.eigh(matrix_RC @ matrix_RC.T)
    kept = eigenvalues_K > _LEAST_EIGENVALUE * len(eigenvalues_K) * eigenvalues_K.amax().clamp(min=0.0)
    values, vectors = eigenvalues_K[kept].sqrt(), vectors_KK[:, kept]
    return (vectors / values) @ (vectors.T @ matrix_RC), values


def _changes(tensor: Inputs, merge: MatrixMerge) -> Iterator[tuple[int, Tensor]]:
    """The merged task vector in parts, float64, each with the place of its first element."""
    weights = tensor.job.values("weight")
    if len(tensor.job.shape) == 2 and tensor.elements and _IN_A_LAYER.search(tensor.job.name):
        deltas = tensor.task_vectors(slice(None))
        shaped = [
            weight * delta_N.double().view(tensor.job.shape)
            for weight, delta_N in zip(weights, deltas, strict=True)
        ]
        merged_N = merge(shaped).reshape(-1)
        for start in range(0, tensor.elements, GROUP_ELEMENTS):
            yield start, merged_N[start : start + GROUP_ELEMENTS]
        return
    for start in range(0, tensor.elements, GROUP_ELEMENTS):
        deltas = tensor.task_vectors(slice(start, start + GROUP_ELEMENTS))
        weighted = [weight * delta_N.double() for weight, delta_N in zip(weights, deltas, strict=True)]
        yield start, torch.stack(weighted).mean(dim=0)
