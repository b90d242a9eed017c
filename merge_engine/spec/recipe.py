"""One concrete merge: the config that `mergekit-yaml` reads, as typed values that were checked as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from merge_engine.errors import Problem, RecipeError
from merge_engine.spec.methods import METHODS, Method
from merge_engine.spec.parameters import parameters_data, read_parameters
from merge_engine.spec.reading import Fields, one_of, shown, text
from merge_engine.spec.values import Value

DTYPES = ("bfloat16", "float16", "float32")
_NO_LAYERS = (0, 0)  # stands for a layer range that was refused


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
class Recipe:
    """One merge. Either ``models`` (whole models) or ``slices`` is given, never both.

    A parameter is looked up at the model or source, then the slice, then here; where none says anything,
    the method's default holds. With ``slices``, tensors before the layers (embeddings) belong to the first
    slice, those after them (final norm, head) to the last; the layers of the result are the slices in their
    order.
    """

    merge_method: str
    base_model: str | None = None
    models: tuple[InputModel, ...] | None = None
    slices: tuple[OutputSlice, ...] | None = None
    parameters: Mapping[str, Value] = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None
    chat_template: str | None = None
    name: str | None = None

    def model_references(self) -> tuple[str, ...]:
        """Every model the recipe names, the base included, each once, in order of appearance."""
        named: list[str | None] = [entry.model for entry in self.models or ()]
        for piece in self.slices or ():
            named += [source.model for source in piece.sources] + [piece.base_model]
        return tuple(dict.fromkeys(name for name in [*named, self.base_model] if name is not None))


def recipe_data(recipe: Recipe) -> dict[str, object]:
    """The recipe as plain YAML data; ``parse_recipe(recipe_data(recipe)) == recipe``."""
    models, slices = recipe.models, recipe.slices
    return _given(
        name=recipe.name,
        merge_method=recipe.merge_method,
        base_model=recipe.base_model,
        models=None if models is None else [_model_data(model) for model in models],
        slices=None if slices is None else [_slice_data(piece) for piece in slices],
        parameters=parameters_data(recipe.parameters) or None,
        dtype=recipe.dtype,
        out_dtype=recipe.out_dtype,
        tokenizer_source=recipe.tokenizer_source,
        chat_template=recipe.chat_template,
    )


def _given(**entries: object) -> dict[str, object]:
    return {key: value for key, value in entries.items() if value is not None}


def _model_data(model: InputModel) -> dict[str, object]:
    return _given(model=model.model, parameters=parameters_data(model.parameters) or None)


def _slice_data(piece: OutputSlice) -> dict[str, object]:
    sources = [
        _given(
            model=source.model,
            layer_range=list(source.layer_range),
            parameters=parameters_data(source.parameters) or None,
        )
        for source in piece.sources
    ]
    return _given(
        sources=sources, base_model=piece.base_model, parameters=parameters_data(piece.parameters) or None
    )


def parse_recipe(data: object) -> Recipe:
    """The recipe in plain YAML data.

    Raises `RecipeError` with every problem found: unknown keys, wrong types, values out of the range that
    the method table allows, missing parameters, numbers of models and layer ranges that do not fit.
    """
    problems: list[Problem] = []
    recipe = _RecipeReader(problems).read(data)
    if problems:
        raise RecipeError(problems)
    return recipe


class _RecipeReader:
    """Reads one recipe; everything wrong goes to ``problems`` under its path of keys."""

    def __init__(self, problems: list[Problem]) -> None:
        self._problems = problems
        self._method: Method | None = None

    def read(self, data: object) -> Recipe:
        top = Fields(data, "", self._problems)
        merge_method = top.need("merge_method", one_of(*METHODS), "")
        self._method = METHODS.get(merge_method)
        self._refuse_later_keys(top)
        recipe = Recipe(
            merge_method=merge_method,
            base_model=top.get("base_model", text, None),
            models=self._models(top) if top.has("models") else None,
            slices=self._slices(top) if top.has("slices") else None,
            parameters=self._parameters(top, of_model=False),
            dtype=top.get("dtype", one_of(*DTYPES), None),
            out_dtype=top.get("out_dtype", one_of(*DTYPES), None),
            tokenizer_source=top.get("tokenizer_source", text, None),
            chat_template=top.get("chat_template", text, None),
            name=top.get("name", text, None),
        )
        top.finish()
        if (recipe.models is None) == (recipe.slices is None):
            found = "neither" if recipe.models is None else "both"
            top.refuse("", f"expected either models or slices, found {found}")
        if self._method is not None:
            self._check(recipe, self._method)
        return recipe

    def _refuse_later_keys(self, top: Fields) -> None:
        for key, remedy in (("modules", "use models or slices"), ("tokenizer", "use tokenizer_source")):
            if top.raw(key) is not None:
                top.refuse(key, "this version does not read it", remedy)

    def _models(self, top: Fields) -> tuple[InputModel, ...]:
        models = []
        for where, entry in top.entries("models"):
            fields = Fields(entry, where, self._problems)
            models.append(
                InputModel(
                    model=fields.need("model", text, ""), parameters=self._parameters(fields, of_model=True)
                )
            )
            fields.finish()
        return tuple(models)

    def _slices(self, top: Fields) -> tuple[OutputSlice, ...]:
        slices = []
        for where, entry in top.entries("slices"):
            fields = Fields(entry, where, self._problems)
            slices.append(
                OutputSlice(
                    sources=self._sources(fields),
                    base_model=fields.get("base_model", text, None),
                    parameters=self._parameters(fields, of_model=False),
                )
            )
            fields.finish()
        return tuple(slices)

    def _sources(self, piece: Fields) -> tuple[SliceSource, ...]:
        sources = []
        for where, entry in piece.entries("sources"):
            fields = Fields(entry, where, self._problems)
            sources.append(
                SliceSource(
                    model=fields.need("model", text, ""),
                    layer_range=self._layer_range(fields),
                    parameters=self._parameters(fields, of_model=True),
                )
            )
            fields.finish()
        return tuple(sources)

    def _layer_range(self, fields: Fields) -> tuple[int, int]:
        data = fields.raw("layer_range")
        if isinstance(data, list | tuple) and len(data) == 2:
            start, end = data
            whole = all(isinstance(end, int) and not isinstance(end, bool) for end in data)
            if whole and 0 <= start < end:
                return start, end
        found = "missing" if data is None else f"found {shown(data)}"
        what = f"expected [first, end] with 0 <= first < end, {found}"
        fields.refuse("layer_range", what, "the end is not included: [0, 8] takes layers 0 to 7")
        return _NO_LAYERS

    def _parameters(self, fields: Fields, *, of_model: bool) -> dict[str, Value]:
        level = fields.fields("parameters")
        return read_parameters(level, self._method, of_model=of_model, problems=self._problems)

    def _check(self, recipe: Recipe, method: Method) -> None:
        if recipe.models is not None:
            merge = _Merge(
                where="models",
                inputs=recipe.models,
                base_model=recipe.base_model,
                base_must_be_listed=not method.needs_base,
                shared=(recipe.parameters,),
            )
            self._check_merge(merge, method)
        if recipe.slices == ():
            self._refuse("slices", "the list is empty", "give at least one slice")
        for i, piece in enumerate(recipe.slices or ()):
            merge = _Merge(
                where=f"slices[{i}].sources",
                inputs=piece.sources,
                base_model=piece.base_model or recipe.base_model,
                base_must_be_listed=True,
                shared=(piece.parameters, recipe.parameters),
            )
            self._check_merge(merge, method)
            self._check_lengths(merge.where, piece)

    def _check_merge(self, merge: _Merge, method: Method) -> None:
        self._check_duplicates(merge)
        self._check_base(merge, method)
        others = [
            (f"{merge.where}[{i}]", entry)
            for i, entry in enumerate(merge.inputs)
            if not (method.needs_base and entry.model == merge.base_model)
        ]
        self._check_count(merge.where, len(others), method)
        for parameter in method.parameters:
            if parameter.default is not None or any(parameter.name in level for level in merge.shared):
                continue
            remedy = f"{method.name} has no default for it"
            if parameter.scope == "global":
                self._refuse(f"parameters.{parameter.name}", "missing", remedy)
                continue
            for where, entry in others:
                if parameter.name not in entry.parameters:
                    self._refuse(f"{where}.parameters.{parameter.name}", "missing", remedy)

    def _check_base(self, merge: _Merge, method: Method) -> None:
        if merge.base_model is None:
            if method.needs_base:
                self._refuse("base_model", "missing", f"{method.name} merges differences from a base model")
        elif merge.base_must_be_listed and merge.base_model not in [entry.model for entry in merge.inputs]:
            remedy = (
                "add it" if method.needs_base else f"add it, or drop base_model: {method.name} needs none"
            )
            self._refuse(merge.where, f"the base model {merge.base_model!r} is not in the list", remedy)

    def _check_count(self, where: str, count: int, method: Method) -> None:
        low, high = method.min_models, method.max_models
        if low <= count and (high is None or count <= high):
            return
        allowed = f"exactly {low}" if low == high else f"at least {low}"
        beside = " beside the base model" if method.needs_base else ""
        self._refuse(where, f"{method.name} takes {allowed} model(s){beside}, found {count}")

    def _check_duplicates(self, merge: _Merge) -> None:
        seen: dict[str, int] = {}
        for i, entry in enumerate(merge.inputs):
            if entry.model and entry.model in seen:
                what = f"{entry.model!r} is already {merge.where}[{seen[entry.model]}]"
                self._refuse(f"{merge.where}[{i}]", what, "list each model once")
            seen.setdefault(entry.model, i)

    def _check_lengths(self, where: str, piece: OutputSlice) -> None:
        ranges = [source.layer_range for source in piece.sources if source.layer_range != _NO_LAYERS]
        lengths = [end - start for start, end in ranges]
        if len(set(lengths)) > 1:
            self._refuse(where, f"the layer ranges differ in length: {lengths}", "all must be equally long")

    def _refuse(self, where: str, what: str, remedy: str = "") -> None:
        self._problems.append(Problem(where, what, remedy))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Merge:
    """What is merged at one place: the whole models, or the sources of one slice."""

    where: str
    inputs: Sequence[InputModel | SliceSource]
    base_model: str | None
    base_must_be_listed: bool
    shared: tuple[Mapping[str, Value], ...]
