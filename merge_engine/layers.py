"""Which tensors belong to which layer, read off the checkpoint's names: no table of architectures.

A layer stack is a prefix under which tensors are numbered (``model.layers.<i>.``) from 0 to one less than the
config's layer count.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from merge_engine.checkpoint_header import CheckpointHeader
from merge_engine.errors import CheckpointError

_NUMBERED = re.compile(r"(?:^|\.)(\d+)\.")
_BEFORE_LAYERS = re.compile(r"embed|wte|wpe|(^|\.)emb\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNames:
    """The tensor names of a checkpoint in the order of its forward pass.

    ``prefix`` is what stands before the layer number (``model.layers.``); ``layer`` holds, for every layer,
    the names after the number. ``before`` and ``after`` are full names.
    """

    prefix: str
    before: tuple[str, ...]
    layers: tuple[tuple[str, ...], ...]
    after: tuple[str, ...]

    def name(self, layer: int, suffix: str) -> str:
        return f"{self.prefix}{layer}.{suffix}"


def layer_names(header: CheckpointHeader) -> LayerNames:
    """Sort the tensors of a checkpoint into layers. Raises `CheckpointError` where it has no layers."""
    stacks = _stacks(header.tensors)
    complete = {
        prefix: layers for prefix, layers in stacks.items() if sorted(layers) == list(range(len(layers)))
    }
    if header.num_layers is not None:
        complete = {prefix: layers for prefix, layers in complete.items() if len(layers) == header.num_layers}
    if not complete:
        raise CheckpointError(
            f"{header.folder}: no tensors numbered as {header.num_layers or 'any number of'} layers; "
            f"config.json and the weights do not belong together (numbered prefixes found: {sorted(stacks)})"
        )
    prefix = max(complete, key=lambda name: sum(len(names) for names in complete[name].values()))
    layers = complete[prefix]
    outside = sorted(name for name in header.tensors if not re.match(rf"{re.escape(prefix)}\d+\.", name))
    before = [name for name in outside if _BEFORE_LAYERS.search(name)]
    return LayerNames(
        prefix=prefix,
        before=tuple(before),
        layers=tuple(tuple(sorted(layers[index])) for index in range(len(layers))),
        after=tuple(name for name in outside if name not in before and not _is_tied_head(name, header)),
    )


def _stacks(names: Iterable[str]) -> Mapping[str, Mapping[int, list[str]]]:
    stacks: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        match = _NUMBERED.search(name)
        if match:
            stacks[name[: match.start(1)]][int(match.group(1))].append(name[match.end() :])
    return stacks


def _is_tied_head(name: str, header: CheckpointHeader) -> bool:
    """A head that only repeats the embeddings: some files hold it, and it must be written once."""
    return bool(header.config.get("tie_word_embeddings")) and name == "lm_head.weight"
