"""The ``tokenizer`` key of a recipe: whose tokens the result has, and where single tokens' rows come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from merge_engine.errors import Problem
from merge_engine.spec.reading import Fields, flag, integer, one_of, text

UNION, BASE = "union", "base"
MOST_PADDED = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroRow:
    """A row of zeros."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """The row of a token of one model: by its text, or by its number. Exactly one of them is given."""

    model: str
    token: str | None = None
    token_id: int | None = None


RowSource = ZeroRow | ModelRow


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRows:
    """Where one token's row comes from in the models that lack it; ``force``: in every model."""

    source: RowSource
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerRecipe:
    """The vocabulary of the result.

    ``source``: ``union`` (the base's tokens, then what the other models have more), ``base``, or a model.
    ``tokens``: exceptions for single tokens; one that no tokenizer has is added. ``pad_to_multiple_of``: of
    the number of rows of the result.
    """

    source: str = UNION
    tokens: Mapping[str, TokenRows] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None

    def model_references(self) -> Iterator[str]:
        """Every model named here; they need not be merged."""
        if self.source not in (UNION, BASE):
            yield self.source
        for entry in self.tokens.values():
            if isinstance(entry.source, ModelRow):
                yield entry.source.model


def read_tokenizer(fields: Fields, problems: list[Problem]) -> TokenizerRecipe:
    """The mapping at ``tokenizer``; what is wrong with it goes to ``problems``."""
    listed = fields.fields("tokens")
    tokens = {name: _token_rows(name, data, listed, problems) for name, data in listed.items()}
    found = TokenizerRecipe(
        source=fields.get("source", text, UNION).removeprefix("model:"),
        tokens=tokens,
        pad_to_multiple_of=fields.get("pad_to_multiple_of", integer(low=1, high=MOST_PADDED), None),
    )
    listed.finish()
    fields.finish()
    return found


def _token_rows(name: str, data: object, listed: Fields, problems: list[Problem]) -> TokenRows:
    fields = Fields(data, listed.path(name), problems)
    found = TokenRows(source=_row_source(name, fields, problems), force=fields.get("force", flag, False))
    fields.finish()
    return found


def _row_source(name: str, fields: Fields, problems: list[Problem]) -> RowSource:
    source = fields.raw("source")
    if source is None:
        fields.refuse("source", "missing", "name a model, or give {kind: zero} or {kind: model_token, ...}")
        return ZeroRow()
    if isinstance(source, str):
        return ModelRow(model=source, token=name)
    inner = fields.fields("source")
    if inner.need("kind", one_of("zero", "model_token"), "") != "model_token":
        inner.finish()
        return ZeroRow()
    row = ModelRow(
        model=inner.need("model", text, ""),
        token=inner.get("token", text, None),
        token_id=inner.get("token_id", integer(low=0), None),
    )
    if (row.token is None) == (row.token_id is None):
        inner.refuse("", "expected either token or token_id", "name the row by its text or by its number")
    inner.finish()
    return row


def tokenizer_data(recipe: TokenizerRecipe) -> dict[str, object]:
    """The plain data that `read_tokenizer` reads back to the same values."""
    data: dict[str, object] = {"source": recipe.source}
    if recipe.tokens:
        data["tokens"] = {name: _token_data(name, entry) for name, entry in recipe.tokens.items()}
    if recipe.pad_to_multiple_of is not None:
        data["pad_to_multiple_of"] = recipe.pad_to_multiple_of
    return data


def _token_data(name: str, entry: TokenRows) -> dict[str, object]:
    data: dict[str, object] = {"source": _source_data(name, entry.source)}
    return data | ({"force": True} if entry.force else {})


def _source_data(name: str, source: RowSource) -> object:
    if isinstance(source, ZeroRow):
        return {"kind": "zero"}
    if source.token == name:
        return source.model
    place = {"token": source.token} if source.token is not None else {"token_id": source.token_id}
    return {"kind": "model_token", "model": source.model, **place}
