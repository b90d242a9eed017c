"""What a search file makes of a search, in words: its long form, and every variable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from evolve.optimisers.choice import describe
from evolve.preflight import PreflightError, read_search_file
from evolve.search_models import model_facts, named_models, open_models
from genome.box import Kind
from genome.build import build_space
from genome.errors import RefusedRecipe, SearchFileError
from genome.expand import expanded
from genome.frozen import frozen_search_file
from genome.holes import Choose, Search
from genome.parse import parse_search_file
from genome.search_file import GenomeSpec, SearchFile
from genome.searched import chooses_pairs
from genome.space import Space
from genome.template_space import TemplateSpace
from genome.variables import Described, value_at
from merge_engine.errors import Problem
from merge_engine.spec import METHODS, dump_yaml, load_yaml

_HEAD = ("variable", "kind", "values", "start", "feeds")
_LONGEST = 44  # characters of a cell that is one of several in its row


def explain(path: Path) -> str:
    """The search file at ``path``, with its genome as a template where it has one, and its variables.

    Only the headers of the models are read. Raises `PreflightError` with every problem of the file and of
    the models.
    """
    text = read_search_file(path)
    problems: list[Problem] = []
    try:
        search_file = parse_search_file(text)
        headers = open_models(named_models(load_yaml(text)), problems)
        if problems:
            raise SearchFileError(problems)
        facts = {reference: model_facts(header) for reference, header in headers.items()}
        space = build_space(search_file, facts)
    except SearchFileError as error:
        raise PreflightError(path, error.problems) from None
    count = len(space.names)
    found = describe(space.kinds, search_file.optimizer.name)
    head = f"{count} dimension{'' if count == 1 else 's'}: {found}"
    return "\n\n".join([_long_form(search_file).rstrip(), head, "\n".join(_lines(space))]) + "\n"


def _long_form(search_file: SearchFile) -> str:
    """What may vary, as YAML: a genome as the template that it is short for."""
    genome = search_file.genome
    if not isinstance(genome, GenomeSpec):
        form = "layout" if "layout" in frozen_search_file(search_file) else "template"
        return dump_yaml({form: frozen_search_file(search_file)[form]})
    if chooses_pairs(METHODS[genome.merge_method], genome.models):
        data = dump_yaml({"genome": frozen_search_file(search_file)["genome"]})
        return f"# No template: each group of layers blends the two models of the largest preference.\n{data}"
    return dump_yaml({"template": expanded(genome)})


def _lines(space: Space) -> Iterator[str]:
    """A table of the variables, and the choices that are refused at the start."""
    if isinstance(space, TemplateSpace):
        rows = [_row(one) for one in space.described]
        notes = list(_refused_choices(space))
    else:
        rows = [_plain_row(space, i) for i in range(len(space.names))]
        notes = []
    widths = [max(len(row[i]) for row in [_HEAD, *rows]) for i in range(len(_HEAD))]
    for row in [_HEAD, *rows]:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    yield from notes


def _row(one: Described) -> tuple[str, ...]:
    variable, hole = one.variable, one.hole
    start = _cell(value_at(hole, variable.start))
    feeds = ", ".join(dict.fromkeys(place.where for place in one.places))
    return variable.name, variable.kind, _values(hole), start, feeds


def _values(hole: Search | Choose) -> str:
    if isinstance(hole, Choose):
        return _short(" | ".join(_cell(option) for option in hole.options))
    low, high = hole.ends()
    if hole.step is not None:
        return f"{low:g}, {low + hole.step:g}, ..., {high:g}" if hole.steps > 1 else f"{low:g}, {high:g}"
    return f"{low:g} to {high:g}" + (", log scale" if hole.log else "")


def _plain_row(space: Space, i: int) -> tuple[str, ...]:
    kind: Kind = space.kinds[i]
    low, high, start = space.lower[i], space.upper[i], space.start[i]
    values = f"0 to {high:g}" if kind == "categorical" else f"{low:g} to {high:g}"
    return space.names[i], kind, values, f"{start:g}", ""


def _cell(value: object) -> str:
    """A value on one line; of a whole part of a recipe, its beginning."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return _short(str(value) if isinstance(value, str | int) else "a part of the recipe")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _refused_choices(space: TemplateSpace) -> Iterator[str]:
    """Alternatives that make no merge while everything else is as at the start."""
    for i, one in enumerate(space.described):
        options: Sequence[object] = one.hole.options if isinstance(one.hole, Choose) else ()
        for number, option in enumerate(options):
            vector = space.start.copy()
            vector[i] = number
            try:
                space.decode(vector)
            except RefusedRecipe as refused:
                yield f"note: {one.variable.name} = {_cell(option)} is refused at the start: {refused}"
