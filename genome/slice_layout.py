"""The ``layout`` of a search file: which layers a model may be put together from, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from merge_engine.errors import Problem
from merge_engine.spec.reading import Fields, Refused, flag, integer, one_of, real, shown, text

Scales: TypeAlias = Literal["none", "layer", "hop"]

DEFAULT_REPEATS = 3  # Akiba et al. 2024, arXiv 2403.13187
DEFAULT_SCALE_BOUNDS = (0.5, 1.5)  # with the usual sigma0, a sixth of the bounds: the paper's step


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutSpec:
    """What may vary.

    ``models``: the first gives embeddings, head, tokenizer and the start. ``repeats``: slots are all layers
    of all models in order, so many times. ``keep_ends``: the first model's first and last layer begin and
    end every path. ``scales``: what scales the hidden state on entering a layer: nothing; one number for each
    layer; one number for each slot, where it is entered from another layer than the one before it in its
    model. ``max_layers``: of a path, slots beyond it do not count; None: twice the first model's.
    ``scale_bounds``: of every scale.
    """

    models: tuple[str, ...]
    repeats: int = DEFAULT_REPEATS
    keep_ends: bool = True
    scales: Scales = "hop"
    max_layers: int | None = None
    scale_bounds: tuple[float, float] = DEFAULT_SCALE_BOUNDS

    @property
    def pattern(self) -> str:
        """The model whose config and tokenizer the result has."""
        return self.models[0]

    def model_references(self) -> tuple[str, ...]:
        """Every model that the search needs, each once."""
        return self.models


def read_layout(fields: Fields, problems: list[Problem]) -> LayoutSpec:
    """The mapping under ``layout``; what is wrong goes to ``problems`` and leaves stand-ins."""
    spec = LayoutSpec(
        models=_models(fields, problems),
        repeats=fields.get("repeats", integer(low=1), DEFAULT_REPEATS),
        keep_ends=fields.get("keep_ends", flag, True),
        scales=fields.get("scales", _scales, "hop"),
        max_layers=fields.get("max_layers", integer(low=1), None),
        scale_bounds=fields.get("scale_bounds", _bounds, DEFAULT_SCALE_BOUNDS),
    )
    if spec.scales == "none" and fields.has("scale_bounds"):
        fields.refuse("scale_bounds", "has no effect: nothing is scaled", "drop it, or set scales to hop")
    fields.finish()
    return spec


def layout_data(spec: LayoutSpec) -> dict[str, object]:
    """Plain data for YAML that `read_layout` reads back as ``spec``."""
    return {
        "models": list(spec.models),
        "repeats": spec.repeats,
        "keep_ends": spec.keep_ends,
        "scales": spec.scales,
        "max_layers": spec.max_layers,
        "scale_bounds": None if spec.scales == "none" else list(spec.scale_bounds),
    }


def _models(fields: Fields, problems: list[Problem]) -> tuple[str, ...]:
    models: list[str] = []
    for where, data in fields.entries("models"):
        try:
            model = text(data)
        except Refused as refused:
            problems.append(Problem(where, refused.what, refused.remedy))
            continue
        if model in models:
            problems.append(Problem(where, f"{model!r} is already in the list", "repeats lists layers again"))
        models.append(model)
    if not models:
        fields.refuse("models", "no model is given", "the first one gives embeddings, head and tokenizer")
    return tuple(models) or ("",)


def _scales(value: object) -> Scales:
    if value == "none":  # told apart from null, which counts as absent
        return "none"
    return "layer" if one_of("none", "layer", "hop")(value) == "layer" else "hop"


def _bounds(value: object) -> tuple[float, float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise Refused(f"expected [low, high], found {shown(value)}")
    low, high = (real()(end) for end in value)
    if not low < high:
        raise Refused(f"the low end {low:g} is not below the high end {high:g}")
    if not low <= 1 <= high:
        raise Refused(f"{shown(value)} leaves out 1, where every search starts", "for example [0.5, 1.5]")
    return low, high
