"""Reading the ``parameters`` of a recipe against the method table, and writing them back as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping

from merge_engine.errors import Problem
from merge_engine.spec.methods import METHODS, Method, Parameter
from merge_engine.spec.reading import Fields, Lenient, Reader, Refused, flag, integer, real, shown, text
from merge_engine.spec.values import Filtered, Gradient, Scalar, Value

_FLAGS = {"true": True, "yes": True, "on": True, "1": True}
_FLAGS |= {"false": False, "no": False, "off": False, "0": False}
_WITHOUT_EFFECT = ("embed_slerp",)  # mergekit 0.1.5 takes it with every method, and it changes no tensor


def read_parameters(
    fields: Fields, method: Method | None, *, of_model: bool, problems: list[Problem]
) -> dict[str, Value]:
    """Every parameter of one level.

    ``of_model``: the level belongs to one model, so parameters of the whole merge have no effect there.
    With ``method`` None (unknown) names and ranges cannot be checked and nothing is read. A refused value
    leaves a stand-in, so that it is not reported as missing too.
    """
    found: dict[str, Value] = {}
    for name, data in fields.items():
        parameter = method.parameter(name) if method else None
        if method is None or data is None or name in _WITHOUT_EFFECT:
            continue
        if parameter is None:
            known = [parameter.name for parameter in method.parameters]
            elsewhere = any(other.parameter(name) for other in METHODS.values())
            fields.unknown(name, f"{method.name} has no parameter {name!r}", known, elsewhere=elsewhere)
        elif of_model and parameter.scope == "global" and isinstance(problems, Lenient):
            remedy = "move it up to the slice or the merge"
            problems.remarks.append(Problem(fields.path(name), "has no effect on a single model", remedy))
        elif of_model and parameter.scope == "global":
            fields.refuse(name, "has no effect on a single model", "move it up to the slice or the merge")
        else:
            value = _read_value(data, fields.path(name), scalar_reader(parameter), problems)
            found[name] = 0.0 if value is None else value
    fields.finish()
    return found


def parameters_data(parameters: Mapping[str, Value]) -> dict[str, object]:
    """The plain data that `read_parameters` reads back to the same values."""
    return {name: value_data(value) for name, value in parameters.items()}


def value_data(value: Value) -> object:
    """Plain data of one value."""
    if not isinstance(value, tuple):
        return value
    return [_filtered_data(entry) if isinstance(entry, Filtered) else entry for entry in value]


def _filtered_data(entry: Filtered) -> dict[str, object]:
    value = value_data(entry.value) if isinstance(entry.value, tuple) else entry.value
    return {"value": value} if entry.filter is None else {"filter": entry.filter, "value": value}


def scalar_reader(parameter: Parameter) -> Reader[Scalar]:
    """The reader of one scalar of ``parameter``; what mergekit takes for a bool is one here too."""
    if parameter.kind == "integer":
        most = None if parameter.high is None else int(parameter.high)
        return integer(low=int(parameter.low or 0), high=most)
    if parameter.kind == "real":
        low = -math.inf if parameter.low is None else parameter.low
        high = math.inf if parameter.high is None else parameter.high
        number = real(low=low, high=high, low_open=parameter.low_open)
        return lambda value: number(_unquoted(value))

    def read(value: object) -> Scalar:
        if isinstance(value, str) and value.lower() in _FLAGS:
            return _FLAGS[value.lower()]
        return value if isinstance(value, int | float) and value in (0, 1) else flag(value)

    return read


def _unquoted(value: object) -> object:
    """A number written in quotes counts as one, as in mergekit."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _read_value(data: object, where: str, read: Reader[Scalar], problems: list[Problem]) -> Value | None:
    if isinstance(data, Mapping):
        data = [data]
    if isinstance(data, list | tuple) and any(isinstance(entry, Mapping) for entry in data):
        entries = [_read_filtered(entry, f"{where}[{i}]", read, problems) for i, entry in enumerate(data)]
        return tuple(entry for entry in entries if entry is not None) or None
    return _read_plain(data, where, read, problems)


def _read_filtered(
    data: object, where: str, read: Reader[Scalar], problems: list[Problem]
) -> Filtered | None:
    fields = Fields(data, where, problems)
    name_part = fields.get("filter", text, None)
    if isinstance(data, Mapping) and not fields.has("value"):
        fields.refuse("value", "missing", "each entry needs a value, and may have a filter")
    raw = fields.raw("value")
    fields.finish()
    value = None if raw is None else _read_plain(raw, fields.path("value"), read, problems)
    return None if value is None else Filtered(filter=name_part, value=value)


def _read_plain(
    data: object, where: str, read: Reader[Scalar], problems: list[Problem]
) -> Scalar | Gradient | None:
    if not isinstance(data, list | tuple):
        return _read_scalar(data, where, read, problems)
    if not data:
        problems.append(Problem(where, f"expected at least one number, found {shown(data)}"))
        return None
    nodes = [_read_scalar(entry, f"{where}[{i}]", read, problems) for i, entry in enumerate(data)]
    return tuple(node for node in nodes if node is not None) or None


def _read_scalar(data: object, where: str, read: Reader[Scalar], problems: list[Problem]) -> Scalar | None:
    try:
        return read(data)
    except Refused as refused:
        problems.append(Problem(where, refused.what, refused.remedy))
        return None
