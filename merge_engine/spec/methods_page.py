"""The table of merge methods as Markdown, for docs/methods.md.

``python -m merge_engine.spec.methods_page docs/methods.md`` writes it anew between the page's two marks.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from merge_engine.spec.methods import METHODS, Method, Parameter

BEGIN = "<!-- table: python -m merge_engine.spec.methods_page docs/methods.md -->"
END = "<!-- end of table -->"

_HEADINGS = ("method", "what it makes", "parameters", "base model", "other models", "source")


def methods_table(methods: Mapping[str, Method]) -> str:
    """One row for each method."""
    rows = [_HEADINGS, ("---",) * len(_HEADINGS), *map(_row, methods.values())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def with_table(page: str, table: str) -> str:
    """``page`` with ``table`` between its marks. Raises `ValueError` where it has not exactly these two."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"the page needs one line {BEGIN!r} and after it one line {END!r}")
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"


def _row(method: Method) -> tuple[str, ...]:
    parameters = "<br>".join(map(_parameter, method.parameters)) or "none"
    paper = method.paper or "-"
    return f"`{method.name}`", method.help, parameters, method.base, _models(method), paper


def _models(method: Method) -> str:
    low, high = method.min_models, method.max_models
    if high is None:
        return f"{low} or more"
    return str(low) if low == high else f"{low} to {high}"


def _parameter(parameter: Parameter) -> str:
    scope = " of each model" if parameter.scope == "model" else ""
    default = "required" if parameter.default is None else f"default {_shown(parameter.default)}"
    parts = [f"`{parameter.name}`{scope}: {parameter.help}", _range(parameter), default]
    if parameter.search_low is not None and parameter.search_high is not None:
        parts.append(f"searched {_shown(parameter.search_low)} to {_shown(parameter.search_high)}")
    return "; ".join(parts)


def _range(parameter: Parameter) -> str:
    """What is allowed, in words."""
    if parameter.kind == "bool":
        return "true or false"
    kind = "whole number" if parameter.kind == "integer" else "number"
    low, high = parameter.low, parameter.high
    if low is None and high is None:
        return f"any {kind}"
    least = f"{'above' if parameter.low_open else 'from'} {_shown(low)}" if low is not None else ""
    most = f"up to {_shown(high)}" if high is not None else ""
    return " ".join(filter(None, (kind, least, most)))


def _shown(value: float) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def main() -> None:
    """Write the table into the page that the only argument names."""
    page = Path(sys.argv[1])
    page.write_text(with_table(page.read_text(encoding="utf-8"), methods_table(METHODS)), encoding="utf-8")


if __name__ == "__main__":
    main()
