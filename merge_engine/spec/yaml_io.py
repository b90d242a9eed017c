"""YAML in and out: a safe loader that refuses what is ambiguous or hostile, and a plain dumper."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from merge_engine.errors import Problem, RecipeError

MAX_CHARACTERS = 8_000_000
MAX_NODES = 250_000  # after aliases are expanded; some hundred times a recipe of many layers
MAX_DEPTH = 100

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SafeDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Loader(_SafeLoader):  # type: ignore[misc]
    """The safe loader, which also reads `1e-3` as a number (YAML 1.2) and not as a text (YAML 1.1)."""


class _Dumper(_SafeDumper):  # type: ignore[misc]
    """The safe dumper: no aliases, lists of plain values on one line."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.Node:
        plain = not any(isinstance(entry, list | tuple | dict) for entry in sequence)
        node: yaml.Node = super().represent_sequence(tag, sequence, flow_style=plain and len(sequence) > 0)
        return node


for _yaml_class in (_Loader, _Dumper):  # the dumper must know too, to write a *text* like this in quotes
    _yaml_class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


def load_yaml(text: str) -> object:
    """The plain data of a YAML text of one document; as `load_yaml_documents` otherwise."""
    documents = load_yaml_documents(text)
    if len(documents) > 1:
        raise _error(None, f"{len(documents)} documents (parts between lines of ---), expected one")
    return documents[0] if documents else None


def load_yaml_documents(text: str) -> list[object]:
    """The plain data of each document of a YAML text.

    Only plain values come out (mappings, lists, texts, numbers, booleans, null). Raises `RecipeError`, with
    line and column, for wrong syntax, tags that would build objects, duplicate keys, cycles, deep nesting,
    and texts that have, or that aliases blow up to have, more than `MAX_NODES` entries.
    """
    if len(text) > MAX_CHARACTERS:
        raise _error(None, f"{len(text)} characters are too many for a config: at most {MAX_CHARACTERS}")
    try:
        _check_events(text)
        return list(_load(text))
    except yaml.MarkedYAMLError as error:
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise _error(error.problem_mark or error.context_mark, what) from None
    except yaml.YAMLError as error:
        raise _error(None, str(error)) from None
    except (ValueError, OverflowError, RecursionError) as error:
        raise _error(None, f"a value cannot be read: {error}") from None


def _load(text: str) -> Iterator[object]:
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            _check_size(node)
            _check_keys(node)
            yield loader.construct_document(node)
    finally:
        loader.dispose()


def dump_yaml(data: object) -> str:
    """``data`` as YAML text, keys in their order; floats are written so that they read back exactly."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


def _error(mark: Any, what: str) -> RecipeError:
    where = "YAML" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}"
    return RecipeError([Problem(where, what)])


def _check_events(text: str) -> None:
    """Refuse what is deep or long before nodes are built.

    libyaml builds them recursively, which overflows the C stack, and in ten times the time that this takes.
    """
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise _error(event.start_mark, f"nested more than {MAX_DEPTH} levels deep")
        if count > MAX_NODES:
            raise _error(event.start_mark, f"more than {MAX_NODES} entries")


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _check_size(root: yaml.Node) -> None:
    """Refuse cycles, and graphs that are too large once every alias is a copy."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in open_nodes:
            raise _error(node.start_mark, "an alias (*name) points to a part that contains it")
        open_nodes.add(id(node))
        total = 1 + sum(size(child) for child in _children(node))
        open_nodes.discard(id(node))
        if total > MAX_NODES:
            raise _error(node.start_mark, f"more than {MAX_NODES} entries once aliases are expanded")
        sizes[id(node)] = total
        return total

    size(root)


def _check_keys(root: yaml.Node) -> None:
    """Refuse a key that stands twice in one mapping: the second would silently win."""
    pending, seen = [root], {id(root)}
    problems = []
    while pending:
        node = pending.pop()
        if isinstance(node, yaml.MappingNode):
            problems += _duplicates(node)
        for child in _children(node):
            if id(child) not in seen:
                seen.add(id(child))
                pending.append(child)
    if problems:
        raise RecipeError(sorted(problems, key=lambda problem: problem.where))


def _duplicates(node: yaml.MappingNode) -> list[Problem]:
    first_lines: dict[str, int] = {}
    problems = []
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        line = key.start_mark.line + 1
        if key.value in first_lines:
            what = f"the key {key.value!r} stands twice in one mapping"
            problems.append(Problem(f"line {line}", what, f"it is already in line {first_lines[key.value]}"))
        first_lines.setdefault(key.value, line)
    return problems
