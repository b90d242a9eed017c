"""Models that are a few tensors of unlike shapes, merged by us and by the mergekit 0.1.5 wheel."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_engine.engine import Engine
from merge_engine.spec.recipe import parse_recipe
from tests.merge_engine import toy

if importlib.util.find_spec("mergekit") is None:
    pytest.skip("mergekit is not installed", allow_module_level=True)

Tensors = dict[str, Tensor]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
STORED = {
    "one": (torch.bfloat16,) * 4,
    "mixed": (torch.float32, torch.float16, torch.bfloat16, torch.float32),
}
SHAPES = {
    "matrix": (48, 40),
    "vector": (777,),
    "cube": (3, 11, 8),
    "one": (1,),
    "column": (30, 1),
    "empty": (0, 4),
    "long": (520, 256),  # more than one call's worth of elements, where rows count
}


def random_tensors(seed: int, scale: float) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * scale for name, shape in SHAPES.items()}


def few_magnitudes(seed: int) -> Tensors:
    """Zeros, exact opposites, equal magnitudes, large and small numbers."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.tensor([0.0, 0.0, 0.5, -0.5, 0.25, 2.0, -2.0, 2.0**-12, 96.0])
    return {
        name: steps[torch.randint(len(steps), shape, generator=generator)] for name, shape in SHAPES.items()
    }


def added(tensors: Tensors, delta: Tensors) -> Tensors:
    return {name: tensor + delta[name] for name, tensor in tensors.items()}


def named(tensors: Mapping[str, Tensor]) -> Tensors:
    """As a checkpoint with one layer."""
    return {f"model.layers.0.{name}.weight": tensor for name, tensor in tensors.items()}


class Models:
    """A base and three models, in memory and as folders, stored in dtypes of their own."""

    def __init__(self, folder: Path, tensors: Sequence[Tensors], stored: Sequence[torch.dtype]) -> None:
        self.tensors = [
            {name: tensor.to(dtype) for name, tensor in model.items()}
            for model, dtype in zip(tensors, stored, strict=True)
        ]
        settings = toy.config(layers=1)
        self.folders = [
            str(toy.save(folder / str(i), settings, named(model))) for i, model in enumerate(self.tensors)
        ]

    def ours(
        self, method: str, dtype: str, parameters: Mapping[str, Any], count: int = 3, based: bool = True
    ) -> Tensors:
        """A tuple in ``parameters`` holds one value for each of the first ``count`` models."""
        own = {key: values for key, values in parameters.items() if isinstance(values, tuple)}
        shared = {key: value for key, value in parameters.items() if key not in own}
        base, *sources = self.folders
        models = [
            {"model": source, "parameters": {key: values[i] for key, values in own.items()}}
            for i, source in enumerate(sources[:count])
        ]
        recipe = {"merge_method": method, "models": models, "parameters": shared, "dtype": dtype}
        if based:
            recipe["base_model"] = base
        merged = dict(Engine(compile="never").stream(parse_recipe(recipe)))
        return {name: merged[f"model.layers.0.{name}.weight"] for name in SHAPES}

    def theirs(self, name: str, method: str, dtype: str, parameters: Mapping[str, Any]) -> Tensor:
        """What the wheel makes of all models, base included, as they are stored."""
        tensors = [model[name] for model in self.tensors]
        return wheel(tensors, method, parameters, True, DTYPES[dtype]).to(DTYPES[dtype])

    def inputs(self, name: str, dtype: str, count: int = 3, based: bool = True) -> list[Tensor]:
        """As the merge dtype holds them, the base first if there is one."""
        everything = [model[name].to(DTYPES[dtype]) for model in self.tensors[: count + 1]]
        return everything if based else everything[1:]

    def deltas(self, name: str, dtype: str) -> list[Tensor]:
        """Flat task vectors, as the merge dtype holds them."""
        base, *sources = self.inputs(name, dtype)
        return [(source - base).flatten() for source in sources]


def wheel(
    tensors: Sequence[Tensor], method: str, parameters: Mapping[str, Any], based: bool, dtype: torch.dtype
) -> Tensor:
    """The wheel's merge of single tensors. ramplus_tl gives fp32 whatever is asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the wheel and what it imports: not ours to mend
        from mergekit.merge_methods import merge_tensors

        count = len(tensors) - based
        given = {
            key: list(value[:count]) if isinstance(value, tuple) else value
            for key, value in parameters.items()
        }
        merged: Tensor = merge_tensors(
            list(tensors), method, parameters=given, base_index=0 if based else None, dtype=dtype
        )
    return merged
