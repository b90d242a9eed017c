"""A journal goes on only with the inputs that it began with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evolve.errors import SearchChangedError
from evolve.replay import check_same_inputs
from tests.evolve.made import run_record

RUN = replace(run_record(), inputs={"model a": "01", "model b": "02", "items of the tasks": "03"})


def test_the_same_inputs_go_on() -> None:
    check_same_inputs(RUN, dict(RUN.inputs))


def test_everything_that_changed_is_named() -> None:
    with pytest.raises(SearchChangedError, match="has changed since it began") as refused:
        check_same_inputs(RUN, {"model a": "01", "items of the tasks": "04"})
    assert refused.value.differences == ("model b: gone", "items of the tasks: changed")
