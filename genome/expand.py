"""The ``genome`` of a search file is short for a template: this is the long form."""

from __future__ import annotations

from collections.abc import Sequence

from genome.search_file import GenomeSpec
from genome.searched import is_pair_method, searched_parameters
from merge_engine.spec import METHODS, Method, Parameter


def expanded(genome: GenomeSpec) -> dict[str, object]:
    """The template, as plain data, that has the same variables in the same order.

    Not for methods that choose among pairs of models (`genome.pair_space`).
    """
    method = METHODS[genome.merge_method]
    base, inputs = _inputs(genome, method)
    searched = [p for p in searched_parameters(method, genome.models) if p.name in genome.bounds]
    own = [parameter for parameter in searched if parameter.scope == "model"]
    shared = [parameter for parameter in searched if parameter.scope == "global"]
    data: dict[str, object] = {"merge_method": method.name}
    if base is not None:
        data["base_model"] = base
    data["models"] = [
        _input(model, [] if model == base and method.takes_base else own, genome) for model in inputs
    ]
    parameters = {**_holes(shared, genome), **fixed_parameters(genome, method)}
    if parameters:
        data["parameters"] = parameters
    if genome.dtype is not None:
        data["dtype"] = genome.dtype
    source = tokenizer_source(genome, base)
    if source is not None:
        data["tokenizer_source"] = source
    return data


def fixed_parameters(genome: GenomeSpec, method: Method) -> dict[str, bool]:
    """What every recipe of the search says."""
    fixed: dict[str, bool] = {}
    if genome.normalize is not None and "normalize" not in genome.bounds:
        fixed["normalize"] = genome.normalize
    if method.parameter("int8_mask") and "int8_mask" not in genome.bounds:
        fixed["int8_mask"] = True  # as mergekit-evolve writes it; the tensors are the same
    return fixed


def tokenizer_source(genome: GenomeSpec, base_model: str | None) -> str | None:
    """``base`` means the search's base, or else its first model: named where the recipe's is another."""
    source, base = genome.tokenizer_source, genome.base_model
    if source != "base" or base_model == base is not None:
        return source
    return base or genome.models[0]


def _inputs(genome: GenomeSpec, method: Method) -> tuple[str | None, Sequence[str]]:
    """The base that a recipe names, and its models in order."""
    models, base = genome.models, genome.base_model
    if is_pair_method(method):
        first = next((model for model in models if model == base), models[0])
        return first, sorted(models, key=lambda model: model != first)
    if method.takes_base and base is not None:
        return base, (base, *models)
    # Such a method would merge its base like any other model: only a source model can be named as one.
    return base if base in models else None, models


def _input(model: str, own: Sequence[Parameter], genome: GenomeSpec) -> dict[str, object]:
    parameters = _holes(own, genome)
    return {"model": model, "parameters": parameters} if parameters else {"model": model}


def _holes(parameters: Sequence[Parameter], genome: GenomeSpec) -> dict[str, object]:
    return {parameter.name: _filtered(_hole(parameter, genome), genome) for parameter in parameters}


def _filtered(hole: dict[str, object], genome: GenomeSpec) -> object:
    """A hole for each filter and one for the rest."""
    if not genome.filters:
        return hole
    return [*({"filter": part, "value": hole} for part in genome.filters), {"value": hole}]


def _hole(parameter: Parameter, genome: GenomeSpec) -> dict[str, object]:
    low, high = genome.bounds[parameter.name]
    hole: dict[str, object] = {"search": [low, high]}
    if parameter.kind == "bool":
        hole = {"choose": [False, True], "init": bool(parameter.default)}
    elif parameter.kind == "integer":
        hole = {"search": [int(low), int(high)], "step": 1}
    if genome.layer_granularity:
        hole["every"] = genome.layer_granularity
    if genome.smooth and parameter.kind == "real":
        hole["smooth"] = True
    return hole
