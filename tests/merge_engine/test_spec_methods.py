"""The table of merge methods: complete, consistent, and helpful when asked for what it has not."""

from __future__ import annotations

import pytest

from merge_engine.spec import METHODS, Method
from merge_engine.spec.methods import MethodTable

LINEAR = METHODS["linear"]


def test_every_method_is_listed_under_its_own_name() -> None:
    assert all(METHODS[name].name == name for name in METHODS)
    assert len(METHODS) == len(list(METHODS))


def test_a_name_can_be_given_only_once() -> None:
    with pytest.raises(ValueError, match="two merge methods are named 'linear'"):
        MethodTable(LINEAR, LINEAR)


def test_a_failed_look_up_names_what_is_close_or_else_everything() -> None:
    with pytest.raises(KeyError, match="unknown merge method 'dare_tie': did you mean dare_ties"):
        METHODS["dare_tie"]
    with pytest.raises(KeyError, match="known: linear, slerp, task_arithmetic, ties"):
        METHODS["?"]
    assert METHODS.get("?") is None


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_defaults_and_search_bounds_lie_in_what_is_allowed(method: Method) -> None:
    names = [parameter.name for parameter in method.parameters]
    assert len(set(names)) == len(names)
    for parameter in method.parameters:
        numbers = [parameter.default, parameter.search_low, parameter.search_high]
        for number in (number for number in numbers if number is not None):
            assert parameter.low is None or number >= parameter.low
            assert not (parameter.low_open and number == parameter.low)
            assert parameter.high is None or number <= parameter.high
        assert (parameter.search_low is None) == (parameter.search_high is None)
        if parameter.search_low is not None and parameter.search_high is not None:
            assert parameter.search_low < parameter.search_high
        if parameter.kind == "bool":
            assert isinstance(parameter.default, bool)
            assert parameter.search_low is None


@pytest.mark.parametrize(
    ("method", "normalize"),
    [
        ("linear", True),
        ("ties", True),
        ("task_arithmetic", False),
        ("dare_ties", False),
        ("dare_linear", False),
    ],
)
def test_normalize_has_the_defaults_of_mergekit(method: str, normalize: bool) -> None:
    parameter = METHODS[method].parameter("normalize")
    assert parameter is not None
    assert parameter.default is normalize
