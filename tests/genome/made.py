"""Search files made for tests."""

from __future__ import annotations

from genome import SearchFile, Space, parse_search_file
from merge_engine.spec import METHODS, dump_yaml

LAYERS = 7  # no granularity below divides it


def search_file(**genome: object) -> SearchFile:
    """A search over models a, b, c (with the base root where the method needs one), changed by ``genome``."""
    data: dict[str, object] = {"models": ["a", "b", "c"], "merge_method": "ties", **genome}
    method = METHODS[str(data["merge_method"])]
    if method.needs_base and method.max_models is None:
        data.setdefault("base_model", "root")
    return parse_search_file(dump_yaml({"genome": data, "tasks": ["task"]}))


def space(*, num_layers: int = LAYERS, **genome: object) -> Space:
    """The space of `search_file`."""
    return Space.build(search_file(**genome), num_layers, "bfloat16")
