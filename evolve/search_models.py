"""The models that a search file names: which they are, their headers, and whether they fit together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from genome.facts import ModelFacts
from genome.search_file import GenomeSpec, SearchFile
from genome.slice_layout import LayoutSpec
from genome.space import Space
from merge_engine.checkpoint_header import CheckpointHeader
from merge_engine.config_layers import shown
from merge_engine.errors import CheckpointError, PlanError, Problem
from merge_engine.layers import layer_names
from merge_engine.merge_dtype import DTYPE_NAMES
from merge_engine.plan import make_plan
from merge_engine.sources import open_source
from merge_engine.spec import InputModel, Recipe
from merge_engine.stacking import stacking_problems

_MODEL_KEYS = ("model", "base_model")
_SIZES_BY_LAYER = (
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "head_dim",
)  # lists in some configs
_SIZES = ("hidden_size", "n_embd", "vocab_size", *_SIZES_BY_LAYER)


def named_models(data: object) -> list[tuple[str, str]]:
    """Every model that a search file (plain data) names, with its path of keys, even if the rest is wrong."""
    top = data if isinstance(data, Mapping) else {}
    found: list[tuple[str, object]] = []
    for form in ("genome", "layout"):
        fields = top.get(form)
        if isinstance(fields, Mapping):
            models = fields.get("models")
            found += [
                (f"{form}.models[{i}]", model)
                for i, model in enumerate(models if isinstance(models, list) else [])
            ]
            found.append((f"{form}.base_model", fields.get("base_model")))
    found += _in_template(top.get("template"), "template")
    return [(where, model) for where, model in found if isinstance(model, str) and model]


def _in_template(data: object, where: str) -> Iterator[tuple[str, object]]:
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _texts(value, f"{where}.{key}") if key in _MODEL_KEYS else ()
            yield from _in_template(value, f"{where}.{key}")
    elif isinstance(data, list):
        for i, entry in enumerate(data):
            yield from _in_template(entry, f"{where}[{i}]")


def _texts(value: object, where: str) -> Iterator[tuple[str, object]]:
    """A text, or each of those that it is chosen from."""
    options = value.get("choose") if isinstance(value, Mapping) else None
    if isinstance(options, list):
        for i, option in enumerate(options):
            yield from _texts(option, f"{where}.choose[{i}]")
    else:
        yield where, value


def as_named(reference: str) -> str:
    """Where a model is looked for: under its own name."""
    return reference


def open_models(
    named: Sequence[tuple[str, str]], problems: list[Problem], locate: Callable[[str], str] = as_named
) -> dict[str, CheckpointHeader]:
    """The headers of all models that can be opened, by reference; ``locate`` says where one is looked for.

    Hub models are fetched, and adapters merged into their models, only if nothing is wrong yet.
    """
    headers: dict[str, CheckpointHeader] = {}
    for where, reference in named:
        if reference in headers:
            continue
        place = locate(reference)
        if problems and not Path(place).exists() and ("+" in place or _may_be_on_hub(place)):
            continue
        try:
            headers[reference] = open_source(place)
        except CheckpointError as error:
            problems.append(Problem(where, str(error), "name a Hugging Face model folder or a hub id"))
    return headers


def _may_be_on_hub(reference: str) -> bool:
    """Whether it is more likely a hub id than the path of a folder that is not there."""
    parent, _, _ = reference.rpartition("/")
    return (
        not reference.startswith(("/", ".", "~"))
        and "/" not in parent
        and (parent == "" or not Path(parent).is_dir())
    )


def fit_problems(
    search_file: SearchFile, headers: Mapping[str, CheckpointHeader], allow_crimes: bool
) -> Iterator[Problem]:
    """Whether the models of a ``genome`` can be merged tensor by tensor: layers, names, shapes, vocabularies.
    Of a ``layout``, whether their layers can stand in one stack.

    Which models of a template have to fit depends on the candidate (`start_problems`).
    """
    genome = search_file.genome
    if isinstance(genome, LayoutSpec):
        yield from stacking_problems({model: headers[model] for model in genome.models}, "layout.models")
    if not isinstance(genome, GenomeSpec):
        return
    source = genome.tokenizer_source
    everything = Recipe(
        merge_method="linear",
        models=tuple(InputModel(model=reference, parameters={"weight": 1.0}) for reference in headers),
        tokenizer_source=genome.pattern if source == "base" else source,
    )
    yield from _plan_problems(everything, headers, "genome.models", allow_crimes)


def start_problems(
    search_file: SearchFile, space: Space, headers: Mapping[str, CheckpointHeader], allow_crimes: bool
) -> Iterator[Problem]:
    """Whether the recipe at the start of a search can be merged."""
    if not isinstance(search_file.genome, GenomeSpec):
        yield from _plan_problems(
            space.decode(space.start), headers, "at the start of the search", allow_crimes
        )


def size_problems(search_file: SearchFile, headers: Mapping[str, CheckpointHeader]) -> Iterator[Problem]:
    """Sizes that cannot be right in the config that candidates have: memory and time are reckoned from them,
    and no model can be made of them.
    """
    header = headers.get(search_file.genome.pattern)
    if header is None:
        return
    config = header.config.get("text_config") or header.config
    largest = max((length for info in header.tensors.values() for length in info.shape), default=0)
    for key in _SIZES:
        value = config.get(key)
        may_vary = key in _SIZES_BY_LAYER
        if key not in config or (value is None and may_vary):
            continue
        entries = value if isinstance(value, list) and may_vary else [value]
        if not all(type(entry) is int and 0 < entry <= largest for entry in entries):
            remedy = f"allowed is a whole number up to {largest}, the largest dimension of the weights"
            yield Problem(str(header.folder / "config.json"), f"{key} is {shown(value)}", remedy)


def _plan_problems(
    recipe: Recipe, headers: Mapping[str, CheckpointHeader], where: str, allow_crimes: bool
) -> Iterator[Problem]:
    try:
        make_plan(recipe, lambda reference: headers[reference], allow_crimes=allow_crimes)
    except PlanError as error:
        for problem in error.problems:
            yield Problem(where, f"{problem.where}: {problem.what}", problem.remedy)


def facts_of(headers: Mapping[str, CheckpointHeader], problems: list[Problem]) -> dict[str, ModelFacts]:
    """What the genome has to know about the models, by reference; what is wrong with them goes to
    ``problems``.
    """
    found: dict[str, ModelFacts] = {}
    for reference, header in headers.items():
        try:
            found[reference] = model_facts(header)
        except CheckpointError as error:
            problems.append(Problem(reference, str(error), "leave it out, or mend its config.json"))
    return found


def model_facts(header: CheckpointHeader) -> ModelFacts:
    """What the genome has to know about a model. Raises `CheckpointError` where it has no layers."""
    layers = layer_names(header).layers
    vocabulary = header.config.get("vocab_size")
    return ModelFacts(
        num_layers=len(layers),
        dtype=model_dtype(header),
        model_type=str(header.config.get("model_type", "")),
        layer_tensors=layers[0],
        vocab_size=vocabulary if isinstance(vocabulary, int) else None,
    )


def model_dtype(header: CheckpointHeader) -> str:
    """The dtype of most of a model's elements, as recipes name it."""
    elements: dict[str, int] = {}
    for info in header.tensors.values():
        name = DTYPE_NAMES.get(info.dtype)
        if name is not None:
            elements[name] = elements.get(name, 0) + info.elements
    return max(elements, key=lambda name: elements[name], default="bfloat16")
