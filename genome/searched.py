"""What of a merge method a search varies."""

from __future__ import annotations

from collections.abc import Sequence

from merge_engine.spec import Method, Parameter

# Where pairs are chosen, each model has a rank instead of the pair having a `t`. The softmax of two ranks in
# [-4, 4] reaches all but a third of a thousandth of either model.
PREFERENCE = Parameter(
    name="preference", help="rank of a model among those to blend", search_low=-4.0, search_high=4.0
)
_BLENDS = ("slerp",)


def is_pair_method(method: Method) -> bool:
    """Whether the method merges a base with exactly one other model: each merge takes a pair of models."""
    return method.needs_base and method.max_models == 1


def is_blend(method: Method) -> bool:
    """Whether `t` leads from one model to the other: of more than two, a search can choose the pair."""
    return method.name in _BLENDS


def chooses_pairs(method: Method, models: Sequence[str]) -> bool:
    """Whether there are more models than a method that blends two takes at a time."""
    return is_blend(method) and len(models) > 2


def searched_parameters(method: Method, models: Sequence[str]) -> tuple[Parameter, ...]:
    """What a search can vary; parameters without default bounds only where the file gives some."""
    if chooses_pairs(method, models):
        return (PREFERENCE,)
    return method.parameters
