"""A recipe's parameters laid out over the layers of the merged model, ready to be drawn as heatmaps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merge_engine.spec.recipe import Recipe
from merge_engine.spec.values import Filtered

REST = "everything else"
ALL_MODELS = "all models"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One parameter under one filter (empty where the recipe has no filters for it).

    ``values`` has the shape (models, layers); NaN where the recipe does not set the parameter.
    """

    parameter: str
    filter: str
    models: tuple[str, ...]
    values: NDArray[np.float64]

    @property
    def title(self) -> str:
        return f"{self.parameter} · {self.filter}" if self.filter else self.parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setting:
    """A value of one parameter for one model over a run of output layers."""

    parameter: str
    filter: str
    model: str
    start: int
    values: NDArray[np.float64]  # shape (layers of the run,)


def panels(recipe: Recipe) -> tuple[Panel, ...]:
    """Every numeric parameter that the recipe sets, in the recipe's order.

    A recipe over whole models does not say how many layers they have: a plain number takes one column, a
    gradient one column for each of its nodes.
    """
    settings = list(_settings(recipe))
    layers = max((setting.start + len(setting.values) for setting in settings), default=0)
    keys = dict.fromkeys((setting.parameter, setting.filter) for setting in settings)
    return tuple(
        _panel(parameter, name, [s for s in settings if (s.parameter, s.filter) == (parameter, name)], layers)
        for parameter, name in keys
    )


def _panel(parameter: str, name: str, settings: list[_Setting], layers: int) -> Panel:
    models = tuple(dict.fromkeys(setting.model for setting in settings))
    values = np.full((len(models), layers), np.nan)
    for setting in settings:
        row = models.index(setting.model)
        values[row, setting.start : setting.start + len(setting.values)] = setting.values
    return Panel(parameter=parameter, filter=name, models=models, values=values)


def _settings(recipe: Recipe) -> Iterator[_Setting]:
    if recipe.slices is None:
        owners = [(entry.model, entry.parameters) for entry in recipe.models or ()]
        owners.append((ALL_MODELS, recipe.parameters))
        width = max((_nodes(value) for _, parameters in owners for value in parameters.values()), default=1)
        for model, parameters in owners:
            yield from _spread(model, parameters, 0, width)
        return
    start = 0
    for piece in recipe.slices:
        width = max((source.layer_range[1] - source.layer_range[0] for source in piece.sources), default=0)
        for source in piece.sources:
            yield from _spread(source.model, source.parameters, start, width)
        yield from _spread(ALL_MODELS, {**recipe.parameters, **piece.parameters}, start, width)
        start += width


def _spread(model: str, parameters: Mapping[str, Any], start: int, width: int) -> Iterator[_Setting]:
    for parameter, value in parameters.items():
        for name, part in _by_filter(value):
            gradient = _gradient(part)
            if gradient is not None:
                values = np.interp(np.linspace(0, 1, width), np.linspace(0, 1, len(gradient)), gradient)
                yield _Setting(parameter=parameter, filter=name, model=model, start=start, values=values)


def _by_filter(value: Any) -> list[tuple[str, Any]]:
    """A conditional value as (filter, value) pairs; any other value alone, without filter."""
    if isinstance(value, tuple) and any(isinstance(part, Filtered) for part in value):
        return [(part.filter or REST, part.value) for part in value]
    return [("", value)]


def _gradient(value: Any) -> list[float] | None:
    """A number or list of numbers as gradient nodes; None for what no heatmap can show, such as switches."""
    nodes = value if isinstance(value, tuple) else (value,)
    if not nodes or any(isinstance(node, bool) or not isinstance(node, int | float) for node in nodes):
        return None
    return [float(node) for node in nodes]


def _nodes(value: Any) -> int:
    return max((len(_gradient(part) or ()) for _, part in _by_filter(value)), default=0)
