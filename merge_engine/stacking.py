"""Whether the layers of several models can stand in one stack. Light: from headers alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from merge_engine.checkpoint_header import CheckpointHeader
from merge_engine.errors import CheckpointError, Problem
from merge_engine.layers import layer_names

_REMEDY = "any layer must be able to stand anywhere: take models of one architecture, size and kind of layer"


def stacking_problems(headers: Mapping[str, CheckpointHeader], where: str) -> Iterator[Problem]:
    """What keeps any layer of these models from standing anywhere in the stack of the first one."""
    pattern: dict[str, tuple[int, ...]] | None = None
    for i, (reference, header) in enumerate(headers.items()):
        place = f"{where}[{i}]"
        try:
            layers = _layers(header)
        except CheckpointError as error:
            yield Problem(place, str(error))
            continue
        if not layers:
            yield Problem(place, f"{reference} has no stack of layers", _REMEDY)
            continue
        pattern = layers[0] if pattern is None else pattern
        for number, shapes in enumerate(layers):
            if shapes != pattern:
                yield Problem(place, f"layer {number} of {reference} {_difference(shapes, pattern)}", _REMEDY)
                break
        for key, kinds in header.config.items():
            is_list = "layer" in key and isinstance(kinds, list) and len(kinds) == len(layers)
            if is_list and any(kind != kinds[0] for kind in kinds):
                yield Problem(
                    place, f"{reference} has layers of several kinds ({key} in its config)", _REMEDY
                )


def _layers(header: CheckpointHeader) -> list[dict[str, tuple[int, ...]]]:
    """Of each layer the shapes of its tensors."""
    stack = layer_names(header).main
    if stack is None:
        return []
    return [
        {name: header.tensors[stack.name(i, name)].shape for name in names}
        for i, names in enumerate(stack.layers)
    ]


def _difference(shapes: Mapping[str, tuple[int, ...]], pattern: Mapping[str, tuple[int, ...]]) -> str:
    for name in pattern:
        if name not in shapes:
            return f"has no {name}"
        if shapes[name] != pattern[name]:
            return f"has {name} of shape {list(shapes[name])}, the others have {list(pattern[name])}"
    return f"has {next(name for name in shapes if name not in pattern)}, which the others have not"
