"""The slots that paths through layers can take, and which of a vector's coordinates are their genes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from genome.box import Variable
from genome.facts import ModelFacts
from genome.slice_layout import LayoutSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Where a path may go through layer ``layer`` of ``model``.

    ``turn``: which repeat it belongs to. ``use``, ``scale``: coordinates of its genes; None: always on, and
    never scaled.
    """

    model: str
    layer: int
    turn: int
    use: int | None = None
    scale: int | None = None

    def follows(self, other: Slot) -> bool:
        """Whether ``other`` is the layer before this one in its model."""
        return self.model == other.model and self.layer == other.layer + 1

    def __str__(self) -> str:
        return f"{self.model} layer {self.layer}, turn {self.turn}"


def laid_out(spec: LayoutSpec, facts: Mapping[str, ModelFacts]) -> tuple[tuple[Slot, ...], list[Variable]]:
    """All slots in their order, and the variables of their genes: first all that are on or off, then all
    scales.
    """
    slots = _in_order(spec, facts)
    variables: list[Variable] = []
    uses: dict[int, int] = {}
    for i, slot in enumerate(slots):
        if not (spec.keep_ends and i in (0, len(slots) - 1)):
            uses[i] = len(variables)
            start = float(slot.turn == 0 and slot.model == spec.pattern)
            variables.append(Variable(name=f"use {slot}", kind="categorical", low=0, high=1, start=start))
    scales: dict[object, int] = {}
    low, high = spec.scale_bounds
    for i, slot in enumerate(slots):
        key = _scale_key(spec, i, slot)
        if key is not None and key not in scales:
            scales[key] = len(variables)
            where = str(slot) if spec.scales == "hop" else f"{slot.model} layer {slot.layer}"
            variables.append(Variable(name=f"scale into {where}", kind="real", low=low, high=high, start=1.0))
    with_genes = (
        replace(slot, use=uses.get(i), scale=scales.get(_scale_key(spec, i, slot)))
        for i, slot in enumerate(slots)
    )
    return tuple(with_genes), variables


def _in_order(spec: LayoutSpec, facts: Mapping[str, ModelFacts]) -> Sequence[Slot]:
    slots = [
        Slot(model=model, layer=layer, turn=turn)
        for turn in range(spec.repeats)
        for model in spec.models
        for layer in range(facts[model].num_layers)
    ]
    if spec.keep_ends:
        slots.append(slots.pop(facts[spec.pattern].num_layers - 1))
    return slots


def _scale_key(spec: LayoutSpec, index: int, slot: Slot) -> object:
    """What shares one scale gene; None for a slot without."""
    if spec.scales == "layer":
        return slot.model, slot.layer
    return index if spec.scales == "hop" and index > 0 else None  # nothing jumps to the first slot
