"""What a plan consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from merge_engine.spec.values import Scalar
from merge_engine.vocabulary.alignment import Alignment
from merge_engine.vocabulary.row_map import RowMap


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRef:
    """One tensor of one source model; ``model`` is the reference as the recipe writes it.

    ``rows``: how it is brought to the vocabulary of the result, None where it is taken as it is stored;
    ``donors`` are the tensors of ``rows.donors``.
    """

    model: str
    name: str
    rows: RowMap | None = None
    donors: tuple[TensorRef, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorJob:
    """One tensor of the result.

    ``sources`` are the merged models without the base where the method works on differences from it.
    ``per_source`` holds the model parameters, one mapping for each source; ``shared`` those of the whole
    merge. ``dtype`` is what is merged in, ``out_dtype`` what is written; both None for integer tensors, which
    are copied.
    """

    name: str
    method: str
    shape: tuple[int, ...]
    dtype: str | None
    out_dtype: str | None
    base: TensorRef | None
    sources: tuple[TensorRef, ...]
    per_source: tuple[Mapping[str, Scalar], ...]
    shared: Mapping[str, Scalar]

    @property
    def inputs(self) -> tuple[TensorRef, ...]:
        """The sources, and the base where there is one."""
        return self.sources if self.base is None else (*self.sources, self.base)

    def values(self, parameter: str) -> list[float]:
        """A model parameter, one value for each source."""
        return [float(values[parameter]) for values in self.per_source]

    def value(self, parameter: str) -> float:
        return float(self.shared[parameter])

    def flag(self, parameter: str) -> bool:
        return bool(self.shared[parameter])


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerOrigin:
    """The layer whose names and shapes a layer of the result has."""

    model: str
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StackPlan:
    """The layers of one stack of the result.

    ``path``: of the stack that it takes the place of, in the model whose config describes the result
    (``("model", "layers")``), and ``old_count`` that stack's number of layers. ``main``: it is the stack that
    a config means by its number of layers.
    """

    path: tuple[str, ...]
    old_count: int
    main: bool
    layers: tuple[LayerOrigin, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Every tensor of the result in the order of the stream: before the layers, by layer, after them."""

    jobs: tuple[TensorJob, ...]
    stacks: tuple[StackPlan, ...]
    config_source: str  # the model whose config describes the result, but for its layers and vocabulary
    untied: bool  # the result has an output head of its own, though that config says it has not
    alignment: Alignment

    @property
    def layers(self) -> tuple[LayerOrigin, ...]:
        """Those of the main stack, or of the only one that is merged."""
        return max(self.stacks, key=lambda stack: stack.main).layers if self.stacks else ()

    @property
    def num_layers(self) -> int:
        return len(self.layers)
