"""Recipe + checkpoint headers -> the list of tensors to merge, each with its inputs and evaluated parameters.

Nothing here reads tensor data, so a recipe can be checked in full before any long work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from merge_engine.checkpoint_header import CheckpointHeader, TensorInfo
from merge_engine.errors import CheckpointError, PlanError, Problem
from merge_engine.layers import LayerNames, layer_names
from merge_engine.spec.methods import METHODS, Method
from merge_engine.spec.recipe import OutputSlice, Recipe, SliceSource
from merge_engine.spec.values import Scalar, Value, first_match, is_filtered, layer_place
from merge_engine.vocabulary.alignment import Alignment, align
from merge_engine.vocabulary.row_map import RowMap
from merge_engine.vocabulary.tokens import has_token_rows, vocabulary_rows

DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
Levels = Sequence[Mapping[str, Value]]


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
class Plan:
    """Every tensor of the result in the order of the stream: before the layers, by layer, after them."""

    jobs: tuple[TensorJob, ...]
    layers: tuple[LayerOrigin, ...]
    config_source: str  # the model whose config describes the result, but for its layers and vocabulary
    alignment: Alignment

    @property
    def num_layers(self) -> int:
        return len(self.layers)


def make_plan(
    recipe: Recipe,
    header_of: Callable[[str], CheckpointHeader],
    names_of: Callable[[CheckpointHeader], LayerNames] = layer_names,
    alignment_of: Callable[[Recipe], Alignment] | None = None,
) -> Plan:
    """The plan of ``recipe``; ``header_of`` opens a model by its reference, ``names_of`` sorts its tensors.

    ``alignment_of`` settles the vocabulary; None: `merge_engine.vocabulary.alignment.align`.

    Raises `PlanError` with every problem: models that cannot be opened, layers out of range, missing tensors,
    shapes and vocabularies that do not fit.
    """
    problems: list[Problem] = []
    models: dict[str, _Model] = {}
    for reference in recipe.model_references():
        try:
            header = header_of(reference)
            models[reference] = _Model(header=header, names=names_of(header))
        except CheckpointError as error:
            problems.append(Problem(reference, str(error)))
    if problems:
        raise PlanError(problems)
    alignment = align(recipe, header_of) if alignment_of is None else alignment_of(recipe)
    return _Planner(recipe, models, alignment, problems).plan()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    header: CheckpointHeader
    names: LayerNames


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """One output slice with everything looked up: its sources, its base, and its levels of parameters."""

    where: str
    sources: tuple[SliceSource, ...]
    base_model: str | None
    shared: Levels

    @property
    def count(self) -> int:
        start, end = self.sources[0].layer_range
        return end - start

    @property
    def pattern(self) -> str:
        """The model whose tensor names and shapes the result has."""
        return self.base_model if self.base_model is not None else self.sources[0].model


class _Planner:
    def __init__(
        self,
        recipe: Recipe,
        models: Mapping[str, _Model],
        alignment: Alignment,
        problems: list[Problem],
    ) -> None:
        self._recipe = recipe
        self._models = models
        self._alignment = alignment
        self._method: Method = METHODS[recipe.merge_method]
        self._problems = problems
        self._filtered: dict[int, bool] = {}
        self._evaluated: dict[tuple[object, ...], dict[str, Scalar]] = {}

    def plan(self) -> Plan:
        pieces = self._pieces()
        self._check_ranges(pieces)
        if self._problems:
            raise PlanError(self._problems)
        jobs = tuple(self._jobs(pieces))
        if self._problems:
            raise PlanError(_most_telling(self._problems))
        layers = tuple(
            LayerOrigin(model=piece.pattern, index=self._starts(piece)[piece.pattern] + index)
            for piece in pieces
            for index in range(piece.count)
        )
        return Plan(jobs=jobs, layers=layers, config_source=pieces[0].pattern, alignment=self._alignment)

    def _pieces(self) -> list[_Piece]:
        recipe = self._recipe
        if recipe.slices is not None:
            return [self._sliced(f"slices[{i}]", piece) for i, piece in enumerate(recipe.slices)]
        whole = tuple(
            SliceSource(
                model=entry.model,
                layer_range=(0, len(self._models[entry.model].names.layers)),
                parameters=entry.parameters,
            )
            for entry in recipe.models or ()
        )
        counts = {source.model: source.layer_range[1] for source in whole}
        if recipe.base_model is not None:
            counts[recipe.base_model] = len(self._models[recipe.base_model].names.layers)
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{model} has {count}" for model, count in counts.items())
            self._refuse(
                "models", f"numbers of layers differ: {listed}", "choose equal runs of layers with slices"
            )
        return [
            _Piece(where="models", sources=whole, base_model=recipe.base_model, shared=(recipe.parameters,))
        ]

    def _sliced(self, where: str, piece: OutputSlice) -> _Piece:
        return _Piece(
            where=where,
            sources=piece.sources,
            base_model=piece.base_model or self._recipe.base_model,
            shared=(piece.parameters, self._recipe.parameters),
        )

    def _check_ranges(self, pieces: Sequence[_Piece]) -> None:
        for piece in pieces:
            for i, source in enumerate(piece.sources):
                self._check_range(f"{piece.where}.sources[{i}].layer_range", source)

    def _check_range(self, where: str, source: SliceSource) -> None:
        count = len(self._models[source.model].names.layers)
        if source.layer_range[1] > count:
            self._refuse(
                where,
                f"{list(source.layer_range)} is out of range",
                f"{source.model} has layers 0 to {count - 1}",
            )

    def _jobs(self, pieces: Sequence[_Piece]) -> Iterator[TensorJob]:
        first, last = pieces[0], pieces[-1]
        for name in self._names(first).before:
            yield from self._job(first, name, dict.fromkeys(self._members(first), name), 0.0)
        done = 0
        for piece in pieces:
            for index in range(piece.count):
                yield from self._layer(piece, index, done + index, self._names(first))
            done += piece.count
        for name in self._names(last).after:
            yield from self._job(last, name, dict.fromkeys(self._members(last), name), 0.0)

    def _layer(self, piece: _Piece, index: int, output_index: int, output: LayerNames) -> Iterator[TensorJob]:
        starts = self._starts(piece)
        pattern = self._names(piece)
        for suffix in pattern.layers[starts[piece.pattern] + index]:
            names = {
                model: self._models[model].names.name(starts[model] + index, suffix)
                for model in self._members(piece)
            }
            yield from self._job(
                piece, output.name(output_index, suffix), names, layer_place(index, piece.count)
            )

    def _starts(self, piece: _Piece) -> dict[str, int]:
        """The first layer of each model here; a base outside the sources is taken as the first source is."""
        starts = {source.model: source.layer_range[0] for source in reversed(piece.sources)}
        if piece.base_model is not None:
            starts.setdefault(piece.base_model, piece.sources[0].layer_range[0])
        return starts

    def _names(self, piece: _Piece) -> LayerNames:
        return self._models[piece.pattern].names

    def _members(self, piece: _Piece) -> list[str]:
        named = [source.model for source in piece.sources]
        return list(dict.fromkeys(named if piece.base_model is None else [piece.base_model, *named]))

    def _job(self, piece: _Piece, name: str, names: Mapping[str, str], place: float) -> Iterator[TensorJob]:
        """The job of one tensor, or none where a problem was found."""
        infos = {model: self._models[model].header.tensors.get(names[model]) for model in names}
        pattern = infos[piece.pattern]
        if pattern is None or not self._fits(name, names, infos, piece.pattern):
            return
        base = piece.base_model if self._method.takes_base else None
        merged = [source for source in piece.sources if source.model != base]
        stored = DTYPE_NAMES.get(pattern.dtype)
        dtype = None if stored is None else self._recipe.dtype or stored
        yield TensorJob(
            name=name,
            method=self._method.name,
            shape=self._shape(piece.pattern, names[piece.pattern], pattern),
            dtype=dtype,
            out_dtype=None if dtype is None else self._recipe.out_dtype or dtype,
            base=None if base is None else self._ref(base, names),
            sources=tuple(self._ref(source.model, names) for source in merged),
            per_source=tuple(
                self._parameters(
                    "model",
                    (source.parameters, *piece.shared),
                    names[source.model],
                    place,
                    f"{piece.where} ({source.model})",
                )
                for source in merged
            ),
            shared=self._parameters("global", piece.shared, names[piece.pattern], place, piece.where),
        )

    def _ref(self, model: str, names: Mapping[str, str]) -> TensorRef:
        """The tensor of a model, in the rows of the result's vocabulary if it has one for each token."""
        name = names[model]
        rows = self._alignment.maps.get(model)
        if rows is None or not self._has_token_rows(model, name):
            return TensorRef(model=model, name=name)
        donors = tuple(TensorRef(model=donor, name=names.get(donor, name)) for donor in rows.donors)
        for donor in donors:
            self._check_donor(donor, model, name)
        return TensorRef(model=model, name=name, rows=rows, donors=donors)

    def _has_token_rows(self, model: str, name: str) -> bool:
        header = self._models[model].header
        return has_token_rows(name, header.tensors[name], vocabulary_rows(header))

    def _shape(self, model: str, name: str, info: TensorInfo) -> tuple[int, ...]:
        """The shape of a model's tensor once its vocabulary is the result's."""
        rows = self._alignment.rows
        if rows is None or not self._has_token_rows(model, name):
            return info.shape
        return (rows, *info.shape[1:])

    def _check_donor(self, donor: TensorRef, model: str, name: str) -> None:
        there = self._models[donor.model].header.tensors.get(donor.name)
        wanted = self._models[model].header.tensors[name].shape[1:]
        if there is None or there.shape[1:] != wanted:
            found = "no such tensor" if there is None else f"rows of shape {list(there.shape[1:])}"
            remedy = "models that give each other tokens must have the same embeddings and heads"
            self._refuse(name, f"{donor.model} has {found} for tokens that {model} lacks", remedy)

    def _parameters(
        self, scope: str, levels: Levels, name: str, place: float, where: str
    ) -> dict[str, Scalar]:
        """The parameters of one tensor. Without filters they are those of the whole layer, found once."""
        by_name = any(map(self._by_name, levels))
        key = (*map(id, levels), scope, place, name if by_name else None)
        if key not in self._evaluated:
            self._evaluated[key] = self._evaluate(scope, levels, name, place, where)
        return self._evaluated[key]

    def _by_name(self, level: Mapping[str, Value]) -> bool:
        """Whether a parameter of this level depends on the tensor's name."""
        if id(level) not in self._filtered:
            self._filtered[id(level)] = any(map(is_filtered, level.values()))
        return self._filtered[id(level)]

    def _evaluate(self, scope: str, levels: Levels, name: str, place: float, where: str) -> dict[str, Scalar]:
        found: dict[str, Scalar] = {}
        for parameter in self._method.parameters:
            if parameter.scope != scope:
                continue
            value = first_match((level.get(parameter.name) for level in levels), name, place)
            value = parameter.default if value is None else value
            if value is None:
                self._refuse(
                    f"{where}.parameters.{parameter.name}",
                    f"no filter matches {name!r} and {self._method.name} has no default",
                    "add an entry without a filter",
                )
                value = 0.0
            found[parameter.name] = value
        return found

    def _fits(
        self, name: str, names: Mapping[str, str], infos: Mapping[str, TensorInfo | None], pattern_model: str
    ) -> bool:
        missing = [model for model, info in infos.items() if info is None]
        if missing:
            remedy = "the models must have one architecture (a tied output head counts)"
            self._refuse(name, f"missing in {', '.join(missing)} (as {names[missing[0]]!r})", remedy)
            return False
        shapes = {
            model: self._shape(model, names[model], info) for model, info in infos.items() if info is not None
        }
        if len(set(shapes.values())) > 1:
            listed = ", ".join(f"{model} has {list(shape)}" for model, shape in shapes.items())
            self._refuse(name, f"shapes differ: {listed}", self._shape_remedy(shapes))
            return False
        return True

    def _shape_remedy(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        rows = {model: shape[0] for model, shape in shapes.items() if shape}
        rest = {shape[1:] for shape in shapes.values()}
        vocabularies = {model: self._models[model].header.config.get("vocab_size") for model in shapes}
        if len(rest) == 1 and all(vocabularies[model] == count for model, count in rows.items()):
            return "the vocabularies differ: choose one with tokenizer_source: base, union or a model"
        return "merge models of one architecture and size"

    def _refuse(self, where: str, what: str, remedy: str = "") -> None:
        self._problems.append(Problem(where, what, remedy))


def _most_telling(problems: Sequence[Problem], limit: int = 20) -> list[Problem]:
    """At most ``limit`` problems: models that do not fit at all would list every tensor."""
    if len(problems) <= limit:
        return list(problems)
    return [*problems[:limit], Problem("...", f"and {len(problems) - limit} more of this kind")]
