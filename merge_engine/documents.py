"""Several merges in one text, where one names another's result: in which order they run, and where to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from merge_engine.errors import Problem, RecipeError
from merge_engine.new_folder import check_free, told_of
from merge_engine.scratch_folder import scratch_folder
from merge_engine.spec.recipe import Recipe, parse_recipe
from merge_engine.spec.yaml_io import load_yaml_documents

_MOST_DOCUMENTS = 1000
_REFERENCES = ("model", "base_model", "tokenizer_source", "source", "path")  # keys whose texts name models


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One merge of several.

    needs: the names of those whose results it merges, each once. remarks: what of it has no effect.
    """

    where: str
    data: object
    recipe: Recipe
    needs: tuple[str, ...]
    remarks: tuple[Problem, ...] = ()


def read_documents(text: str) -> tuple[Document, ...]:
    """The documents of a YAML text in the order in which they can run, the one for the result last.

    That is the one without a ``name``; where all are named, the one that no other needs. An ``out_path``, by
    which others name a result in older configs, counts as its name. Raises `RecipeError` with the problems of
    all of them.
    """
    data = load_yaml_documents(text) or [None]
    if len(data) > _MOST_DOCUMENTS:
        raise RecipeError([Problem("documents", f"{len(data)} are too many: at most {_MOST_DOCUMENTS}")])
    if len(data) == 1:
        remarks: list[Problem] = []
        recipe = parse_recipe(data[0], remarks)
        return (Document(where="", data=data[0], recipe=recipe, needs=(), remarks=tuple(remarks)),)
    problems: list[Problem] = []
    parsed = [_parse(f"document {i}", entry, problems) for i, entry in enumerate(_named(data), start=1)]
    found = [document for document in parsed if document is not None]
    names = {document.recipe.name for document in found if document.recipe.name is not None}
    documents = [replace(document, needs=_needs(document.recipe, names)) for document in found]
    problems += _name_problems(documents)
    if problems:
        raise RecipeError(problems)
    return _ordered(documents, _last(documents))


def merge_documents(
    text: str, out: Path, write: Callable[[Recipe, Path], None], *, keep: Path | None = None
) -> None:
    """Run the merges of a YAML text, the last one's result into the new folder ``out``.

    ``write`` merges a recipe into a new folder. The other results lie in a hidden folder beside ``out`` and
    go at the end, those of a killed run with the next start (`scratch_folder`); with ``keep`` they are
    written to the folders of their names in there, and stay. Raises `RecipeError` before anything is merged,
    `OutputError` where ``out`` exists, and what ``write`` raises.
    """
    documents = read_documents(text)
    check_free(out)
    if keep is None:
        _check_needed(documents)
    else:
        for document in documents[:-1]:
            check_free(keep / str(document.recipe.name))
    if len(documents) == 1:
        write(documents[0].recipe, out)
        return
    with _place(out, keep) as place:
        folders: dict[str, str] = {}
        for document in documents[:-1]:
            name = str(document.recipe.name)
            write(_with_folders(document, folders), place / name)
            folders[name] = str(place / name)
        write(_with_folders(documents[-1], folders), out)


def _check_needed(documents: Sequence[Document]) -> None:
    needed = {name for document in documents for name in document.needs}
    unneeded = [document for document in documents[:-1] if document.recipe.name not in needed]
    if unneeded:
        remedy = "its result would be thrown away: merge it by itself, or remove it"
        raise RecipeError([Problem(entry.where, "no other needs its result", remedy) for entry in unneeded])


def _named(data: Sequence[object]) -> list[object]:
    """The documents with names in place of paths of results, which are named by their last part."""
    paths = [entry.get("out_path") for entry in data if isinstance(entry, Mapping) and "name" not in entry]
    names = {path: Path(path).name for path in paths if isinstance(path, str) and Path(path).name}
    return [_with_name(_replaced(entry, names), names) for entry in data]


def _with_name(entry: object, names: Mapping[str, str]) -> object:
    if not isinstance(entry, dict) or "name" in entry or entry.get("out_path") not in names:
        return entry
    return {"name": names[entry.pop("out_path")], **entry}


def _parse(where: str, data: object, problems: list[Problem]) -> Document | None:
    remarks: list[Problem] = []
    try:
        recipe = parse_recipe(data, remarks)
    except RecipeError as error:
        problems += _at(where, error.problems)
        return None
    return Document(where=where, data=data, recipe=recipe, needs=(), remarks=tuple(_at(where, remarks)))


def _at(where: str, problems: Sequence[Problem]) -> list[Problem]:
    return [Problem(f"{where}: {problem.where}", problem.what, problem.remedy) for problem in problems]


def _needs(recipe: Recipe, named: set[str]) -> tuple[str, ...]:
    references = list(recipe.model_references())
    if recipe.vocabulary is not None:
        references += recipe.vocabulary.model_references()
    models = (reference.partition("+")[0] for reference in references)
    return tuple(dict.fromkeys(model for model in models if model in named))


def _name_problems(documents: Sequence[Document]) -> Iterator[Problem]:
    first: dict[str | None, str] = {}
    for document in documents:
        name = document.recipe.name
        if name in first:
            what = "has no name either" if name is None else f"is named {name!r} too"
            remedy = "only the one for the result may have none" if name is None else "names must differ"
            yield Problem(document.where, f"{what}, as {first[name]}", remedy)
        elif name is not None and (Path(name).name != name or name in (".", "..") or "+" in name):
            yield Problem(
                f"{document.where}: name", f"{name!r} cannot be a folder's name", "use letters and -"
            )
        first.setdefault(name, document.where)


def _last(documents: Sequence[Document]) -> Document:
    """The document for the result."""
    unnamed = [document for document in documents if document.recipe.name is None]
    needed = {name for document in documents for name in document.needs}
    ends = unnamed or [document for document in documents if document.recipe.name not in needed]
    if len(ends) == 1:
        return ends[0]
    found = ", ".join(str(end.recipe.name) for end in ends) or "none: they need each other in a circle"
    remedy = "leave out the name of the document for the result"
    raise RecipeError(
        [Problem("documents", f"which one is the result? Not needed by others: {found}", remedy)]
    )


def _ordered(documents: Sequence[Document], last: Document) -> tuple[Document, ...]:
    """Each after those that it needs, otherwise as written, and ``last`` at the end."""
    by_name = {document.recipe.name: document for document in documents}
    done: dict[str | None, Document] = {}

    def visit(document: Document, path: tuple[str, ...]) -> None:
        name = str(document.recipe.name)
        if name in path:
            circle = " -> ".join((*path[path.index(name) :], name))
            raise RecipeError([Problem(document.where, f"needs its own result: {circle}")])
        if document.recipe.name not in done:
            for needed in document.needs:
                visit(by_name[needed], (*path, name))
            done[document.recipe.name] = document

    for document in documents:
        if document is not last:
            visit(document, ())
    visit(last, ())
    return tuple(done.values())


@contextmanager
def _place(out: Path, keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        yield keep
        return
    with told_of(out), scratch_folder(out) as place:
        yield place


def _with_folders(document: Document, folders: Mapping[str, str]) -> Recipe:
    return parse_recipe(_replaced(document.data, folders), []) if document.needs else document.recipe


def _replaced(data: object, folders: Mapping[str, str], key: object = None) -> object:
    """``data`` with folders in place of the names of documents, wherever a model is named."""
    if isinstance(data, Mapping):
        return {name: _replaced(value, folders, name) for name, value in data.items()}
    if isinstance(data, list):
        return [_replaced(entry, folders) for entry in data]
    if isinstance(data, str) and key in _REFERENCES:
        model, plus, adapter = data.partition("+")
        return folders.get(model, model) + plus + adapter
    return data
