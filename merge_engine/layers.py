"""Which tensors belong to which layer, read off the checkpoint's names: no table of architectures.

A layer stack is a prefix under which tensors are numbered (``model.layers.<i>.``) from 0 without a gap. A
model may have several: encoder and decoder, vision tower and language model.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from merge_engine.checkpoint_header import CheckpointHeader
from merge_engine.config_layers import layer_counts, main_count, num_extra_layers, shown
from merge_engine.errors import CheckpointError
from merge_engine.tied import repeated_names

_NUMBERED = re.compile(r"(?:^|\.)(\d+)\.")
_BEFORE_LAYERS = re.compile(r"embed|wte|wpe|(^|\.)emb\.|(^|\.)shared\.")
_OTHER_MODALITIES = re.compile(
    r"vision|visual|image|vit\b|video|audio|speech|acoustic|talker|token2wav|sam_model|mtp"
)
# Between the modalities: they belong to neither side, and are merged only where a recipe names them.
_BRIDGES = re.compile(
    r"projector|projection|connector|merger|adapter|resampler|perceiver|aligner|qformer|bridge"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Tensors in numbered layers.

    ``prefix`` is what stands before the number (``model.layers.``), ``first`` the number of the first layer;
    ``layers`` holds, for every layer, the names after the number.
    """

    prefix: str
    first: int
    layers: tuple[tuple[str, ...], ...]

    @property
    def path(self) -> tuple[str, ...]:
        return tuple(self.prefix.split(".")[:-1])

    def name(self, layer: int, suffix: str) -> str:
        return f"{self.prefix}{self.first + layer}.{suffix}"

    def names(self) -> list[str]:
        return [self.name(i, suffix) for i, layer in enumerate(self.layers) for suffix in layer]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNames:
    """The tensor names of a checkpoint, or of a part of it, in the order of its forward pass.

    ``before`` and ``after`` are full names of tensors outside the layers. ``main`` is the stack that a recipe
    means where it speaks of layers without naming a part of the model: that of the language model. None where
    there is no stack, or where an encoder and a decoder have equal rights to it.
    """

    before: tuple[str, ...]
    stacks: tuple[Stack, ...]
    after: tuple[str, ...]
    main: Stack | None

    @property
    def layers(self) -> tuple[tuple[str, ...], ...]:
        """The layers of the main stack."""
        return () if self.main is None else self.main.layers

    def names(self) -> list[str]:
        inside = [name for stack in self.stacks for name in stack.names()]
        return [*self.before, *inside, *self.after]

    def alike(self, stack: Stack) -> Stack | None:
        """The stack that has the place of another model's ``stack``, or None."""
        return next((own for own in self.stacks if _alike(own, stack)), None)

    def beside(self, pattern: LayerNames) -> list[str]:
        """The tensors outside those stacks that ``pattern`` has too."""
        left = [stack for stack in self.stacks if stack is not self.main and pattern.alike(stack) is None]
        return [*self.before, *self.after, *(name for stack in left for name in stack.names())]


def layer_names(header: CheckpointHeader) -> LayerNames:
    """Sort the tensors of a checkpoint into layers.

    A tensor that only repeats one it is tied to is left out. Raises `CheckpointError` where the config names
    a number of layers that the weights do not have.
    """
    repeated = repeated_names(header)
    names = [name for name in header.tensors if name not in repeated]
    stacks = _stacks(names, header)
    main = _main(stacks, header)
    return part_of(names, stacks, main)


def part_of(names: Iterable[str], stacks: Sequence[Stack], main: Stack | None) -> LayerNames:
    """Those of a model's tensors that are in ``names``, with the stacks among them."""
    inside = {name for stack in stacks for name in stack.names()}
    outside = sorted(name for name in names if name not in inside)
    return LayerNames(
        before=tuple(name for name in outside if _BEFORE_LAYERS.search(name)),
        stacks=tuple(sorted(stacks, key=lambda stack: _forward_order(stack, main))),
        after=tuple(name for name in outside if not _BEFORE_LAYERS.search(name)),
        main=main,
    )


def is_language(path: str) -> bool:
    """Whether a tensor or stack of that name is neither of another modality nor a bridge to one."""
    return not _OTHER_MODALITIES.search(path) and not _BRIDGES.search(path)


def is_vision(path: str) -> bool:
    return re.search(r"vision|visual|image|vit\b|sam_model", path) is not None


def is_bridge(path: str) -> bool:
    return _BRIDGES.search(path) is not None


def _alike(a: Stack, b: Stack) -> bool:
    return a.prefix == b.prefix and bool(a.first) == bool(b.first)


def _forward_order(stack: Stack, main: Stack | None) -> tuple[bool, bool, str, int]:
    in_main = main is not None and stack.prefix == main.prefix
    return in_main, "decoder" in stack.path, stack.prefix, stack.first


def _stacks(names: Iterable[str], header: CheckpointHeader) -> list[Stack]:
    """Every stack of two layers or more, and those of one layer of which the config speaks."""
    counts = layer_counts(header.config)
    extra, wanted = num_extra_layers(header.config), main_count(header.config)
    found: list[Stack] = []
    for prefix, layers in _numbered(names).items():
        if sorted(layers) != list(range(len(layers))) or (len(layers) < 2 and len(layers) not in counts):
            continue
        suffixes = [tuple(sorted(layers[i])) for i in range(len(layers))]
        own = len(suffixes) - extra if len(suffixes) - extra == wanted else len(suffixes)
        found.append(Stack(prefix=prefix, first=0, layers=tuple(suffixes[:own])))
        if own < len(suffixes):
            found.append(Stack(prefix=prefix, first=own, layers=tuple(suffixes[own:])))
    return found


def _numbered(names: Iterable[str]) -> Mapping[str, Mapping[int, list[str]]]:
    found: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        match = _NUMBERED.search(name)
        if match:
            found[name[: match.start(1)]][int(match.group(1))].append(name[match.end() :])
    return found


def _main(stacks: Sequence[Stack], header: CheckpointHeader) -> Stack | None:
    candidates = [stack for stack in stacks if not stack.first]
    candidates = [stack for stack in candidates if is_language(stack.prefix)] or candidates
    counts = layer_counts(header.config)
    known = [stack for stack in candidates if len(stack.layers) in counts]
    wanted = main_count(header.config)
    if wanted is not None and not known:
        listed = ", ".join(f"{stack.prefix}* has {len(stack.layers)}" for stack in stacks) or "none"
        raise CheckpointError(
            f"{header.folder}: no tensors numbered as {shown(wanted)} layers; config.json and the weights do "
            f"not belong together (numbered: {listed})"
        )
    if _are_encoder_and_decoder(known):
        return None
    candidates = [stack for stack in known if len(stack.layers) == wanted] or known or candidates
    return max(candidates, key=lambda stack: sum(map(len, stack.layers)), default=None)


def _are_encoder_and_decoder(stacks: Sequence[Stack]) -> bool:
    paths = [stack.path for stack in stacks]
    return any("encoder" in path for path in paths) and any("decoder" in path for path in paths)
