"""What a search space costs: making it, and going from vectors to recipes and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from genome import ModelFacts, Space, build_space, parse_search_file
from merge_engine.spec import dump_yaml

_MODELS = ("a", "b", "c")
_REPEATS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Processor seconds, the best of several runs. ``first_s``: a vector of a structure not seen before."""

    name: str
    dimensions: int
    build_s: float
    decode_s: float
    first_s: float
    encode_s: float


def measure(dimensions: int) -> Iterator[Timing]:
    """Spaces of about so many dimensions, in several forms."""
    steps = {"merge_method": "ties", "base_model": "base", "models": list(_MODELS), "layer_granularity": 1}
    yield _timing("steps", dimensions, 6, {"genome": steps})
    filtered = {**steps, "filters": ["self_attn", "mlp"]}
    yield _timing("steps with filters", dimensions, 18, {"genome": filtered})
    yield _timing("gradients", dimensions, 6, {"genome": {**steps, "smooth": True}})
    yield _timing("template with choices", dimensions, 6, {"template": _template()})


def _template() -> dict[str, object]:
    hole = {"search": [0.1, 1.0], "every": 1}
    models = [{"model": name, "parameters": {"weight": hole, "density": hole}} for name in _MODELS]
    methods = {"choose": ["ties", "dare_ties", "dare_linear", "breadcrumbs"]}
    return {"merge_method": methods, "base_model": "base", "models": models}


def _timing(name: str, dimensions: int, per_layer: int, form: Mapping[str, object]) -> Timing:
    fact = ModelFacts(
        num_layers=-(-dimensions // per_layer), dtype="bfloat16", model_type="llama", layer_tensors=()
    )
    facts = dict.fromkeys((*_MODELS, "base"), fact)
    search_file = parse_search_file(dump_yaml({**form, "tasks": ["anything"]}))
    spaces: list[Space] = []
    build_s = _best(lambda: spaces.append(build_space(search_file, facts)), 3)
    space = spaces.pop()
    vector = np.random.default_rng(0).uniform(space.lower, space.upper)
    began = time.process_time()
    recipe = space.decode(vector)
    first_s = time.process_time() - began
    return Timing(
        name=name,
        dimensions=len(space.names),
        build_s=build_s,
        decode_s=_best(lambda: space.decode(vector), _REPEATS),
        first_s=first_s,
        encode_s=_best(lambda: space.encode(recipe), 3),
    )


def _best(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)
