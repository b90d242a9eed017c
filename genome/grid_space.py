"""The search space of a search file: vector <-> recipe, bounds, start, baselines.

A vector is a point of a box. Decoding only places numbers: a gene *is* the value of a parameter, except
where pairs of models are chosen (`genome.pairs`). As in `mergekit-evolve` there is one parameter set for
each run of ``layer_granularity`` layers, for each filter and for the rest, and for each source model. With
steps (slices) the embeddings go with the first group of layers, the final norm and the head with the last;
with gradients (``smooth``) all of these take the value of the first layer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from genome.baselines import Baseline, Baselines
from genome.box import Kind
from genome.direct import DirectForm
from genome.errors import SearchFileError, VectorError
from genome.frame import Frame
from genome.layout import Layout, Slot, layer_groups
from genome.pairs import PairForm
from genome.search_file import GenomeSpec, SearchFile
from genome.searched import chooses_pairs, is_pair_method, searched_parameters
from merge_engine.errors import Problem
from merge_engine.spec import METHODS, Parameter, Recipe

# How far outside the bounds a vector may lie by an optimiser's rounding.
_TOLERANCE = 1e-9


class GridSpace:
    """A box of D dimensions, each point of which is one recipe.

    ``names``: what each gene is, in words, D of them. ``lower``, ``upper``, ``start``: float64 of shape
    (D,), read only; the start is the uniform merge (weights 1/n, everything kept) moved into the bounds.
    With ``random_init`` in the search file it is the search that starts elsewhere; the space is the same.
    """

    def __init__(self, frame: Frame, layout: Layout, form: DirectForm | PairForm) -> None:
        self._frame = frame
        self._layout = layout
        self._form = form
        self.names = layout.names()
        self.kinds: tuple[Kind, ...] = tuple("real" for _ in self.names)
        self.lower = _read_only(layout.constant(lambda slot: slot.low))
        self.upper = _read_only(layout.constant(lambda slot: slot.high))
        self.start = _read_only(np.clip(layout.constant(lambda slot: slot.start), self.lower, self.upper))

    @classmethod
    def build(cls, search_file: SearchFile, num_layers: int, dtype: str) -> GridSpace:
        """The space over models of ``num_layers`` layers, merged in ``dtype`` unless the file names one.

        Raises `SearchFileError` where the granularity does not fit the layers.
        """
        genome = search_file.genome
        if genome.layer_granularity > num_layers:
            what = f"{genome.layer_granularity} is more than the {num_layers} layers of the models"
            raise SearchFileError([Problem("genome.layer_granularity", what, f"allowed: 0 to {num_layers}")])
        layout = Layout(
            groups=layer_groups(num_layers, genome.layer_granularity),
            smooth=genome.smooth,
            filters=(*genome.filters, None),
            slots=_slots(genome),
        )
        frame = Frame(genome=genome, dtype=genome.dtype or dtype)
        return cls(frame, layout, _form(frame, layout))

    def decode(self, vector: NDArray[np.float64]) -> Recipe:
        """The recipe at ``vector``, shape (D,); raises `VectorError` outside the bounds."""
        if vector.shape != self.lower.shape:
            raise VectorError(f"a vector of this space has the shape {self.lower.shape}, not {vector.shape}")
        inside = np.clip(vector, self.lower, self.upper)
        if not np.all(np.abs(vector - inside) <= _TOLERANCE):
            worst = int(np.argmax(~(np.abs(vector - inside) <= _TOLERANCE)))
            ends = f"[{self.lower[worst]:g}, {self.upper[worst]:g}]"
            raise VectorError(f"{self.names[worst]}: {vector[worst]!r} lies outside {ends}")
        return self._form.write(inside.reshape(self._layout.shape))

    def encode(self, recipe: Recipe) -> NDArray[np.float64] | None:
        """The vector that decodes to exactly this recipe, or None where there is none (or no unique one)."""
        grid = self._form.read(recipe)
        if grid is None or not self._contains(grid.ravel()):
            return None
        return grid.ravel()

    def baselines(self) -> tuple[Baseline, ...]:
        """What a search has to beat: every source model, the base, the uniform merge, plain task arithmetic.

        ``vector`` is the point of the space that is the same merge (up to rounding), where there is one.
        """
        made = Baselines(frame=self._frame, layout=self._layout, form=self._form, contains=self._contains)
        return made.all()

    def _contains(self, vector: NDArray[np.float64]) -> bool:
        return bool(np.all((self.lower <= vector) & (vector <= self.upper)))


def _read_only(array: NDArray[np.float64]) -> NDArray[np.float64]:
    array = np.ascontiguousarray(array)
    array.flags.writeable = False
    return array


def _form(frame: Frame, layout: Layout) -> DirectForm | PairForm:
    genome = frame.genome
    method = METHODS[genome.merge_method]
    if is_pair_method(method):
        if chooses_pairs(method, genome.models):
            return PairForm(frame, layout)
        base = _pair_base(genome)
        return DirectForm(
            frame, layout, inputs=sorted(genome.models, key=lambda m: m != base), base_model=base
        )
    if method.takes_base and genome.base_model is not None:
        inputs = (genome.base_model, *genome.models)
        return DirectForm(frame, layout, inputs=inputs, base_model=genome.base_model)
    # Such a method would merge its base like any other model: only a source model can be named as one.
    listed_base = genome.base_model if genome.base_model in genome.models else None
    return DirectForm(frame, layout, inputs=genome.models, base_model=listed_base)


def _pair_base(genome: GenomeSpec) -> str:
    """Of two models to blend the one at t = 0."""
    return next((model for model in genome.models if model == genome.base_model), genome.models[0])


def _slots(genome: GenomeSpec) -> tuple[Slot, ...]:
    """Per model its parameters, then those of the merge as a whole."""
    method = METHODS[genome.merge_method]
    parameters = [p for p in searched_parameters(method, genome.models) if p.name in genome.bounds]
    blended = is_pair_method(method) and not chooses_pairs(method, genome.models)
    takers = [model for model in genome.models if not (blended and model == _pair_base(genome))]
    own = [_slot(genome, p, model) for model in takers for p in parameters if p.scope == "model"]
    shared = [_slot(genome, p, None) for p in parameters if p.scope == "global"]
    return (*own, *shared)


def _slot(genome: GenomeSpec, parameter: Parameter, model: str | None) -> Slot:
    low, high = genome.bounds[parameter.name]
    if parameter.name == "weight":
        start = 1.0 / len(genome.models)
    else:
        start = (low + high) / 2 if parameter.default is None else float(parameter.default)
    return Slot(parameter=parameter.name, model=model, low=low, high=high, start=start)
