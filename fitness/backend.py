"""What the search needs from whatever holds the model: take weights, give scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from fitness.results import Report

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

Split: TypeAlias = Literal["search", "holdout"]


class Suite(Protocol):
    """A task suite, built once; it knows models and tasks, never genomes."""

    @property
    def forward_s(self) -> float:
        """Seconds spent in models' forward passes so far."""
        ...

    @property
    def batch_size(self) -> int:
        """Sequences per forward pass. Part of what a score depends on: fixed for a whole search."""
        ...

    @property
    def suite_digest(self) -> str:
        """A digest of every item and of the tokens that models are asked, on both splits."""
        ...


class Backend(Suite, Protocol):
    """A task suite and one resident model."""

    def tensors(self) -> Mapping[str, Tensor]:
        """The resident storage by checkpoint name; tied weights once. Writing into it is loading.

        Empty where a backend keeps weights in a form of its own (vLLM), and where candidates differ in their
        layers: then it takes the stream's tensors as its own.
        """
        ...

    def held_bytes(self) -> int:
        """Memory of the model's processes where the weights are: see `fitness.held_memory`.

        Of several processes on the same machine all together; where each has a GPU, of the one with most.
        """
        ...

    def load(self, stream: Iterable[tuple[str, Tensor]]) -> None:
        """Takes every weight of a model. A tensor that is already the resident storage is not copied.

        Where candidates differ in their layers, nothing is copied: the model is the one whose tensors these
        are, as deep as their names say; they may not be written to before the next load.

        Raises:
            ModelError: a name is missing, unknown, or has another shape; all of them are listed.
        """
        ...

    def score(self, split: Split) -> Report:
        """Scores the weights loaded last on one split of the suite.

        Raises:
            ScoringError: a metric came out as NaN, None or infinite.
            OutOfMemory: a batch does not fit.
        """
        ...


class FolderScorer(Suite, Protocol):
    """A task suite for models that come one after another as folders."""

    def score(self, folder: Path, split: Split) -> Report:
        """Loads the model in ``folder``, scores it on one split of the suite, and lets go of it.

        Raises:
            ModelError: it cannot be loaded, or has not all of its weights.
            ScoringError: a metric came out as NaN, None or infinite.
            OutOfMemory: a batch does not fit.
        """
        ...
