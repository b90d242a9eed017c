"""Models of different vocabularies: whose row each token gets, and what the result's tokenizer does."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from merge_engine.checkpoint_header import TensorInfo
from merge_engine.engine import Engine
from merge_engine.errors import CheckpointError, PlanError, RecipeError
from merge_engine.folder import write_model
from merge_engine.spec.recipe import parse_recipe, recipe_data
from merge_engine.vocabulary.alignment import NewToken
from merge_engine.vocabulary.extension import extended
from merge_engine.vocabulary.tokens import has_token_rows
from tests.merge_engine import vocabularies

TOKENS_A = ["<s>", "</s>", "<unk>", "▁", "a", "b", "c", "d", "e", "ab", "▁a"]
UNION = [*TOKENS_A, "f", "ef", "g", "fg", "<x>", "<c>"]
ROWS_OF_B = [2000, 2001, 2002, 2003, 2008, 2007, 2006, 2005, 2004, 2010]  # of "<s>" to "ab"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models ``a``, ``b``, ``c`` with rows 1000, 2000, 4000 and on; ``a5`` and ``b3`` are padded."""
    folder = tmp_path_factory.mktemp("models")
    tokenizers = vocabularies.three()
    for seed, (name, constant) in enumerate({"a": 1000.0, "b": 2000.0, "c": 4000.0}.items()):
        vocabularies.model(folder / name, tokenizers[name], seed, constant=constant)
    vocabularies.model(folder / "a5", tokenizers["a"], 0, constant=1000.0, padding=5)
    vocabularies.model(folder / "b3", tokenizers["b"], 1, constant=2000.0, padding=3)
    return folder


class Merged:
    """The result of a linear merge in which one model has all the weight, so that its rows are seen."""

    def __init__(self, models: Path, out: Path, names: str, seen: str, **keys: Any) -> None:
        def located(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: located(entry) for key, entry in value.items()}
            return str(models / value[1:]) if isinstance(value, str) and value.startswith("@") else value

        entries = [
            {"model": str(models / name), "parameters": {"weight": float(name == seen)}}
            for name in names.split()
        ]
        self.recipe = parse_recipe(
            {"merge_method": "linear", "models": entries, "dtype": "float32", **located(keys)}
        )
        assert parse_recipe(recipe_data(self.recipe)) == self.recipe
        write_model(Engine(compile="never"), self.recipe, out)
        self.tensors = load_file(out / "model.safetensors")
        self.config = json.loads((out / "config.json").read_text())
        self.generation = json.loads((out / "generation_config.json").read_text())
        self.tokenizer = AutoTokenizer.from_pretrained(out)

    @property
    def tokens(self) -> list[str]:
        ids = self.tokenizer.get_vocab()
        assert sorted(ids.values()) == list(range(len(ids)))
        return sorted(ids, key=ids.__getitem__)

    def rows(self, name: str = "model.embed_tokens.weight") -> list[float]:
        tensor = self.tensors[name]
        assert torch.equal(tensor, tensor[:, :1].expand_as(tensor))
        assert len(tensor) == self.config["vocab_size"]
        return [round(value, 2) for value in tensor[:, 0].tolist()]


def test_union_takes_missing_rows_from_the_base(models: Path, tmp_path: Path) -> None:
    merged = Merged(models, tmp_path / "out", "a b c", "b", base_model="@a", tokenizer_source="union")
    assert merged.tokens == UNION
    assert merged.rows() == [*ROWS_OF_B, 1010, 2009, 2011, 4007, 4008, 2012, 4010]
    assert merged.rows("lm_head.weight") == merged.rows()


def test_rows_that_the_base_lacks_too_are_means(models: Path, tmp_path: Path) -> None:
    merged = Merged(models, tmp_path / "out", "a b c", "a", base_model="@a", tokenizer_source="union")
    assert merged.rows()[11:] == [(2009 + 4006) / 2, 2011, 4007, 4008, (2012 + 4009) / 2, 4010]


def test_without_a_base_model_the_first_one_s_tokens_come_first(models: Path, tmp_path: Path) -> None:
    merged = Merged(models, tmp_path / "out", "a b c", "c", tokenizer_source="union")
    assert merged.tokens == UNION
    means = [(1006 + 2006) / 2, (1007 + 2005) / 2, (1008 + 2004) / 2, (1009 + 2010) / 2]
    assert merged.rows()[4:11] == [4004, 4005, *means, 1010]


def test_base_and_model(models: Path, tmp_path: Path) -> None:
    merged = Merged(models, tmp_path / "base", "a b", "b", base_model="@a", tokenizer_source="base")
    assert merged.tokens == TOKENS_A
    assert merged.rows() == [*ROWS_OF_B, 1010]
    merged = Merged(models, tmp_path / "model", "a b c", "a", base_model="@a", tokenizer={"source": "@c"})
    assert merged.tokens == ["<s>", "</s>", "<unk>", "▁", "a", "b", "f", "g", "fg", "<x>", "<c>"]
    assert merged.rows()[4:] == [1004, 1005, (2009 + 4006) / 2, 4007, 4008, (2012 + 4009) / 2, 4010]


def test_a_tokenizer_from_elsewhere_gives_no_rows(models: Path, tmp_path: Path) -> None:
    merged = Merged(models, tmp_path / "out", "a b", "b", base_model="@a", tokenizer_source="@c")
    assert merged.rows()[6:] == [2009, 0, 0, 2012, 0]


def test_rows_of_single_tokens(models: Path, tmp_path: Path) -> None:
    tokens = {
        "g": {"source": {"kind": "zero"}},
        "a": {"source": "@c", "force": True},
        "b": {"source": "@c"},
        "<c>": {"source": {"kind": "model_token", "model": "@a", "token": "e"}},
        "▁a": {"source": {"kind": "model_token", "model": "@c", "token_id": 8}},
        "<new>": {"source": {"kind": "model_token", "model": "@b", "token": "<x>"}},
    }
    merged = Merged(
        models,
        tmp_path / "out",
        "a b c",
        "b",
        base_model="@a",
        tokenizer={"source": "union", "tokens": tokens},
    )
    assert merged.tokens == [*UNION, "<new>"]
    rows = dict(zip(merged.tokens, merged.rows(), strict=True))
    assert [rows[token] for token in tokens] == [0, 4004, 2007, 1008, 4008, 2012]
    assert rows["f"] == 2009
    assert 17 in merged.tokenizer("a<new>b").input_ids


def test_padding_rows_are_kept(models: Path, tmp_path: Path) -> None:
    alone = Merged(models, tmp_path / "alone", "a5", "a5", tokenizer_source="base")
    assert alone.rows() == list(range(1000, 1016))
    both = Merged(models, tmp_path / "both", "a5 b3", "b3", base_model="@a5", tokenizer_source="union")
    assert both.tokens == [*TOKENS_A, "f", "ef", "<x>"]
    assert both.rows()[11:] == [2009, 2011, 2012, 2014, 2015]
    less = Merged(models, tmp_path / "less", "a5 b", "b", base_model="@a5", tokenizer_source="base")
    assert less.rows()[11:] == [1011, 1012, 1013, 1014, 1015]  # b has no rows without a token


def test_padding_to_a_multiple_appends_means(models: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"source": "union", "pad_to_multiple_of": 8}
    merged = Merged(models, tmp_path / "out", "a b", "b", base_model="@a", tokenizer=keys)
    rows = merged.rows()
    assert len(rows) == 16
    assert rows[14:] == [round(sum(rows[:14]) / 14, 2)] * 2


def test_token_numbers_of_configs_follow_the_tokens(models: Path, tmp_path: Path) -> None:
    other = vocabularies.bpe(["q", "▁", "a", "b"], specials=("<pad>", "</s>", "<s>", "<unk>"))
    vocabularies.model(tmp_path / "d", other, 5)
    merged = Merged(
        models, tmp_path / "out", "a b", "b", base_model="@a", tokenizer_source=str(tmp_path / "d")
    )
    assert (merged.config["bos_token_id"], merged.config["eos_token_id"]) == (2, 1)
    assert merged.generation == {"bos_token_id": 2, "eos_token_id": [1]}


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    tokenizers = vocabularies.three()
    for seed, name in enumerate("ab"):
        vocabularies.model(
            tmp_path / name, tokenizers[name], seed, constant=1000.0 * (seed + 1), tie_word_embeddings=True
        )
    merged = Merged(tmp_path, tmp_path / "out", "a b", "b", base_model="@a", tokenizer_source="union")
    assert merged.config["tie_word_embeddings"] is True
    assert "lm_head.weight" not in merged.tensors
    assert merged.rows()[10:] == [1010, 2009, 2011, 2012]


def test_the_result_runs_and_encodes_as_the_base_does(models: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    merged = Merged(models, tmp_path / "out", "a b", "b", base_model="@a", tokenizer_source="union")
    text = "ab cde  abba"
    assert merged.tokenizer(text).input_ids == AutoTokenizer.from_pretrained(models / "a")(text).input_ids
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = merged.tokenizer("ef <x> f", return_tensors="pt").input_ids
    assert loaded(ids).logits.shape == (1, ids.shape[1], 14)


def test_rows_of_models_that_only_give_other_layers(models: Path, tmp_path: Path) -> None:
    """mergekit fills these with zeros: it looks no further than the slice that a tensor belongs to."""
    slices = [{"sources": [{"model": str(models / name), "layer_range": [0, 2]}]} for name in "ab"]
    recipe = parse_recipe({"merge_method": "passthrough", "slices": slices, "tokenizer_source": "union"})
    tensors = dict(Engine(compile="never").stream(recipe))
    assert tensors["model.embed_tokens.weight"][10:, 0].tolist() == [1010, 2009, 2011, 2012]
    assert tensors["lm_head.weight"][10:, 0].tolist() == [1010, 2009, 2011, 2012]


def test_the_same_tokenizer_needs_no_rows(models: Path) -> None:
    entries = [{"model": str(models / name), "parameters": {"weight": 1}} for name in "a"]
    recipe = parse_recipe({"merge_method": "linear", "models": entries, "tokenizer_source": "union"})
    plan = Engine().plan(recipe)
    assert plan.alignment.rows is None
    assert all(source.rows is None for job in plan.jobs for source in job.sources)


def test_the_same_slow_tokenizer_is_copied(models: Path, tmp_path: Path) -> None:
    for name in "ab":
        shutil.copytree(models / "a", tmp_path / name)
        (tmp_path / name / "tokenizer.json").unlink()
        (tmp_path / name / "tokenizer.model").write_bytes(b"pieces")
    entries = [{"model": str(tmp_path / name), "parameters": {"weight": 1}} for name in "ab"]
    recipe = parse_recipe({"merge_method": "linear", "models": entries, "tokenizer_source": "union"})
    write_model(Engine(), recipe, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == b"pieces"
    (tmp_path / "b" / "tokenizer.model").write_bytes(b"others")
    with pytest.raises(PlanError, match=r"no tokenizer\.json \(no tokenizer, or a slow one only\)"):
        Engine().check(recipe)


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ({"tokens": {"g": {"source": "@a"}}}, r"tokenizer\.tokens\.g: .*a has no token 'g'"),
        ({"tokens": {"a": {"source": "@c"}}}, r"tokenizer\.tokens\.a: .*c' is not merged; known: "),
        (
            {"tokens": {"a": {"source": {"kind": "model_token", "model": "@b", "token_id": 13}}}},
            r"tokenizer\.tokens\.a: .*b has rows 0 to 12, not 13",
        ),
        (
            {"source": "@empty"},
            r"empty: no tokenizer\.json \(no tokenizer, or a slow one only\); load it once",
        ),
        ({"source": "@broken"}, r"tokenizer\.json: no tokenizer that can be read"),
        ({"source": "@huge"}, r"tokenizer\.json: token 'a' has a number outside of 0 to 16777215"),
        ({"source": "./nowhere"}, r"tokenizer: \./nowhere: no such folder"),
    ],
)
def test_what_does_not_fit(models: Path, tmp_path: Path, tokenizer: Any, message: str) -> None:
    (models / "empty").mkdir(exist_ok=True)
    for name, number in (("broken", '"one"'), ("huge", "1000000000000")):
        (models / name).mkdir(exist_ok=True)
        (models / name / "tokenizer.json").write_text(f'{{"model": {{"vocab": {{"a": {number}}}}}}}')
    with pytest.raises(PlanError, match=message):
        Merged(models, tmp_path / "out", "a b", "b", base_model="@a", tokenizer=tokenizer)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ({"tokens": {"a": {}}}, r"tokenizer\.tokens\.a\.source: missing"),
        (
            {"tokens": {"a": {"source": "x", "forced": True}}},
            r"tokens\.a\.forced: unknown key .did you mean force",
        ),
        ({"tokens": {"a": {"source": {"kind": "one"}}}}, r"tokens\.a\.source\.kind: unknown value 'one'"),
        (
            {"tokens": {"a": {"source": {"kind": "model_token", "model": "x"}}}},
            r"tokens\.a\.source: expected either token or token_id",
        ),
        ({"pad_to_multiple_of": 0}, r"pad_to_multiple_of: 0 is out of range"),
        ({"sauce": "union"}, r"tokenizer\.sauce: unknown key"),
    ],
)
def test_what_the_recipe_may_not_say(models: Path, tmp_path: Path, tokenizer: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Merged(models, tmp_path / "out", "a b", "b", base_model="@a", tokenizer=tokenizer)


def test_a_tokenizer_that_cannot_be_joined_is_told_before_the_merge(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(models / "b", tmp_path / "b")
    file = tmp_path / "b" / "tokenizer.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"model": data["model"] | {"merges": [1]}}))
    monkeypatch.setattr(Engine, "stream", None)
    entries = [
        {"model": model, "parameters": {"weight": 1}} for model in (str(models / "a"), str(tmp_path / "b"))
    ]
    recipe = parse_recipe({"merge_method": "linear", "models": entries, "tokenizer_source": "union"})
    with pytest.raises(CheckpointError, match=r"one of .* is no tokenizer that can be joined: TypeError"):
        write_model(Engine(), recipe, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_config_that_lies_about_its_vocabulary(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "b", tmp_path / "b")
    file = tmp_path / "b" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": 12}))
    entries = [
        {"model": model, "parameters": {"weight": 1}} for model in (str(models / "a"), str(tmp_path / "b"))
    ]
    recipe = parse_recipe({"merge_method": "linear", "models": entries, "tokenizer_source": "union"})
    with pytest.raises(PlanError, match="vocab_size is 12, but no embeddings have so many rows"):
        Engine().check(recipe)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.embed_tokens.weight", (8, 4), True),
        ("lm_head.weight", (8, 4), True),
        ("cls.predictions.bias", (8,), True),
        ("shared.weight", (8, 4), True),
        ("model.norm.weight", (8,), False),
        ("model.layers.0.mlp.up_proj.weight", (8, 4), False),
        ("transformer.wpe.weight", (8, 4), False),
        ("embeddings.token_type_embeddings.weight", (8, 4), False),
        ("model.embed_tokens.weight", (9, 4), False),
        ("scale", (), False),
    ],
)
def test_tensors_with_a_row_for_each_token(name: str, shape: tuple[int, ...], expected: bool) -> None:
    info = TensorInfo(dtype="F32", shape=shape, file=Path(), begin=0, end=0)
    assert has_token_rows(name, info, 8) is expected


@pytest.mark.parametrize("method", ["linear", "ties", "slerp"])
def test_the_order_in_which_a_model_numbers_its_tokens_does_not_matter(tmp_path: Path, method: str) -> None:
    """And an engine that has merged before gives the same bits."""
    words = [f"w{i}" for i in range(40)]
    straight, mixed = (
        vocabularies.bpe(["▁", *order]) for order in (words, random.Random(1).sample(words, 40))
    )
    for name, tokenizer, seed in (("base", straight, 0), ("one", straight, 1), ("two", mixed, 1)):
        vocabularies.model(tmp_path / name, tokenizer, seed, dtype=torch.bfloat16)
    _renumber(tmp_path / "two", straight.get_vocab(), mixed.get_vocab())
    engine, results = Engine(compile="never"), []
    for name in ("one", "two"):
        recipe: dict[str, Any] = {
            "merge_method": method,
            "base_model": str(tmp_path / "base"),
            "models": [{"model": str(tmp_path / name), "parameters": {"weight": 0.4}}],
            "tokenizer_source": "base",
        }
        if method == "slerp":
            recipe |= {"models": [{"model": str(tmp_path / name)}], "parameters": {"t": 0.3}}
        if method == "ties":
            recipe["models"][0]["parameters"]["density"] = 0.4
        if method == "linear":
            recipe["models"].append({"model": str(tmp_path / "base"), "parameters": {"weight": 1.0}})
        results.append(dict(engine.stream(parse_recipe(recipe))))
        results.append(dict(engine.stream(parse_recipe(recipe))))
    for other in results[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in results[0].items())


def _renumber(folder: Path, old: dict[str, int], new: dict[str, int]) -> None:
    """Give the rows of a model's tokens their new numbers."""
    tensors = load_file(folder / "model.safetensors")
    rows = [old[token] for token in sorted(new, key=new.__getitem__)]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][rows].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_models_whose_rows_differ_in_length_cannot_give_each_other_rows(models: Path, tmp_path: Path) -> None:
    vocabularies.model(tmp_path / "wide", vocabularies.three()["b"], 1, hidden=64)
    slices = [
        {"sources": [{"model": model, "layer_range": [0, 2]}]}
        for model in (str(models / "a"), str(tmp_path / "wide"))
    ]
    recipe = {"merge_method": "passthrough", "slices": slices, "tokenizer_source": "union"}
    with pytest.raises(PlanError, match=r"wide has rows of shape \[64\] for tokens that .*a lacks"):
        Engine().check(parse_recipe(recipe))


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_what_all_encode_alike_the_union_encodes_so(kind: str) -> None:
    from tokenizers import Tokenizer

    draw = random.Random(7)
    words = ["".join(draw.choices("abcde", k=draw.randrange(1, 9))) for _ in range(400)]
    alike = changed = 0
    for seed in range(6):
        mine, other = (vocabularies.trained(kind, 2 * seed + i).backend_tokenizer for i in (0, 1))
        own = mine.get_vocab()
        new = [
            NewToken(text=token, model="other", added=False)
            for token, _ in sorted(other.get_vocab().items(), key=lambda entry: entry[1])
            if token not in own
        ]
        data = extended(
            json.loads(mine.to_str()), new, 1 + max(own.values()), {"other": json.loads(other.to_str())}
        )
        union = Tokenizer.from_str(json.dumps(data))
        assert union.get_vocab() == {
            **own,
            **{token.text: 1 + max(own.values()) + i for i, token in enumerate(new)},
        }
        for word in words:
            tokens = [tokenizer.encode(word).tokens for tokenizer in (mine, other, union)]
            if tokens[0] == tokens[1]:
                assert tokens[2] == tokens[0], word
                alike += 1
            else:
                changed += tokens[2] != tokens[0]
    assert alike > 100
    assert (changed == 0) == (kind == "unigram")  # the others make use of their new tokens


def test_gathered_rows_live_as_long_as_they_are_held(models: Path) -> None:
    import gc
    import weakref

    from merge_engine.plan import make_plan
    from merge_engine.source_tensors import SourceTensors

    sources = SourceTensors()
    entries = [{"model": str(models / name), "parameters": {"weight": 1}} for name in "ab"]
    recipe = parse_recipe({"merge_method": "linear", "models": entries, "tokenizer_source": "union"})
    ref = make_plan(recipe, sources.header).jobs[0].sources[1]
    held = sources.tensor(ref)
    assert sources.tensor(ref) is held
    gone = weakref.ref(held)
    del held
    gc.collect()
    assert gone() is None
