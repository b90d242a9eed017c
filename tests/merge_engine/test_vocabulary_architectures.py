"""Vocabularies of models that are no decoders of the llama kind: found by shapes, merged, loaded and run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from merge_engine.engine import Engine
from merge_engine.folder import write_model
from merge_engine.spec.recipe import parse_recipe
from tests.merge_engine import vocabularies


def gpt2(tokens: int) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=tokens, n_embd=16, n_layer=2, n_head=2, n_positions=tokens))


def bert(tokens: int) -> Any:
    from transformers import BertConfig, BertForMaskedLM

    settings = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForMaskedLM(BertConfig(vocab_size=tokens, max_position_embeddings=64, **settings))


def t5(tokens: int) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    settings = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 32, "d_kv": 8}
    config = T5Config(vocab_size=tokens, decoder_start_token_id=0, **settings)
    return T5ForConditionalGeneration(config)


def mamba(tokens: int) -> Any:
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(MambaConfig(vocab_size=tokens, hidden_size=16, num_hidden_layers=2, state_size=4))


CASES = {
    "gpt2": (gpt2, "bpe", 1),
    "bert": (bert, "wordpiece", 2),
    "t5": (t5, "unigram", 1),
    "mamba": (mamba, "bpe", 1),
}


@pytest.mark.parametrize("name", CASES)
def test_union(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    build, kind, with_rows = CASES[name]
    ids = []
    for seed, folder in enumerate(("a", "b")):
        torch.manual_seed(seed)
        tokenizer = vocabularies.trained(kind, seed)
        model = build(len(tokenizer))
        model.save_pretrained(tmp_path / folder)
        tokenizer.save_pretrained(tmp_path / folder)
        ids.append(tokenizer.get_vocab())
    rows = len(ids[0] | ids[1])
    assert rows > max(map(len, ids))
    recipe = parse_recipe(
        {
            "merge_method": "linear",
            "base_model": str(tmp_path / "a"),
            "models": [
                {"model": str(tmp_path / name), "parameters": {"weight": weight}}
                for name, weight in (("a", 0.0), ("b", 1.0))
            ],
            "tokenizer_source": "union",
            "dtype": "float32",
        }
    )
    engine = Engine(compile="never")
    jobs = [job for job in engine.plan(recipe).jobs if job.sources[0].rows is not None]
    assert len(jobs) == with_rows, [job.name for job in jobs]
    assert all(job.shape[0] == rows for job in jobs)
    write_model(engine, recipe, tmp_path / "out")
    loaded, notes = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(notes[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), notes
    merged = AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    assert len(merged) == loaded.config.vocab_size == rows
    table, source = loaded.get_input_embeddings().weight, model.get_input_embeddings().weight
    for token, number in ids[1].items():
        assert torch.equal(table[merged[token]], source[number])
