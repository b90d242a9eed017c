"""The source models of one worker: their headers, and their tensors as views of mapped files."""

from __future__ import annotations

from pathlib import Path
from weakref import WeakValueDictionary

from torch import Tensor

from merge_engine.adapters import AdaptedTensors
from merge_engine.checkpoint_header import CheckpointHeader
from merge_engine.fingerprint import fingerprint
from merge_engine.layers import LayerNames, layer_names
from merge_engine.plan import TensorRef
from merge_engine.sources import open_source
from merge_engine.spec.recipe import Recipe
from merge_engine.tensor_files import MappedFiles, TensorFiles
from merge_engine.vocabulary.alignment import Alignment, align
from merge_engine.vocabulary.gather import gather


class SourceTensors:
    """Opens each model once, by the reference a recipe gives it. ``files``: None for `MappedFiles`."""

    def __init__(self, files: TensorFiles | None = None) -> None:
        self._files = MappedFiles() if files is None else files
        self._adapted = AdaptedTensors(self._files)
        self._headers: dict[str, CheckpointHeader] = {}
        self._fingerprints: dict[str, str] = {}
        self._names: dict[Path, LayerNames] = {}
        self._tensors: dict[TensorRef, Tensor] = {}
        self._alignments: dict[str, Alignment] = {}
        self._made: WeakValueDictionary[TensorRef, Tensor] = WeakValueDictionary()

    def header(self, reference: str) -> CheckpointHeader:
        """The header of a model by its reference. Raises `CheckpointError`."""
        if reference not in self._headers:
            self._headers[reference] = open_source(reference)
        return self._headers[reference]

    def layer_names(self, header: CheckpointHeader) -> LayerNames:
        """`merge_engine.layers.layer_names`, found once. Raises `CheckpointError`."""
        if header.folder not in self._names:
            self._names[header.folder] = layer_names(header)
        return self._names[header.folder]

    def alignment(self, recipe: Recipe) -> Alignment:
        """`merge_engine.vocabulary.alignment.align`, found once for each choice. Raises `PlanError`."""
        choice = recipe.vocabulary, recipe.truncate_embeddings, recipe.dtype
        key = repr((*choice, recipe.base_model, recipe.model_references()))
        if key not in self._alignments:
            self._alignments[key] = align(recipe, self.header)
        return self._alignments[key]

    def tensor(self, ref: TensorRef) -> Tensor:
        """The tensor, flat, not to be written to: a view of its file, or made, with ``rows`` or an adapter.

        What was made is made anew unless somebody still holds it: as a rule one tensor is needed at a time.
        """
        header = self.header(ref.model)
        if ref.rows is None and ref.name not in header.changes:
            if ref not in self._tensors:
                self._tensors[ref] = self._files.tensor(header.tensors[ref.name])
            return self._tensors[ref]
        found = self._made.get(ref)
        if found is None:
            found = self._made[ref] = self._make(ref, header)
        return found

    def _make(self, ref: TensorRef, header: CheckpointHeader) -> Tensor:
        if ref.rows is None:
            return self._adapted.tensor(header.tensors[ref.name], header.changes[ref.name])
        own, *donors = (
            self.tensor(plain).view(self.header(plain.model).tensors[plain.name].shape)
            for plain in (TensorRef(model=ref.model, name=ref.name), *ref.donors)
        )
        return gather(ref.rows, own, donors).view(-1)

    def forget_tensors(self) -> None:
        """Let go of every tensor handed out so far, but not of what is known about the models."""
        self._tensors.clear()

    def fingerprint(self, reference: str) -> str:
        """`merge_engine.fingerprint.fingerprint` of a model, found once."""
        if reference not in self._fingerprints:
            self._fingerprints[reference] = fingerprint(self.header(reference))
        return self._fingerprints[reference]
