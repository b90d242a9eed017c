"""The rows of a tensor in the order of the result's vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from merge_engine.vocabulary.row_map import NOT_OWN, RowMap

_BLOCK_ELEMENTS = 2**15
_CHUNK_ROWS = 4096  # of mixed rows, which are summed in fp32


def gather(rows: RowMap, own: Tensor, donors: Sequence[Tensor]) -> Tensor:
    """A new tensor of ``rows.rows`` rows: of the dtype of ``own``, or one that holds the sums.

    ``own``: the model's tensor, its first dimension the rows. ``donors``: those of ``rows.donors``, of rows
    as long. Sums and means are formed in fp32.
    """
    own_R = torch.from_numpy(rows.own_R.copy())
    result = own.index_select(0, own_R.clamp(min=0))
    is_wanted = rows.dtype is None or getattr(torch, rows.dtype) == own.dtype
    if (rows.mixes and not is_wanted) or any(donor.dtype != own.dtype for donor in donors):
        result = result.to(torch.promote_types(own.dtype, torch.float32))
    result[own_R == NOT_OWN] = 0
    _add_mixed(rows, donors, result)
    if rows.padding:
        content = rows.rows - rows.padding
        result[content:] = _mean_row(result[:content])
    return result


def _mean_row(rows_RN: Tensor) -> Tensor:
    """The mean over the rows, in fp32: in blocks that torch sums in one thread, so always the same bits."""
    total = torch.zeros(rows_RN.shape[1:], dtype=torch.float64)
    for block in torch.split(rows_RN, max(1, _BLOCK_ELEMENTS // max(1, rows_RN[0].numel()))):
        total += block.sum(0, dtype=torch.float64)
    return (total / len(rows_RN)).float()


def _add_mixed(rows: RowMap, donors: Sequence[Tensor], result: Tensor) -> None:
    """Write the rows that ``rows.parts_P`` describe; parts of one row are neighbours."""
    parts = rows.parts_P
    targets, places = torch.unique_consecutive(torch.from_numpy(parts["row"].copy()), return_inverse=True)
    for start in range(0, len(targets), _CHUNK_ROWS):
        chunk = targets[start : start + _CHUNK_ROWS]
        total = torch.zeros((len(chunk), *result.shape[1:]), dtype=torch.float32)
        inside = (places >= start) & (places < start + len(chunk))
        for number, donor in enumerate(donors):
            mine = inside & torch.from_numpy(parts["donor"] == number)
            picked = parts[mine.numpy()]
            taken = donor.index_select(0, torch.from_numpy(picked["donor_row"].copy())).float()
            share = torch.from_numpy(picked["share"].copy()).view(-1, *[1] * (taken.ndim - 1))
            total.index_add_(0, places[mine] - start, taken * share)
        result[chunk] = total.to(result.dtype)
