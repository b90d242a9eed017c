"""What a search file makes of a search, in words: its long form, and every variable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from evolve.errors import PreflightError
from evolve.optimisers.choice import describe
from evolve.preflight import read_search_file
from evolve.search_models import as_named, facts_of, named_models, open_models
from genome.box import Kind
from genome.build import build_space, keeps_layers
from genome.errors import RefusedRecipe, SearchFileError
from genome.expand import expanded
from genome.frozen import frozen_search_file
from genome.holes import Choose, Search
from genome.parse import parse_search_file
from genome.search_file import GenomeSpec, SearchFile
from genome.searched import chooses_pairs
from genome.space import Space
from genome.stages import WINNER, Stage, read_stages, with_winners
from genome.template_space import TemplateSpace
from genome.variables import Described, value_at
from merge_engine.errors import Problem, RecipeError
from merge_engine.spec import METHODS, dump_yaml, load_yaml

_HEAD = ("variable", "kind", "values", "start", "feeds")
_LONGEST = 44  # characters of a cell that is one of several in its row


def explain(path: Path) -> str:
    """The search file at ``path``, with its genome as a template where it has one, and its variables.

    Only the headers of the models are read. Raises `PreflightError` with every problem of the file and of
    the models.
    """
    text = read_search_file(path)
    try:
        stages = read_stages(load_yaml(text))
        return _stages_text(stages) if stages else _search_text(_read(text, as_named))
    except (SearchFileError, RecipeError) as error:
        raise PreflightError(path, error.problems) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    search_file: SearchFile
    space: Space


def _read(text: str, locate: Callable[[str], str]) -> _Search:
    """One search; ``locate`` tells where to look for a model."""
    search_file = parse_search_file(text)
    problems: list[Problem] = []
    headers = open_models(named_models(load_yaml(text)), problems, locate)
    facts = facts_of(headers, problems)
    if problems:
        raise SearchFileError(problems)
    return _Search(search_file=search_file, space=build_space(search_file, facts))


def _search_text(search: _Search) -> str:
    count = len(search.space.names)
    found = describe(search.space.kinds, search.search_file.optimizer.name)
    head = f"{count} dimension{'' if count == 1 else 's'}: {found}"
    return (
        "\n\n".join([_long_form(search.search_file).rstrip(), head, "\n".join(_lines(search.space))]) + "\n"
    )


def _stages_text(stages: Sequence[Stage]) -> str:
    """Each stage in turn; a winner is taken to be like the models that it is merged from, where it is."""
    likeness: dict[str, str] = {}
    parts = []

    def locate(reference: str) -> str:
        return str(with_winners(reference, likeness.__getitem__))

    for stage in stages:
        text = dump_yaml(stage.data)
        unknown = [name for name in stage.needs if name not in likeness]
        if unknown:
            form = _long_form(parse_search_file(text)).rstrip()
            parts.append(f"{form}\n\nThe variables depend on the layers of {WINNER}{unknown[0]}.\n")
        else:
            search = _read(text, locate)
            parts.append(_search_text(search))
            if keeps_layers(search.search_file, search.space):
                likeness[stage.name] = locate(search.search_file.genome.pattern)
    titles = [f"# stage {stage.name}" for stage in stages]
    return "\n".join(f"{title}\n{part}" for title, part in zip(titles, parts, strict=True))


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
    chosen = value_at(hole, variable.start)
    start = "the first" if isinstance(hole, Choose) and not hole.plain and not hole.init else _cell(chosen)
    feeds = ", ".join(dict.fromkeys(place.where for place in one.places))
    return variable.name, variable.kind, _values(hole), start, feeds


def _values(hole: Search | Choose) -> str:
    if isinstance(hole, Choose):
        plain = all(isinstance(option, str | bool | int | float) for option in hole.options)
        return _short(" | ".join(map(_cell, hole.options))) if plain else f"{len(hole.options)} alternatives"
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
