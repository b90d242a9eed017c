"""Which tensors a recipe means by the name of a module.

A name is a path in the checkpoint's names (``decoder``, ``vision_tower``, ``model.visual``), or one that fits
every model: ``default`` (all of it), ``text_decoder`` (the language model), ``vision_tower`` and
``multi_modal_projector``. The module of the language model, or of the decoder, also has what belongs to no
stack: shared embeddings, the output head.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from merge_engine.layers import LayerNames, Stack, is_bridge, is_language, is_vision, part_of

WHOLE = "default"
TEXT = "text_decoder"
VISION = "vision_tower"
PROJECTOR = "multi_modal_projector"

Owners = dict[str, str | None]


def split(names: LayerNames, modules: Sequence[str]) -> tuple[dict[str, LayerNames], LayerNames]:
    """The tensors of each module, and those of none. Where two modules fit, the longer path counts.

    A module that the model does not have has no tensors.
    """
    owners = _owners(names, modules)
    parts = {module: _owned(names, owners, module) for module in modules}
    return parts, _owned(names, owners, None)


def language_part(names: LayerNames) -> tuple[LayerNames, LayerNames]:
    """The main stack with what belongs to it, and the rest of the model."""
    if len({_tower(stack, names) for stack in names.stacks}) <= 1:
        return names, part_of((), (), None)
    parts, rest = split(names, [TEXT])
    return parts[TEXT], rest


def known_modules(names: LayerNames) -> list[str]:
    """Names that a recipe may use for this model's modules, for messages."""
    towers = [".".join(tower) for tower in dict.fromkeys(_tower(stack, names) for stack in names.stacks)]
    return [tower for tower in towers if tower] if len(towers) > 1 else [WHOLE]


def _owned(names: LayerNames, owners: Owners, module: str | None) -> LayerNames:
    stacks = [stack for stack in names.stacks if owners[stack.prefix] == module]
    outside = [name for name in (*names.before, *names.after) if owners[name] == module]
    own_main = names.main if names.main in stacks else max(stacks, key=_size, default=None)
    return part_of([*outside, *(name for stack in stacks for name in stack.names())], stacks, own_main)


def _size(stack: Stack) -> int:
    return sum(map(len, stack.layers))


def _owners(names: LayerNames, modules: Sequence[str]) -> Owners:
    """The module of every stack (by its prefix) and of every tensor outside the stacks."""
    owners: Owners = {}
    for path in _paths(names):
        fits = [(depth, module) for module in modules for depth in _depths(path, module, names)]
        owners[path] = max(fits)[1] if fits else None
    home = _home(names)
    if home is not None and owners[home.prefix] is not None:
        for path in _paths(names):
            if owners[path] is None and _is_homeless(path, names):
                owners[path] = owners[home.prefix]
    return owners


def _paths(names: LayerNames) -> Iterator[str]:
    yield from (stack.prefix for stack in names.stacks)
    yield from (*names.before, *names.after)


def _depths(path: str, module: str, names: LayerNames) -> Iterator[int]:
    """Where in ``path`` the module's name ends, if it holds this path at all."""
    if module == WHOLE:
        yield 0
    match = re.search(rf"(^|\.){re.escape(module)}\.", path)
    if match:
        yield match.end()
    elif module == TEXT and names.main is not None and path.startswith(names.main.prefix):
        yield len(names.main.prefix)
    elif module == VISION and is_vision(path):
        yield 1
    elif module == PROJECTOR and is_bridge(path):
        yield 2


def _home(names: LayerNames) -> Stack | None:
    """The stack whose module has what belongs to no stack: the main one, or the decoder's."""
    decoders = [stack for stack in names.stacks if "decoder" in stack.path and is_language(stack.prefix)]
    return names.main or max(decoders, key=_size, default=None)


def _is_homeless(path: str, names: LayerNames) -> bool:
    """Whether a path is of the language model, but in the tower of no stack other than the home."""
    home = _home(names)
    assert home is not None
    others = [_tower(stack, names) for stack in names.stacks if stack.prefix != home.prefix]
    parts = tuple(path.split("."))
    inside = any(tower and parts[: len(tower)] == tower for tower in others)
    return is_language(path) and not inside


def _tower(stack: Stack, names: LayerNames) -> tuple[str, ...]:
    """The path of a stack down to where it parts from all others."""
    shared = [_common(stack.path, other.path) for other in names.stacks if other.prefix != stack.prefix]
    return stack.path[: max(shared, default=0) + 1]


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count
