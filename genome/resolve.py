"""The structure of one candidate: a template's plain data once every structural hole is settled.

What is left open are the values of parameters (`Written`), which `genome.skeleton` fills in. Where some of
them change from one run of layers to the next, models become slices, and slices are cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from genome.errors import RefusedRecipe
from genome.facts import ModelFacts
from genome.holes import Choose, Node, Ref, Search
from genome.template import Template
from genome.values import Layers, Leaf, Pool, leaves, varies_by_layer
from genome.variables import Column
from merge_engine.errors import Problem
from merge_engine.spec import METHODS, Method

Data: TypeAlias = "dict[str, Any]"

_NOWHERE = Layers(start=0, end=1, whole_start=0, whole_end=1)


def settle(template: Template, columns: Mapping[str, Column], structure: Mapping[str, Node]) -> Data:
    """The template's plain data with ``structure`` for its structural holes, and leaves for all others."""

    def plain(node: Node) -> Any:
        target = template.holes[node.name] if isinstance(node, Ref) else node
        if isinstance(target, Search | Choose):
            inside = target.key in structure
            return plain(structure[target.key]) if inside else Leaf(column=columns[target.key])
        if isinstance(target, Mapping):
            return {key: plain(value) for key, value in target.items()}
        if isinstance(target, tuple):
            return [plain(entry) for entry in target]
        return target

    data: Data = plain(template.tree)
    method = METHODS.get(str(data.get("merge_method")))
    others = [METHODS[name] for name in template.methods if name in METHODS]
    return data if method is None or len(others) < 2 else _fitting(data, method, others)


def _fitting(data: Data, method: Method, others: Sequence[Method]) -> Data:
    """The recipe without what ``method`` does not have and ``others`` that it is chosen from do: parameters,
    and a base model that it would merge like any other.
    """
    known = {parameter.name for other in others for parameter in other.parameters}
    of_merge = known - {parameter.name for parameter in method.parameters}
    of_model = known - {parameter.name for parameter in method.parameters if parameter.scope == "model"}
    fitting: Data = _without(data, of_merge, of_model)
    if not method.takes_base and data.get("base_model") not in _listed(data.get("models")):
        fitting.pop("base_model", None)
    return fitting


def _without(part: Any, of_merge: set[str], of_model: set[str]) -> Any:
    """A part of a recipe without these parameters of the merge, and of single models."""
    if isinstance(part, list):
        return [_without(entry, of_merge, of_model) for entry in part]
    if not isinstance(part, dict):
        return part
    left_out = of_model if "model" in part else of_merge
    parts = {}
    for key, value in part.items():
        if key == "parameters" and isinstance(value, dict):
            parts[key] = {name: given for name, given in value.items() if name not in left_out}
        else:
            parts[key] = _without(value, of_merge, of_model)
    return parts


def _listed(models: object) -> list[str]:
    return [entry["model"] for entry in _mappings(models) if isinstance(entry.get("model"), str)]


def _mappings(entries: object) -> list[Data]:
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


class Cutter:
    """Writes the values of parameters, cutting models and slices where these change."""

    def __init__(self, pool: Pool, facts: Mapping[str, ModelFacts]) -> None:
        self._pool = pool
        self._facts = facts

    def cut(self, data: Data) -> Data:
        """The recipe's data with `Written` values instead of leaves."""
        if "modules" in data:
            return self._modules(data)
        models, slices = data.get("models"), data.get("slices")
        if slices is None and isinstance(models, list) and _steps(data):
            slices = [self._whole_slice(data, models)]
            data = {key: value for key, value in data.items() if key != "models"}
        if isinstance(slices, list):
            return self._slices(data, slices)
        everywhere = self._all_layers(models)
        found = data | {"parameters": self._written(data.get("parameters"), everywhere)}
        if isinstance(models, list):
            found["models"] = [self._with_parameters(entry, everywhere) for entry in models]
        return found

    def _modules(self, data: Data) -> Data:
        """Modules have depths of their own, which the template does not know."""
        if any(len(leaf.column.indices) > 1 for leaf in _all_leaves(data)):
            raise RefusedRecipe([Problem("modules", "every: does not go with modules", "drop it")])
        return {key: self._anywhere(value) for key, value in data.items()}

    def _anywhere(self, part: Any) -> Any:
        if isinstance(part, list):
            return [self._anywhere(entry) for entry in part]
        if not isinstance(part, dict):
            return part
        found = {key: self._anywhere(value) for key, value in part.items() if key != "parameters"}
        return self._with_parameters(found | {"parameters": part.get("parameters")}, _NOWHERE)

    def _slices(self, data: Data, slices: Sequence[Any]) -> Data:
        shared = data.get("parameters")
        moved: Data = {}
        if isinstance(shared, dict) and any(len(leaf.column.indices) > 1 for leaf in _all_leaves(data)):
            moved = {name: value for name, value in shared.items() if varies_by_layer(value)}
            shared = {name: value for name, value in shared.items() if name not in moved}
        cut = [part for piece in slices for part in self._cut_slice(piece, moved)]
        return data | {"slices": cut, "parameters": self._written(shared, _NOWHERE)}

    def _cut_slice(self, piece: Any, moved: Data) -> Iterator[Any]:
        """The slice in as many parts as its values have steps."""
        found = piece.get("sources") if isinstance(piece, dict) else None
        sources: list[Any] = found if isinstance(found, list) else []
        ranges = [_layer_range(source) for source in sources]
        if not ranges or None in ranges:
            yield piece if not list(_all_leaves(piece)) else _refuse_ranges()
            return
        known = [found for found in ranges if found is not None]
        own = piece.get("parameters")
        shared = moved | own if isinstance(own, dict) else own or moved
        for start, end in _parts(known, [*map(_parameters, sources), shared]):
            spans = [
                Layers(start=first + start, end=first + end, whole_start=first, whole_end=last)
                for first, last in known
            ]
            parts = [
                self._with_parameters(source | {"layer_range": [span.start, span.end]}, span)
                for source, span in zip(sources, spans, strict=True)
            ]
            yield self._with_parameters(piece | {"sources": parts, "parameters": shared}, spans[0])

    def _whole_slice(self, data: Data, models: Sequence[Any]) -> Data:
        """All layers of the models as one slice; a base model has to be listed there."""
        base, method = data.get("base_model"), METHODS.get(str(data.get("merge_method")))
        listed = list(models)
        if isinstance(base, str) and base not in _listed(models):
            apart = method is not None and method.takes_base
            listed = [{"model": base}, *listed] if apart else [*listed, {"model": base}]
        whole = self._all_layers(models)
        return {
            "sources": [
                entry | {"layer_range": [0, whole.end]} if isinstance(entry, dict) else entry
                for entry in listed
            ]
        }

    def _all_layers(self, models: object) -> Layers:
        in_parts = [entry for entry in _mappings(models) if isinstance(entry.get("model"), Mapping)]
        if in_parts:
            what = "a template names models as texts"
            raise RefusedRecipe([Problem("models", what, "write path@revision+lora")])
        depths = [self._facts[name].num_layers for name in _listed(models) if name in self._facts]
        depth = depths[0] if depths else 1
        return Layers(start=0, end=depth, whole_start=0, whole_end=depth)

    def _with_parameters(self, part: Any, layers: Layers) -> Any:
        if not isinstance(part, dict):
            return part
        written = self._written(part.get("parameters"), layers)
        rest = {key: value for key, value in part.items() if key != "parameters"}
        return rest if written is None else rest | {"parameters": written}

    def _written(self, parameters: Any, layers: Layers) -> Any:
        if not isinstance(parameters, dict):
            return parameters
        return {name: self._value(value, layers) for name, value in parameters.items()} or None

    def _value(self, value: Any, layers: Layers) -> Any:
        settled = not list(leaves(value)) and (layers.whole or not varies_by_layer(value))
        return value if settled else self._pool.written(value, layers)


def _parts(ranges: Sequence[tuple[int, int]], parameters: Sequence[Any]) -> list[tuple[int, int]]:
    """The runs, counted from the slice's first layer, in which no value steps.

    ``parameters``: of each source, whose layers are in ``ranges``, then those that the sources share.
    """
    length = min(end - start for start, end in ranges)
    cuts = {
        layer - start
        for (start, end), values in zip([*ranges, ranges[0]], parameters, strict=True)
        for leaf in _all_leaves(values)
        for layer in leaf.column.boundaries()
        if start < layer < end
    }
    ends = sorted({0, length} | {cut for cut in cuts if cut < length})
    return list(itertools.pairwise(ends)) or [(0, length)]


def _all_leaves(data: object) -> Iterator[Leaf]:
    if isinstance(data, Leaf):
        yield data
    elif isinstance(data, Mapping):
        for value in data.values():
            yield from _all_leaves(value)
    elif isinstance(data, list):
        for value in data:
            yield from _all_leaves(value)


def _steps(data: object) -> bool:
    return any(leaf.column.stepped for leaf in _all_leaves(data))


def _parameters(source: Any) -> Any:
    return source.get("parameters")


def _layer_range(source: Any) -> tuple[int, int] | None:
    found = source.get("layer_range") if isinstance(source, dict) else None
    if not isinstance(found, list) or len(found) != 2 or not all(type(end) is int for end in found):
        return None
    return (found[0], found[1]) if 0 <= found[0] <= found[1] else None


def _refuse_ranges() -> Any:
    remedy = "each is [first, end] with 0 <= first <= end"
    raise RefusedRecipe([Problem("slices", "a layer range is missing or turned around", remedy)])
