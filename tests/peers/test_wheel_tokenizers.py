"""Vocabularies brought together by us and by the mergekit 0.1.5 wheel, as a black box, on the same models.

Compared token by token: the wheel numbers new tokens in the order of a set, another one at every start.
Not compared, because ours is meant to differ (docs/tokenizers.md): padding rows of the sources, which the
wheel drops; rows in slices from models outside of them; the base where no ``base_model`` is given, which the
wheel draws; token numbers in configs.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from merge_engine.engine import Engine
from merge_engine.folder import write_model
from merge_engine.spec.recipe import parse_recipe
from merge_engine.vocabulary.chat_templates import BUILT_IN, template_of
from tests.merge_engine import toy, vocabularies

if importlib.util.find_spec("mergekit") is None:
    pytest.skip("mergekit is not installed", allow_module_level=True)

TOKEN_ROWS = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random models ``a``, ``b``, ``c`` in bfloat16, and ``a3`` with three rows of padding."""
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, tokenizer) in enumerate(vocabularies.three().items()):
        vocabularies.model(folder / name, tokenizer, seed, dtype=torch.bfloat16)
    vocabularies.model(folder / "a3", vocabularies.three()["a"], 0, dtype=torch.bfloat16, padding=3)
    return folder


def located(models: Path, data: Any) -> Any:
    """``data`` with folders in place of ``@name``."""
    if isinstance(data, dict):
        return {key: located(models, value) for key, value in data.items()}
    if isinstance(data, list):
        return [located(models, value) for value in data]
    return str(models / data[1:]) if isinstance(data, str) and data.startswith("@") else data


def wheel_merge(data: dict[str, Any], out: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the wheel and what it imports: not ours to mend
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions

        options = MergeOptions(copy_tokenizer=True, quiet=True, write_model_card=False)
        run_merge(MergeConfiguration.model_validate(data), str(out), options=options)


class Side:
    """One side's result."""

    def __init__(self, out: Path) -> None:
        self.tensors: dict[str, Tensor] = {}
        for file in sorted(out.glob("*.safetensors")):
            self.tensors |= load_file(file)
        self.ids: dict[str, int] = AutoTokenizer.from_pretrained(out).get_vocab()

    def rows(self, name: str, tokens: list[str]) -> Tensor:
        return self.tensors[name][[self.ids[token] for token in tokens]]


def both(models: Path, out: Path, data: dict[str, Any]) -> tuple[Side, Side]:
    data = located(models, data)
    wheel_merge(data, out / "theirs")
    write_model(Engine(compile="never"), parse_recipe(data), out / "ours")
    return Side(out / "theirs"), Side(out / "ours")


def same(theirs: Side, ours: Side, *, padded: bool = False) -> None:
    assert set(ours.ids) == set(theirs.ids)
    tokens = sorted(ours.ids)
    for name, tensor in theirs.tensors.items():
        mine = ours.tensors[name]
        if name in TOKEN_ROWS:
            assert padded or mine.shape == tensor.shape
            tensor, mine = theirs.rows(name, tokens), ours.rows(name, tokens)
        assert mine.dtype == tensor.dtype
        assert toy.ulps(mine, tensor).max() <= 1, name


def linear(names: str, dtype: str = "bfloat16", **keys: Any) -> dict[str, Any]:
    weights = {"a": 0.5, "a3": 0.5, "b": 0.25, "c": 0.25}  # exact: no rounding where terms cancel
    entries = [{"model": f"@{name}", "parameters": {"weight": weights[name]}} for name in names.split()]
    return {"merge_method": "linear", "models": entries, "dtype": dtype, **keys}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("source", ["union", "base", "@c"])
def test_union_base_model(models: Path, tmp_path: Path, source: str, dtype: str) -> None:
    theirs, ours = both(models, tmp_path, linear("a b c", dtype, base_model="@a", tokenizer_source=source))
    same(theirs, ours)
    first = {token: number for token, number in theirs.ids.items() if number < 11}
    assert {token: ours.ids[token] for token in first} == first


def test_union_without_a_base(models: Path, tmp_path: Path) -> None:
    same(*both(models, tmp_path, linear("a b c", tokenizer_source="union")))


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_task_vectors(models: Path, tmp_path: Path, method: str) -> None:
    """At densities of 1: what is trimmed where magnitudes tie is settled elsewhere."""
    data = linear("b c", base_model="@a", tokenizer_source="union") | {"merge_method": method}
    same(*both(models, tmp_path, data))


@pytest.mark.parametrize("parameters", [{"t": 0.3}, {"t": 0.3, "embed_slerp": True}])
def test_slerp_with_and_without_embed_slerp(models: Path, tmp_path: Path, parameters: dict[str, Any]) -> None:
    data = {
        "merge_method": "slerp",
        "base_model": "@a",
        "models": [{"model": "@a"}, {"model": "@b"}],
        "parameters": parameters,
        "dtype": "bfloat16",
        "tokenizer_source": "union",
    }
    same(*both(models, tmp_path, data))


def test_rows_of_single_tokens(models: Path, tmp_path: Path) -> None:
    tokens = {
        "g": {"source": {"kind": "zero"}},
        "f": {"source": {"kind": "zero"}},
        "a": {"source": "@c", "force": True},
        "b": {"source": "@c"},
        "<c>": {"source": {"kind": "model_token", "model": "@a", "token": "e"}},
        "<x>": {"source": {"kind": "model_token", "model": "@a", "token": "ab"}, "force": True},
        "▁a": {"source": {"kind": "model_token", "model": "@c", "token_id": 8}},
        "<new>": {"source": {"kind": "model_token", "model": "@b", "token": "<x>"}},
    }
    same(
        *both(
            models,
            tmp_path,
            linear("a b c", base_model="@a", tokenizer={"source": "union", "tokens": tokens}),
        )
    )


def test_padding_to_a_multiple(models: Path, tmp_path: Path) -> None:
    keys = {"source": "union", "pad_to_multiple_of": 32}
    theirs, ours = both(models, tmp_path, linear("a b c", "float32", base_model="@a", tokenizer=keys))
    same(theirs, ours)
    for name in TOKEN_ROWS:
        assert len(ours.tensors[name]) == 32
        assert torch.allclose(ours.tensors[name][17:], theirs.tensors[name][17:], rtol=1e-5, atol=1e-6)


def test_padding_of_the_sources_is_kept_by_us_alone(models: Path, tmp_path: Path) -> None:
    theirs, ours = both(models, tmp_path, linear("a3 b", base_model="@a3", tokenizer_source="base"))
    same(theirs, ours, padded=True)
    assert [len(side.tensors["lm_head.weight"]) for side in (theirs, ours)] == [11, 14]


def test_the_most_frequent_template(tmp_path: Path) -> None:
    for number, template in enumerate(["{{ 'one' }}", "{{ 'two' }}", "{{ 'two' }}"]):
        tokenizer = vocabularies.bpe(vocabularies.LETTERS)
        tokenizer.chat_template = template
        vocabularies.model(tmp_path / f"m{number}", tokenizer, number)
    models = [{"model": f"@m{number}", "parameters": {"weight": 1}} for number in range(3)]
    data = {"merge_method": "linear", "models": models, "dtype": "float32", "chat_template": "auto"}
    both(tmp_path, tmp_path / "out", data)
    assert template_of(tmp_path / "out" / "theirs") == template_of(tmp_path / "out" / "ours") == "{{ 'two' }}"


TALK = [
    {"role": "system", "content": "Be nice."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_templates_by_name(models: Path, tmp_path: Path, name: str) -> None:
    """Up to blanks: the wheel's exaone indents lines, its llama3 ends lines, its alpaca does not."""
    both(models, tmp_path, linear("a", chat_template=name))
    shown = []
    for side in ("theirs", "ours"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / side)
        for talk, prompt in ((TALK, True), (TALK[1:], False), (TALK[:3], False)):
            text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=prompt)
            shown.append("".join(text.split()) if name in ("alpaca", "exaone", "llama3") else text)
    assert shown[:3] == shown[3:]
