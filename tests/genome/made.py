"""Search files made for tests."""

from __future__ import annotations

from genome import ModelFacts, SearchFile, Space, build_space, parse_search_file
from merge_engine.spec import METHODS, dump_yaml

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
