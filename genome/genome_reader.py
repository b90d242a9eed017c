"""Reading the ``genome`` part of a search file: models, method, and what may vary within which bounds."""

from __future__ import annotations

from collections.abc import Mapping

from genome.search_file import GenomeSpec
from genome.searched import chooses_pairs, is_blend, is_pair_method, searched_parameters
from merge_engine.errors import Problem
from merge_engine.spec import DTYPES, METHODS, Method, Parameter
from merge_engine.spec.parameters import scalar_reader
from merge_engine.spec.reading import (
    Fields,
    Reader,
    Refused,
    did_you_mean,
    flag,
    integer,
    one_of,
    shown,
    text,
)

# Where the search file leaves `normalize` open, mergekit-evolve turns it on for these; a plain merge of
# dare_ties has it off.
_NORMALIZED = ("linear", "ties", "dare_ties")


def read_genome(top: Fields, problems: list[Problem]) -> GenomeSpec:
    """The ``genome`` of a search file; what is wrong goes to ``problems`` and leaves stand-ins."""
    if not top.has("genome"):
        top.refuse("genome", "missing", "it names the models and the merge_method")
        top = Fields({}, "", [])
    return _GenomeReader(top.fields("genome"), problems).read()


class _GenomeReader:
    def __init__(self, fields: Fields, problems: list[Problem]) -> None:
        self._fields = fields
        self._problems = problems

    def read(self) -> GenomeSpec:
        fields = self._fields
        models = self._texts("models")
        method = METHODS.get(fields.need("merge_method", one_of(*METHODS), ""))
        allow_negative = fields.get("allow_negative_weights", flag, False)
        bounds = self._bounds(method, models, allow_negative)
        genome = GenomeSpec(
            models=models,
            merge_method=method.name if method else "",
            base_model=fields.get("base_model", text, None),
            tokenizer_source=fields.get("tokenizer_source", text, None),
            layer_granularity=fields.get("layer_granularity", integer(low=0), 0),
            normalize=self._normalize(method, bounds),
            allow_negative_weights=allow_negative,
            smooth=fields.get("smooth", flag, False),
            filters=self._texts("filters"),
            bounds=bounds,
            dtype=fields.get("dtype", one_of(*DTYPES), None),
        )
        fields.finish()
        self._check_filters(genome.filters)
        if genome.smooth and not genome.layer_granularity:
            what = "has no effect: all layers share one parameter set"
            fields.refuse("smooth", what, "set layer_granularity, or drop smooth")
        if method is not None:
            self._check_models(genome, method)
        return genome

    def _texts(self, key: str) -> tuple[str, ...]:
        """The list of distinct texts at ``key``; a refused one leaves a stand-in: the count stays right."""
        found: list[str] = []
        for where, data in self._fields.entries(key):
            entry = repr(data)
            try:
                entry = text(data)
            except Refused as refused:
                self._problems.append(Problem(where, refused.what, refused.remedy))
            if entry in found:
                self._problems.append(Problem(where, f"{entry!r} is already in the list", "list each once"))
            found.append(entry)
        return tuple(found)

    def _normalize(self, method: Method | None, bounds: Mapping[str, tuple[float, float]]) -> bool | None:
        given = self._fields.get("normalize", flag, None)
        if "normalize" in bounds:
            if given is not None:
                self._fields.refuse("normalize", "is searched: bounds names it", "drop one of the two")
            return None
        if method is None or method.parameter("normalize"):
            return given if given is not None or method is None else method.name in _NORMALIZED
        if given is not None:
            self._fields.refuse("normalize", f"{method.name} has no such parameter", "drop it")
        return None

    def _bounds(
        self, method: Method | None, models: tuple[str, ...], allow_negative: bool
    ) -> Mapping[str, tuple[float, float]]:
        """The default bounds of every parameter that is searched, overridden by what the file gives."""
        fields = self._fields.fields("bounds")
        if method is None:
            fields.items()
            return {}
        parameters = {parameter.name: parameter for parameter in searched_parameters(method, models)}
        bounds = _default_bounds(parameters, allow_negative)
        for name, _ in fields.items():
            if name in parameters:
                bounds[name] = fields.get(name, _interval(parameters[name]), (0.0, 1.0))
            else:
                what = f"{method.name} has no parameter {name!r} that a search could vary"
                fields.refuse(name, what, did_you_mean(name, parameters))
        fields.finish()
        for name, parameter in parameters.items():
            if parameter.default is None and name not in bounds:
                fields.refuse(name, "missing", f"{method.name} has no default for it: give its bounds")
        if not bounds:
            known = ", ".join(parameters) or "it has no parameters"
            remedy = f"give bounds of what to vary: {known}" if parameters else known
            self._fields.refuse("merge_method", f"{method.name} has nothing that a search varies", remedy)
        if allow_negative and "weight" not in bounds:
            self._fields.refuse("allow_negative_weights", f"{method.name} has no weights", "drop it")
        return bounds

    def _check_filters(self, filters: tuple[str, ...]) -> None:
        for i, later in enumerate(filters):
            earlier = next((name for name in filters[:i] if name in later and name != later), None)
            if later == "*":
                self._fields.refuse(
                    f"filters[{i}]", "'*' matches everything", "the rest has a set without it"
                )
            elif earlier is not None:
                what = f"{later!r} never applies: {earlier!r} stands before it and matches the same names"
                self._fields.refuse(f"filters[{i}]", what, f"put {later!r} first")

    def _check_models(self, genome: GenomeSpec, method: Method) -> None:
        fields, name = self._fields, method.name
        least, most = method.min_models, method.max_models
        if not method.needs_base and most is None:
            least = 2  # one model has nothing to be merged with
        if is_pair_method(method):
            least, most = 2, None if is_blend(method) else 2
        elif method.needs_base and genome.base_model is None:
            fields.refuse("base_model", "missing", f"{name} merges differences from a base model")
        elif method.takes_base and genome.base_model in genome.models:
            what = f"the base model stands in the list too: {name} gives it no weight"
            fields.refuse(f"models[{genome.models.index(genome.base_model)}]", what, "list it once")
        if len(genome.models) < least or (most is not None and len(genome.models) > most):
            allowed = f"exactly {least}" if least == most else f"at least {least}"
            fields.refuse("models", f"{name} needs {allowed} model(s), found {len(genome.models)}")
        if genome.smooth and chooses_pairs(method, genome.models):
            what = f"{name} of more than two models takes other pairs in other layers: no gradient joins them"
            fields.refuse("smooth", what, "name two models, or drop smooth")


def _default_bounds(
    parameters: Mapping[str, Parameter], allow_negative: bool
) -> dict[str, tuple[float, float]]:
    bounds = {}
    for name, parameter in parameters.items():
        low, high = parameter.search_low, parameter.search_high
        if low is not None and high is not None:
            whole = parameter.kind == "integer"
            least = -high if allow_negative and name == "weight" else low
            bounds[name] = (int(least), int(high)) if whole else (least, high)
    return bounds


def _interval(parameter: Parameter) -> Reader[tuple[float, float]]:
    """The reader of ``[low, high]`` within what ``parameter`` allows; of a flag both ends are its values."""
    end = scalar_reader(parameter)

    def read(value: object) -> tuple[float, float]:
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise Refused(f"expected [low, high], found {shown(value)}")
        low, high = end(value[0]), end(value[1])
        if low >= high:
            raise Refused(f"low must be below high, found {shown(value)}")
        return (float(low), float(high)) if parameter.kind == "real" else (low, high)

    return read
