"""One concrete merge as typed values: what the config of `mergekit-yaml` says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from merge_engine.spec.tokenizer import TokenizerRecipe
from merge_engine.spec.values import Value


@dataclass(frozen=True, slots=True, kw_only=True)
class InputModel:
    """One model of a whole-model merge."""

    model: str
    parameters: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceSource:
    """Layers [start, end) of one model."""

    model: str
    layer_range: tuple[int, int]
    parameters: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSlice:
    """A run of layers of the result, merged from equally long runs of layers of its sources."""

    sources: tuple[SliceSource, ...]
    base_model: str | None = None
    parameters: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputModule:
    """How one part of the result is made. Either ``models`` (whole models) or ``slices`` is given."""

    models: tuple[InputModel, ...] | None = None
    slices: tuple[OutputSlice, ...] | None = None
    parameters: Mapping[str, Value] = field(default_factory=dict)

    def references(self) -> list[str | None]:
        named: list[str | None] = [entry.model for entry in self.models or ()]
        for piece in self.slices or ():
            named += [source.model for source in piece.sources] + [piece.base_model]
        return named


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One merge. Exactly one of ``models`` (whole models), ``slices`` and ``modules`` is given.

    A parameter is looked up at the model or source, then the slice, the module, then here; where none says
    anything, the method's default holds. With ``slices``, tensors before the layers (embeddings) belong to
    the first slice, those after them (final norm, head) to the last; the layers of the result are the slices
    in their order. ``modules`` says for parts of a model with several stacks of layers (encoder and decoder,
    vision tower and language model) what becomes of each; `merge_engine.plan` finds them by their names.
    """

    merge_method: str
    base_model: str | None = None
    models: tuple[InputModel, ...] | None = None
    slices: tuple[OutputSlice, ...] | None = None
    modules: Mapping[str, OutputModule] | None = None
    parameters: Mapping[str, Value] = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None
    tokenizer: TokenizerRecipe | None = None
    chat_template: str | None = None
    name: str | None = None
    truncate_embeddings: bool = False  # no key of a config but an option of its merge: see `align`

    @property
    def vocabulary(self) -> TokenizerRecipe | None:
        """What ``tokenizer``, or the older ``tokenizer_source``, asks for."""
        if self.tokenizer is None and self.tokenizer_source is not None:
            return TokenizerRecipe(source=self.tokenizer_source.removeprefix("model:"))
        return self.tokenizer

    def parts(self) -> tuple[tuple[str | None, OutputModule], ...]:
        """The modules by name; without ``modules`` a single one, for the whole model, named None."""
        if self.modules is not None:
            return tuple(self.modules.items())
        return ((None, OutputModule(models=self.models, slices=self.slices)),)

    def model_references(self) -> tuple[str, ...]:
        """Every model the recipe names, the base included, each once, in order of appearance."""
        named = [reference for _, part in self.parts() for reference in part.references()]
        return tuple(dict.fromkeys(name for name in [*named, self.base_model] if name is not None))
