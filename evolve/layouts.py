"""Whether the candidates of a search differ in their layers."""

from __future__ import annotations

from dataclasses import dataclass

from evolve.preflight import Ready
from genome.slice_layout_space import LayoutSpace
from genome.template import Template
from merge_engine.spec import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Layouts:
    """Candidates are put together from layers, up to ``most_layers`` of them.

    ``models``: those whose layers every worker holds in memory, once; of the first one all tensors.
    """

    most_layers: int
    models: tuple[str, ...]


def layouts_of(ready: Ready) -> Layouts | None:
    """None where every candidate is as deep as the model whose config it has."""
    if isinstance(ready.space, LayoutSpace):
        return Layouts(most_layers=ready.space.most_layers, models=ready.space.models)
    genome = ready.search_file.genome
    if not isinstance(genome, Template) or not _changes_depth(genome, ready):
        return None
    counts = [header.num_layers or 0 for header in ready.headers.values()]
    return Layouts(most_layers=sum(counts), models=())


def _changes_depth(template: Template, ready: Ready) -> bool:
    """Whether slices have holes, or all candidates have another depth than the model."""
    depth = _depth(ready.space.decode(ready.space.start))
    return template.layers_vary or depth not in (None, ready.headers[ready.pattern].num_layers)


def _depth(recipe: Recipe) -> int | None:
    """The layers of a recipe of slices; None for whole models."""
    if recipe.slices is None:
        return None
    ranges = [piece.sources[0].layer_range for piece in recipe.slices]
    return sum(end - start for start, end in ranges)
