"""Source tensors that stay on the device, for results that hold many of them as they are."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from merge_engine.plan_types import TensorJob, TensorRef
from merge_engine.source_tensors import SourceTensors


class KeptTensors:
    """By reference; each in one dtype, to which it was rounded as merging rounds. Not to be written to."""

    def __init__(self) -> None:
        self._tensors: dict[TensorRef, Tensor] = {}

    def add(
        self, sources: SourceTensors, model: str, names: Iterable[str], dtype: torch.dtype, device: str
    ) -> None:
        """Keep the named tensors of a source model, except those that are no floating point numbers."""
        infos = sources.header(model).tensors
        for name in names:
            ref = TensorRef(model=model, name=name)
            stored = sources.tensor(ref).view(infos[name].shape)
            if stored.is_floating_point() and ref not in self._tensors:
                self._tensors[ref] = stored.to(device, dtype, copy=True)

    def flat(self, ref: TensorRef, dtype: torch.dtype | None) -> Tensor | None:
        """The tensor, flat, if it is kept in this dtype."""
        kept = self._tensors.get(ref)
        return kept.view(-1) if kept is not None and kept.dtype == dtype else None

    def result(self, job: TensorJob, dtype: torch.dtype) -> Tensor | None:
        """The kept tensor that is the result of ``job``, of ``dtype``, as it stands; None where none is."""
        if job.method != "passthrough" or job.dtype != job.out_dtype or job.values("scale") != [1.0]:
            return None
        kept = self._tensors.get(job.sources[0])
        return kept if kept is not None and kept.dtype == dtype else None
