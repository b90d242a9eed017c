"""docs/methods.md holds the table of methods as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from merge_engine.spec import METHODS, Method, Parameter
from merge_engine.spec.methods_page import BEGIN, END, methods_table, with_table

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page, methods_table(METHODS)) == page, f"run {BEGIN.strip('<>!- ').partition(': ')[2]}"


def test_a_row_says_everything_about_a_method() -> None:
    share = Parameter(
        name="share", help="how much", low=0.0, low_open=True, high=1.0, search_low=0.1, search_high=0.9
    )
    steps = Parameter(name="steps", help="how often", kind="integer", scope="global", default=3, low=1)
    fast = Parameter(name="fast", help="hurry", kind="bool", scope="global", default=False)
    method = Method(
        name="blend",
        help="blends",
        paper="A paper",
        base="optional",
        parameters=(share, steps, fast),
        min_models=2,
        max_models=4,
    )
    assert methods_table({"blend": method}).splitlines()[2] == (
        "| `blend` | blends | `share` of each model: how much; number above 0 up to 1; required; "
        "searched 0.1 to 0.9<br>`steps`: how often; whole number from 1; default 3<br>"
        "`fast`: hurry; true or false; default false | optional | 2 to 4 | A paper |"
    )


@pytest.mark.parametrize("page", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}\n{END}\n{BEGIN}\n{END}"])
def test_a_page_without_its_two_marks_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="the page needs one line"):
        with_table(page, "table")
