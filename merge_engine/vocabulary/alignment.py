"""From a recipe and its models' tokenizers to the vocabulary of the result and every model's rows in it.

The rules are those of mergekit 0.1.5, found by merging models with constant rows; docs/tokenizers.md lists
where ours differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from merge_engine.checkpoint_header import CheckpointHeader
from merge_engine.errors import CheckpointError, PlanError, Problem
from merge_engine.sources import resolve
from merge_engine.spec.recipe import Recipe
from merge_engine.spec.tokenizer import BASE, UNION, ModelRow, TokenizerRecipe, TokenRows
from merge_engine.vocabulary.row_map import NOT_OWN, PART, RowMap
from merge_engine.vocabulary.tokens import (
    Vocabulary,
    check_token_rows,
    read_vocabulary,
    vocabulary_files,
    vocabulary_rows,
)

_Parts = tuple[tuple[str, int, float], ...]  # model, row, share


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """A token that the result's tokenizer has beyond those of `Alignment.tokenizer`.

    ``model``: whose tokenizer has it (None: none has). ``added``: matched before text is split into words.
    """

    text: str
    model: str | None
    added: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """The vocabulary of the result.

    ``tokenizer``: the model whose tokenizer it is, but for ``new`` tokens, which are numbered on from
    ``first_new``. ``rows``: of embeddings and heads, None where they stay as they are. ``maps``: how each
    model's rows get there, for those where anything changes.
    """

    tokenizer: str
    new: tuple[NewToken, ...] = ()
    first_new: int = 0
    rows: int | None = None
    maps: Mapping[str, RowMap] = field(default_factory=dict)


def align(recipe: Recipe, header_of: Callable[[str], CheckpointHeader]) -> Alignment:
    """What ``tokenizer`` or ``tokenizer_source`` of the recipe ask for.

    Without them, ``truncate_embeddings`` leaves as many rows as the shortest vocabulary has, whatever tokens
    they belong to.

    Raises `PlanError` where a tokenizer cannot be read, or a token's row comes from where there is none.
    """
    merged = recipe.model_references()
    default = recipe.base_model or merged[0]
    wanted = recipe.vocabulary
    if wanted is None:
        return (
            _truncated(recipe, default, header_of)
            if recipe.truncate_embeddings
            else Alignment(tokenizer=default)
        )
    owner = default if wanted.source in (UNION, BASE) else wanted.source
    try:
        folders = {model: header_of(model).folder for model in merged}
        if owner not in folders:
            folders[owner] = resolve(owner)
        rows = {model: vocabulary_rows(header_of(model)) for model in merged}
        if _nothing_to_do(wanted, folders, rows):
            return Alignment(tokenizer=owner)
        for model, count in rows.items():
            check_token_rows(header_of(model), count)
        vocabularies = {model: read_vocabulary(folder) for model, folder in folders.items()}
    except CheckpointError as error:
        raise PlanError([Problem("tokenizer", str(error))]) from error
    return _Resolver(wanted, owner, recipe, vocabularies, rows).alignment()


def _truncated(recipe: Recipe, owner: str, header_of: Callable[[str], CheckpointHeader]) -> Alignment:
    try:
        counts = {model: vocabulary_rows(header_of(model)) for model in recipe.model_references()}
    except CheckpointError as error:
        raise PlanError([Problem("tokenizer", str(error))]) from error
    rows = min(counts.values())
    kept = RowMap(own_R=np.arange(rows), dtype=recipe.dtype)
    maps = {model: kept for model, count in counts.items() if count > rows}
    return Alignment(tokenizer=owner, rows=rows if maps else None, maps=maps)


def _nothing_to_do(wanted: TokenizerRecipe, folders: Mapping[str, Path], rows: Mapping[str, int]) -> bool:
    """Whether all models have the very same tokenizer, and as many rows: told without reading it."""
    if wanted.tokens or wanted.pad_to_multiple_of is not None or len(set(rows.values())) > 1:
        return False
    contents = [vocabulary_files(folder) for folder in folders.values()]
    return bool(contents[0]) and all(content == contents[0] for content in contents)


class _Resolver:
    def __init__(
        self,
        wanted: TokenizerRecipe,
        owner: str,
        recipe: Recipe,
        vocabularies: Mapping[str, Vocabulary],
        rows: Mapping[str, int],
    ) -> None:
        self._wanted = wanted
        self._owner = owner
        self._base = recipe.base_model
        self._dtype = recipe.dtype
        self._vocabularies = vocabularies
        self._rows = rows  # of the merged models
        self._held = {
            model: {token: row for token, row in vocabularies[model].ids.items() if row < count}
            for model, count in rows.items()
        }
        self._unused = {  # rows of a merged model that no token has: gaps and padding
            model: set(range(count)) - set(vocabularies[model].ids.values()) for model, count in rows.items()
        }
        self._listed = self._listed_rows()
        self._found: dict[str, _Parts] = {}

    def alignment(self) -> Alignment:
        known = self._vocabularies[self._owner]
        first_new = known.size
        new = tuple(self._new_tokens(known))
        ids = {**known.ids, **{token.text: first_new + i for i, token in enumerate(new)}}
        tokens = first_new + len(new)
        kept = self._rows.get(self._owner, 0)
        multiple = self._wanted.pad_to_multiple_of
        rows = max(tokens, kept) if multiple is None else -(-tokens // multiple) * multiple
        texts: list[str | None] = [None] * min(rows, max(tokens, kept))
        for token, number in ids.items():
            texts[number] = token
        maps = {model: self._row_map(model, texts, rows) for model in self._rows}
        return Alignment(
            tokenizer=self._owner,
            new=new,
            first_new=first_new,
            rows=rows,
            maps={model: found for model, found in maps.items() if not found.is_identity(self._rows[model])},
        )

    def _new_tokens(self, known: Vocabulary) -> Iterator[NewToken]:
        """In the order of their numbers: words before added tokens, model by model, by their old numbers."""
        found: dict[str, NewToken] = {}
        for model in self._rows if self._wanted.source == UNION else ():
            vocabulary = self._vocabularies[model]
            for token in sorted(vocabulary.ids, key=vocabulary.ids.__getitem__):
                if token not in known.ids:
                    found.setdefault(
                        token, NewToken(text=token, model=model, added=token in vocabulary.added)
                    )
        for token in self._wanted.tokens:
            if token not in known.ids:
                found.setdefault(token, NewToken(text=token, model=None, added=True))
        yield from (token for token in found.values() if not token.added)
        yield from (token for token in found.values() if token.added)

    def _listed_rows(self) -> dict[str, _Parts]:
        """The rows of the tokens that the recipe lists. Raises `PlanError`."""
        problems: list[Problem] = []
        found = {}
        for token, entry in self._wanted.tokens.items():
            try:
                found[token] = self._source(entry)
            except KeyError as error:
                problems.append(Problem(f"tokenizer.tokens.{token}", str(error.args[0])))
        if problems:
            raise PlanError(problems)
        return found

    def _source(self, entry: TokenRows) -> _Parts:
        source = entry.source
        if not isinstance(source, ModelRow):
            return ()
        if source.model not in self._rows:
            raise KeyError(f"{source.model!r} is not merged; known: {', '.join(self._rows)}")
        if source.token_id is not None:
            if source.token_id >= self._rows[source.model]:
                raise KeyError(
                    f"{source.model} has rows 0 to {self._rows[source.model] - 1}, not {source.token_id}"
                )
            return ((source.model, source.token_id, 1.0),)
        row = self._held[source.model].get(source.token or "")
        if row is None:
            raise KeyError(f"{source.model} has no token {source.token!r}")
        return ((source.model, row, 1.0),)

    def _elsewhere(self, token: str) -> _Parts:
        """The row of a token in a model that lacks it: as listed, the base's, or the mean of all."""
        if token in self._listed:
            return self._listed[token]
        if token not in self._found:
            holders = [model for model, held in self._held.items() if token in held]
            if self._base in holders:
                holders = [self._base]
            self._found[token] = tuple(
                (model, self._held[model][token], 1.0 / len(holders)) for model in holders
            )
        return self._found[token]

    def _row_map(self, model: str, texts: Sequence[str | None], rows: int) -> RowMap:
        forced = {token for token, entry in self._wanted.tokens.items() if entry.force}
        held, unused = self._held[model], self._unused[model]
        owners = self._unused.get(self._owner, set())
        own = np.full(rows, NOT_OWN, dtype=np.int64)
        parts: list[tuple[int, str, int, float]] = []
        for row, text in enumerate(texts):
            if text is None:
                if row in unused:
                    own[row] = row
                elif row in owners:
                    parts.append((row, self._owner, row, 1.0))
            elif text in held and text not in forced:
                own[row] = held[text]
            else:
                parts += [(row, *part) for part in self._elsewhere(text)]
        donors = list(dict.fromkeys(donor for _, donor, _, _ in parts))
        numbered = [(row, donors.index(donor), donor_row, share) for row, donor, donor_row, share in parts]
        return RowMap(
            own_R=own,
            donors=tuple(donors),
            parts_P=np.array(numbered, dtype=PART),
            padding=rows - len(texts),
            dtype=self._dtype,
        )
