"""One concrete merge: the config that `mergekit-yaml` reads, as typed values that were checked as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from merge_engine.errors import Problem, RecipeError
from merge_engine.spec.methods import METHODS, Method
from merge_engine.spec.parameters import parameters_data, read_parameters
from merge_engine.spec.reading import Fields, one_of, shown, text
from merge_engine.spec.recipe_checks import NO_LAYERS, recipe_problems
from merge_engine.spec.values import Value

DTYPES = ("bfloat16", "float16", "float32")


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
            self._problems += recipe_problems(recipe, self._method)
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
        return NO_LAYERS

    def _parameters(self, fields: Fields, *, of_model: bool) -> dict[str, Value]:
        level = fields.fields("parameters")
        return read_parameters(level, self._method, of_model=of_model, problems=self._problems)
