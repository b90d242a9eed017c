"""The config that `mergekit-yaml` reads: plain data to values that were checked as a whole, and back."""

from __future__ import annotations

from collections.abc import Mapping

from merge_engine.errors import Problem, RecipeError
from merge_engine.spec.methods import METHODS, Method
from merge_engine.spec.parameters import parameters_data, read_parameters
from merge_engine.spec.reading import Fields, Lenient, Refused, did_you_mean, one_of, shown, text
from merge_engine.spec.recipe_checks import NO_LAYERS, recipe_problems
from merge_engine.spec.recipe_types import InputModel, OutputModule, OutputSlice, Recipe, SliceSource
from merge_engine.spec.tokenizer import TokenizerRecipe, read_tokenizer, tokenizer_data
from merge_engine.spec.values import Value

__all__ = [
    "DTYPES",
    "InputModel",
    "OutputModule",
    "OutputSlice",
    "Recipe",
    "SliceSource",
    "parse_recipe",
    "recipe_data",
]

DTYPES = ("bfloat16", "float16", "float32", "float64")


def recipe_data(recipe: Recipe) -> dict[str, object]:
    """The recipe as plain YAML data; ``parse_recipe(recipe_data(recipe)) == recipe``."""
    modules = recipe.modules
    return _given(
        name=recipe.name,
        merge_method=recipe.merge_method,
        base_model=recipe.base_model,
        models=_models_data(recipe.models),
        slices=_slices_data(recipe.slices),
        modules=None if modules is None else {name: _module_data(part) for name, part in modules.items()},
        parameters=parameters_data(recipe.parameters) or None,
        dtype=recipe.dtype,
        out_dtype=recipe.out_dtype,
        tokenizer_source=recipe.tokenizer_source,
        tokenizer=None if recipe.tokenizer is None else tokenizer_data(recipe.tokenizer),
        chat_template=recipe.chat_template,
    )


def _given(**entries: object) -> dict[str, object]:
    return {key: value for key, value in entries.items() if value is not None}


def _module_data(part: OutputModule) -> dict[str, object]:
    return _given(
        models=_models_data(part.models),
        slices=_slices_data(part.slices),
        parameters=parameters_data(part.parameters) or None,
    )


def _models_data(models: tuple[InputModel, ...] | None) -> list[object] | None:
    if models is None:
        return None
    return [
        _given(model=entry.model, parameters=parameters_data(entry.parameters) or None) for entry in models
    ]


def _slices_data(slices: tuple[OutputSlice, ...] | None) -> list[object] | None:
    return None if slices is None else [_slice_data(piece) for piece in slices]


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


def parse_recipe(data: object, remarks: list[Problem] | None = None) -> Recipe:
    """The recipe in plain YAML data.

    Keys and parameters that mergekit reads past are problems, or with ``remarks`` go there (`Lenient`).

    Raises `RecipeError` with every problem found: unknown keys, wrong types, values out of the range that
    the method table allows, missing parameters, numbers of models and layer ranges that do not fit.
    """
    problems: list[Problem] = [] if remarks is None else Lenient()
    recipe = _RecipeReader(problems).read(data)
    if remarks is not None and isinstance(problems, Lenient):
        remarks += problems.remarks
    if problems:
        raise RecipeError(problems)
    return recipe


def model_reference(value: object) -> str:
    """A model as a text, ``path@revision+lora``; older configs write its parts as a mapping."""
    if not isinstance(value, Mapping):
        return text(value)
    known = {"model", "lora", "override_architecture"}
    unknown = [key for key in value if key not in known]
    if unknown:
        raise Refused(f"unknown key {unknown[0]!r}", did_you_mean(str(unknown[0]), sorted(known)))
    adapter = value.get("lora")
    return _path(value.get("model")) + ("" if adapter is None else f"+{_path(adapter)}")


def _path(value: object) -> str:
    if not isinstance(value, Mapping):
        return text(value)
    revision = value.get("revision")
    return text(value.get("path")) + ("" if revision is None else f"@{text(revision)}")


def _dtype(value: object) -> str:
    known = value.removeprefix("torch.") if isinstance(value, str) else value
    return one_of(*DTYPES)(known)


class _RecipeReader:
    """Reads one recipe; everything wrong goes to ``problems`` under its path of keys."""

    def __init__(self, problems: list[Problem]) -> None:
        self._problems = problems
        self._method: Method | None = None

    def read(self, data: object) -> Recipe:
        top = Fields(data, "", self._problems)
        merge_method = top.need("merge_method", one_of(*METHODS), "")
        self._method = METHODS.get(merge_method)
        recipe = Recipe(
            merge_method=merge_method,
            base_model=top.get("base_model", model_reference, None),
            models=self._models(top),
            slices=self._slices(top),
            modules=self._modules(top),
            parameters=self._parameters(top, of_model=False),
            dtype=top.get("dtype", _dtype, None),
            out_dtype=top.get("out_dtype", _dtype, None),
            tokenizer_source=top.get("tokenizer_source", model_reference, None),
            tokenizer=self._tokenizer(top),
            chat_template=top.get("chat_template", text, None),
            name=top.get("name", text, None),
        )
        top.finish()
        self._check_one_of(top, "models", "slices", "modules")
        if self._method is not None:
            self._problems += recipe_problems(recipe, self._method)
        return recipe

    def _tokenizer(self, top: Fields) -> TokenizerRecipe | None:
        if not top.has("tokenizer"):
            top.raw("tokenizer")
            return None
        if top.has("tokenizer_source"):
            top.refuse("tokenizer", "given beside tokenizer_source", "keep one of them")
        return read_tokenizer(top.fields("tokenizer"), self._problems)

    def _check_one_of(self, fields: Fields, *keys: str) -> None:
        given = [key for key in keys if fields.has(key)]
        if len(given) != 1:
            wanted = " or ".join((", ".join(keys[:-1]), keys[-1]))
            fields.refuse("", f"expected {wanted}, found {' and '.join(given) or 'none of them'}")

    def _modules(self, top: Fields) -> dict[str, OutputModule] | None:
        if not top.has("modules"):
            return None
        modules = {}
        named = top.fields("modules")
        for name, entry in named.items():
            fields = Fields(entry, named.path(name), self._problems)
            modules[name] = OutputModule(
                models=self._models(fields),
                slices=self._slices(fields),
                parameters=self._parameters(fields, of_model=False),
            )
            fields.finish()
            self._check_one_of(fields, "models", "slices")
        named.finish()
        return modules

    def _models(self, level: Fields) -> tuple[InputModel, ...] | None:
        if not level.has("models"):
            return None
        models = []
        for where, entry in level.entries("models"):
            fields = Fields(entry, where, self._problems)
            models.append(
                InputModel(
                    model=fields.need("model", model_reference, ""),
                    parameters=self._parameters(fields, of_model=True),
                )
            )
            fields.finish()
        return tuple(models)

    def _slices(self, level: Fields) -> tuple[OutputSlice, ...] | None:
        if not level.has("slices"):
            return None
        slices = []
        for where, entry in level.entries("slices"):
            fields = Fields(entry, where, self._problems)
            fields.raw("residual_weight")  # read by mergekit, without any effect
            slices.append(
                OutputSlice(
                    sources=self._sources(fields),
                    base_model=fields.get("base_model", model_reference, None),
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
                    model=fields.need("model", model_reference, ""),
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
            if whole and 0 <= start <= end:
                return start, end
        found = "missing" if data is None else f"found {shown(data)}"
        what = f"expected [first, end] with 0 <= first <= end, {found}"
        fields.refuse("layer_range", what, "the end is not included: [0, 8] takes layers 0 to 7")
        return NO_LAYERS

    def _parameters(self, fields: Fields, *, of_model: bool) -> dict[str, Value]:
        level = fields.fields("parameters")
        return read_parameters(level, self._method, of_model=of_model, problems=self._problems)
