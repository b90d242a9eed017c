"""The source models of one worker: their headers, and their tensors as views of mapped files."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from merge_engine.checkpoint_header import CheckpointHeader, open_header
from merge_engine.fingerprint import fingerprint
from merge_engine.layers import LayerNames, layer_names
from merge_engine.plan import TensorRef
from merge_engine.sources import resolve
from merge_engine.tensor_files import MappedFiles


class SourceTensors:
    """Opens each model once, by the reference a recipe gives it."""

    def __init__(self) -> None:
        self._files = MappedFiles()
        self._headers: dict[str, CheckpointHeader] = {}
        self._fingerprints: dict[str, str] = {}
        self._names: dict[Path, LayerNames] = {}
        self._tensors: dict[TensorRef, Tensor] = {}

    def header(self, reference: str) -> CheckpointHeader:
        """The header of a model by its reference. Raises `CheckpointError`."""
        if reference not in self._headers:
            self._headers[reference] = open_header(resolve(reference))
        return self._headers[reference]

    def layer_names(self, header: CheckpointHeader) -> LayerNames:
        """`merge_engine.layers.layer_names`, found once. Raises `CheckpointError`."""
        if header.folder not in self._names:
            self._names[header.folder] = layer_names(header)
        return self._names[header.folder]

    def tensor(self, ref: TensorRef) -> Tensor:
        """The stored tensor, flat, as a view of its file: not to be written to."""
        if ref not in self._tensors:
            self._tensors[ref] = self._files.tensor(self.header(ref.model).tensors[ref.name])
        return self._tensors[ref]

    def fingerprint(self, reference: str) -> str:
        """`merge_engine.fingerprint.fingerprint` of a model, found once."""
        if reference not in self._fingerprints:
            self._fingerprints[reference] = fingerprint(self.header(reference))
        return self._fingerprints[reference]
