"""A resident model that takes the tensors it is given as its own, at any depth: nothing is copied.

For candidates that put existing layers together in another order: each layer is resident once, and may stand
in a model several times.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fitness.errors import ModelError
from fitness.layer_stack import LayerStack
from fitness.weight_names import WeightNames


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a tensor stands in a module, by its name there, and the shape it must have."""

    module: Any
    name: str
    shape: tuple[int, ...]

    def put(self, tensor: Tensor) -> None:
        if self.name in self.module._parameters:
            self.module._parameters[self.name] = torch.nn.Parameter(tensor, requires_grad=False)
        else:
            self.module._buffers[self.name] = tensor


_Places = Mapping[str, tuple[_Place, ...]]  # by checkpoint name; several where the model ties them


class Rewiring:
    """Where the tensors of a model go, for any number of layers. The model loses those that it has.

    Raises:
        ModelError: see `LayerStack`.
    """

    def __init__(self, model: Any, names: WeightNames, *, device: torch.device, dtype: torch.dtype) -> None:
        self._names = names
        self._device, self._dtype = device, dtype
        self._stack = LayerStack(model)
        first = f"{self._stack.prefix}0."
        keys = names.keys.items()
        self._outside: _Places = {
            name: tuple(_place(model, key) for key in own)
            for name, own in keys
            if not own[0].startswith(self._stack.prefix)
        }
        in_first = {name: own[0].removeprefix(first) for name, own in keys if own[0].startswith(first)}
        name, own_name = next(iter(in_first.items()))
        self._prefix = name.removesuffix(f"0.{own_name}")
        self._number = re.compile(rf"{re.escape(self._prefix)}(\d+)\.")
        self._of_first = {own_name: _place(model, first + own_name) for own_name in in_first.values()}
        self._of_layers: list[_Places] = []
        self._in_use: _Places = self._places(len(model.get_submodule(self._stack.prefix[:-1])))
        self._give_up()

    def load(self, stream: Iterable[tuple[str, Tensor]]) -> None:
        """Make the model the one whose tensors these are, as deep as their names say.

        Raises:
            ModelError: names are missing or unknown, shapes differ, or two tied tensors are not equal.
        """
        self._give_up()
        given = dict(stream)
        numbers = [int(match[1]) for name in given if (match := self._number.match(name))]
        places = self._places(1 + max(numbers, default=0))
        problems = [problem for name in given for problem in self._misfit(name, given, places)]
        problems += [f"{name}: missing from the stream" for name in places if name not in given]
        if problems:
            raise ModelError("weights do not fit the resident model:\n" + "\n".join(problems))
        for name, own in places.items():
            tensor = given[name].to(self._device, self._dtype)
            for place in own:
                place.put(tensor)
        self._in_use = places

    def _places(self, count: int) -> _Places:
        """Of a model of ``count`` layers, which it is from now on."""
        layers = self._stack.resize(count)
        for index in range(len(self._of_layers), count):
            self._of_layers.append(
                {
                    f"{self._prefix}{index}.{name}": (_place_like(first, layers[index], name),)
                    for name, first in self._of_first.items()
                }
            )
        return {
            name: own for group in (self._outside, *self._of_layers[:count]) for name, own in group.items()
        }

    def _give_up(self) -> None:
        """Let go of the last candidate's tensors before the next one's are made."""
        nothing = torch.empty(0, dtype=self._dtype, device=self._device)
        for own in self._in_use.values():
            for place in own:
                place.put(nothing)

    def _misfit(self, name: str, given: Mapping[str, Tensor], places: _Places) -> list[str]:
        shape = tuple(given[name].shape)
        if name in places:
            wanted = places[name][0].shape
            return [] if shape == wanted else [f"{name}: shape {shape}, expected {wanted}"]
        twin = self._names.twins.get(name)
        if twin is None:
            return [] if self._names.is_ignored(name) else [f"{name}: the model has no such tensor"]
        if twin in given and not torch.equal(given[name], given[twin]):
            return [f"{name}: differs from {twin}, but the config ties the two"]
        return []


def _place(model: Any, key: str) -> _Place:
    path, _, name = key.rpartition(".")
    module = model.get_submodule(path)
    return _Place(module=module, name=name, shape=tuple(getattr(module, name).shape))


def _place_like(first: _Place, layer: Any, own_name: str) -> _Place:
    """The place in ``layer`` of what ``first`` is in the first layer."""
    return _Place(module=layer.get_submodule(own_name.rpartition(".")[0]), name=first.name, shape=first.shape)
