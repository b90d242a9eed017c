"""Search files made for tests."""

from __future__ import annotations

from genome import ModelFacts, SearchFile, Space, build_space, parse_search_file
from genome.template_space import TemplateSpace
from merge_engine.spec import METHODS, Method, Parameter, dump_yaml

LAYERS = 7  # no granularity below divides it


def search_file(**genome: object) -> SearchFile:
    """A search over models a, b, c (with the base root where the method needs one), changed by ``genome``."""
    data: dict[str, object] = {"models": ["a", "b", "c"], "merge_method": "ties", **genome}
    method = METHODS[str(data["merge_method"])]
    if method.needs_base and method.max_models is None:
        data.setdefault("base_model", "root")
    return parse_search_file(dump_yaml({"genome": data, "tasks": ["task"]}))


def facts(*references: str, num_layers: int = LAYERS) -> dict[str, ModelFacts]:
    """Models that are alike."""
    one = ModelFacts(
        num_layers=num_layers,
        dtype="bfloat16",
        model_type="llama",
        layer_tensors=("mlp.up_proj.weight", "self_attn.q_proj.weight"),
    )
    return dict.fromkeys(references, one)


def space(*, num_layers: int = LAYERS, **genome: object) -> Space:
    """The space of `search_file`."""
    made = search_file(**genome)
    return build_space(made, facts(*made.genome.model_references(), num_layers=num_layers))


def template_space(template: dict[str, object], *, num_layers: int = LAYERS) -> TemplateSpace:
    """The space of a search file with this template."""
    made = parse_search_file(dump_yaml({"template": template, "tasks": ["task"]}))
    built = build_space(made, facts(*made.genome.model_references(), num_layers=num_layers))
    assert isinstance(built, TemplateSpace)
    return built


def every_parameter(method: Method) -> dict[str, list[object]]:
    """Bounds that let a search vary every parameter of a method."""
    return {parameter.name: _bounds(parameter) for parameter in method.parameters}


def _bounds(parameter: Parameter) -> list[object]:
    if parameter.kind == "bool":
        return [False, True]
    if parameter.kind == "integer":
        low = int(parameter.low or 1)
        return [low, low + 3]
    if parameter.search_low is not None and parameter.search_high is not None:
        return [parameter.search_low, parameter.search_high]
    default = 1.0 if parameter.default is None else float(parameter.default)
    return [0.5 * default, default] if default else [0.1, 0.2]


def method_models(method: Method) -> list[str]:
    """As many models as a search over this method takes, a, b and c where it takes any number."""
    if method.needs_base and method.max_models == 1:
        return ["a", "b"]
    return ["a", "b", "c"][: method.max_models or 3]


def every_method_space(name: str, granularity: int) -> Space:
    """A space in which every parameter of a method varies."""
    method = METHODS[name]
    return space(
        merge_method=name,
        models=method_models(method),
        layer_granularity=granularity,
        bounds=every_parameter(method),
    )
