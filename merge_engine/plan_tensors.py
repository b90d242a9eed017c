"""The tensors of a recipe's models: whether they fit together, and in which vocabulary."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from merge_engine.checkpoint_header import CheckpointHeader, TensorInfo
from merge_engine.errors import Problem
from merge_engine.layers import LayerNames
from merge_engine.merge_dtype import EIGHT_BITS, common_dtype, is_real
from merge_engine.plan_types import TensorRef
from merge_engine.tied import missing_heads
from merge_engine.vocabulary.alignment import Alignment
from merge_engine.vocabulary.tokens import has_token_rows, vocabulary_rows

# Computed from the config when a model is built; some files hold them, and nothing hangs on it.
_COMPUTED = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$|attn\.(masked_)?bias$|position_ids$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model of the recipe.

    ``heads``: output heads of other models that are among its ``names`` though it has them not by itself,
    each with the tensor that stands for it.
    """

    header: CheckpointHeader
    names: LayerNames
    heads: Mapping[str, str] = field(default_factory=dict)

    def stored(self, name: str) -> TensorInfo | None:
        """The tensor of that name, or None."""
        return self.header.tensors.get(self.heads.get(name, name))


def with_heads(models: Mapping[str, Model]) -> dict[str, Model]:
    """``models`` where those of tied weights have the heads that others have: their own embeddings."""
    made = dict(models)
    for reference, model in models.items():
        others = [other.header for other in models.values() if other is not model and _has_more(other, model)]
        heads = missing_heads(model.header, others) if others else {}
        if heads:
            names = replace(model.names, after=tuple(sorted({*model.names.after, *heads})))
            made[reference] = replace(model, names=names, heads=heads)
    return made


def _has_more(other: Model, model: Model) -> bool:
    """Whether a model has tensors outside its layers that another one lacks."""
    return not set(other.names.after) <= set(model.names.after)


class ModelTensors:
    """Looks up tensors of the recipe's models; what does not fit goes to ``problems``."""

    def __init__(
        self, models: Mapping[str, Model], alignment: Alignment, problems: list[Problem], *, lenient: bool
    ) -> None:
        self._models = models
        self._alignment = alignment
        self._problems = problems
        self._lenient = lenient

    def names(self, model: str) -> LayerNames:
        return self._models[model].names

    def has_borrowed_heads(self, model: str) -> bool:
        """Whether a model of tied weights has heads only because others have them."""
        return bool(self._models[model].heads)

    def info(self, model: str, name: str) -> TensorInfo:
        info = self._models[model].stored(name)
        assert info is not None, (model, name)
        return info

    def shape(self, model: str, name: str) -> tuple[int, ...]:
        """The shape of a model's tensor once its vocabulary is the result's."""
        info = self.info(model, name)
        rows = self._alignment.rows
        if rows is None or not self._has_token_rows(model, name):
            return info.shape
        return (rows, *info.shape[1:])

    def ref(self, model: str, names: Mapping[str, str]) -> TensorRef:
        """The tensor of a model, in the rows of the result's vocabulary if it has one for each token."""
        name = names[model]
        rows = self._alignment.maps.get(model)
        if rows is None or not self._has_token_rows(model, name):
            return self._ref(model, name)
        donors = tuple(self._ref(donor, names.get(donor, name)) for donor in rows.donors)
        for donor in donors:
            self._check_donor(donor, model, name)
        return replace(self._ref(model, name), rows=rows, donors=donors)

    def _ref(self, model: str, name: str) -> TensorRef:
        return TensorRef(model=model, name=self._models[model].heads.get(name, name))

    def mergeable(self, name: str, names: Mapping[str, str], pattern: str) -> list[str]:
        """The models whose tensors make up the result's ``name``: none where they do not fit.

        A computed tensor that not all have is that of ``pattern`` alone.
        """
        missing = [model for model in names if self._models[model].stored(names[model]) is None]
        if missing and _COMPUTED.search(name) and pattern not in missing:
            return [pattern]
        if missing:
            remedy = "the models must have one architecture (a tied output head counts)"
            self._refuse(name, f"missing in {', '.join(missing)} (as {names[missing[0]]!r})", remedy)
            return []
        shapes = {model: self.shape(model, names[model]) for model in names}
        if len(set(shapes.values())) > 1:
            listed = ", ".join(f"{model} has {list(shape)}" for model, shape in shapes.items())
            self._refuse(name, f"shapes differ: {listed}", self._shape_remedy(shapes))
            return []
        return list(names)

    def merge_dtype(self, names: Mapping[str, str], pattern: str, wanted: str | None) -> str | None:
        """In which dtype the tensors ``names``, by model, are merged; None: that of ``pattern`` is copied.

        ``wanted``: what the recipe says. Integers are copied, and single tensors of one byte for which the
        recipe names no dtype, or whose scales stand beside them.
        """
        stored = {model: self.info(model, name).dtype for model, name in names.items()}
        if not is_real(stored[pattern]):
            return None
        short = [model for model, dtype in stored.items() if dtype in EIGHT_BITS]
        scaled = [model for model in short if "quantization_config" in self._models[model].header.config]
        if short and len(names) == 1 and (wanted is None or scaled):
            return None
        if scaled:
            remedy = "load the model with transformers, dequantize() and save_pretrained() it, and merge that"
            self._refuse(names[scaled[0]], f"{scaled[0]} is quantised: its numbers cannot be merged", remedy)
        elif wanted is None and short:
            remedy = "say in which dtype to merge, for example dtype: bfloat16"
            self._refuse(names[short[0]], f"{short[0]} stores it in one byte ({stored[short[0]]})", remedy)
        elif wanted is None:
            return common_dtype([dtype for dtype in stored.values() if is_real(dtype)])
        return wanted

    def check_none_left(
        self, pattern: str, expected: Iterable[str], found: Mapping[str, Iterable[str]]
    ) -> None:
        """Refuse tensors that only models other than ``pattern`` have: they would vanish from the result.

        ``expected``: names of the pattern, ``found``: by model, in the same terms.
        """
        if self._lenient:
            return
        wanted = set(expected)
        for model, names in found.items():
            for name in names:
                if name not in wanted and not _COMPUTED.search(name):
                    remedy = f"the result takes its tensors from {pattern}; models must have one architecture"
                    self._refuse(name, f"missing in {pattern}, but {model} has it", remedy)

    def _has_token_rows(self, model: str, name: str) -> bool:
        return has_token_rows(name, self.info(model, name), vocabulary_rows(self._models[model].header))

    def _check_donor(self, donor: TensorRef, model: str, name: str) -> None:
        there = self._models[donor.model].header.tensors.get(donor.name)
        wanted = self.info(model, name).shape[1:]
        if there is None or there.shape[1:] != wanted:
            found = "no such tensor" if there is None else f"rows of shape {list(there.shape[1:])}"
            remedy = "models that give each other tokens must have the same embeddings and heads"
            self._refuse(name, f"{donor.model} has {found} for tokens that {model} lacks", remedy)

    def _shape_remedy(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        rows = {model: shape[0] for model, shape in shapes.items() if shape}
        rest = {shape[1:] for shape in shapes.values()}
        vocabularies = {model: self._models[model].header.config.get("vocab_size") for model in shapes}
        if len(rest) == 1 and all(vocabularies[model] == count for model, count in rows.items()):
            return "the vocabularies differ: choose one with tokenizer_source: base, union or a model"
        return "merge models of one architecture and size"

    def _refuse(self, where: str, what: str, remedy: str) -> None:
        self._problems.append(Problem(where, what, remedy))


def architecture_problems(headers: Mapping[str, CheckpointHeader]) -> Iterator[Problem]:
    """Models of other types than the first, where their configs say what they are."""
    first, *others = headers
    for model in others:
        for key in ("architectures", "model_type"):
            kind, wanted = (_stated(headers[name], key) for name in (model, first))
            if kind and wanted:
                if kind != wanted:
                    what = f"it is a {kind}, but {first} a {wanted}"
                    yield Problem(model, what, "merge models of one architecture, or pass --allow-crimes")
                break


def most_telling(problems: list[Problem], limit: int = 20) -> list[Problem]:
    """At most ``limit`` problems: models that do not fit at all would list every tensor."""
    if len(problems) <= limit:
        return list(problems)
    return [*problems[:limit], Problem("...", f"and {len(problems) - limit} more of this kind")]


def _stated(header: CheckpointHeader, key: str) -> str:
    """What a config says its model is; empty where it does not."""
    value = header.config.get(key)
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) else ""
