"""Weights with a LoRA adapter, computed when they are asked for: nothing is written, and no model is copied.

LoRA: Hu et al. 2021, arXiv 2106.09685. DoRA: Liu et al. 2024, arXiv 2402.09353.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from merge_engine.adapter_files import Change, LowRank
from merge_engine.checkpoint_header import TensorInfo
from merge_engine.tensor_files import TensorFiles

_BLOCK_ELEMENTS = 2**22  # of the weight at a time: some fp32 temporaries of this size


class AdaptedTensors:
    """Keeps only DoRA's row norms, which cost a pass over the weight: one number for each of its outputs."""

    def __init__(self, files: TensorFiles) -> None:
        self._files = files
        self._gains: dict[tuple[TensorInfo, LowRank], Tensor] = {}

    @torch.no_grad()
    def tensor(self, info: TensorInfo, change: Change) -> Tensor:
        """The tensor ``info`` of the model with ``change`` made to it: flat, of the stored dtype, new."""
        weight = self._stored(info)
        if change.replacement is not None:
            weight = self._stored(change.replacement).to(weight.dtype)
        low_rank = change.low_rank
        if low_rank is None:
            return weight.reshape(-1)
        gain = self._gain(change.replacement or info, weight, low_rank)
        adapted = torch.empty_like(weight, memory_format=torch.contiguous_format)
        outputs = adapted.T if low_rank.transposed else adapted
        for rows, block in self._sums(weight, low_rank):
            outputs[rows] = (block if gain is None else block * gain[rows, None]).to(weight.dtype)
        return adapted.view(-1)

    def _sums(self, weight: Tensor, low_rank: LowRank) -> Iterator[tuple[slice, Tensor]]:
        """W + scale * B @ A in fp32 (LoRA, equation 3), some outputs at a time; W of shape (out, in)."""
        outputs = weight.T if low_rank.transposed else weight
        a, b = self._stored(low_rank.a).float(), self._stored(low_rank.b).float()
        step = max(1, _BLOCK_ELEMENTS // max(1, outputs.shape[1]))
        for start in range(0, outputs.shape[0], step):
            rows = slice(start, min(start + step, outputs.shape[0]))
            delta = (b[rows] @ a).mul_(low_rank.scale)
            if low_rank.embedding:  # peft adds the rounded product here, and the whole one everywhere else
                delta = delta.to(weight.dtype)
            yield rows, outputs[rows].to(torch.promote_types(weight.dtype, torch.float32)) + delta

    def _gain(self, info: TensorInfo, weight: Tensor, low_rank: LowRank) -> Tensor | None:
        """What brings each output's weights to the trained norm (DoRA, equation 5)."""
        if low_rank.magnitude is None:
            return None
        key = (info, low_rank)
        if key not in self._gains:
            sums = self._sums(weight, low_rank)
            norms = torch.cat([torch.linalg.vector_norm(block, dim=1) for _, block in sums])
            self._gains[key] = self._stored(low_rank.magnitude).float().view(-1) / norms
        return self._gains[key]

    def _stored(self, info: TensorInfo) -> Tensor:
        return self._files.tensor(info).view(info.shape)
