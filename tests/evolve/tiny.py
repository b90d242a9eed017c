"""Tiny random Llama models and lm-eval tasks, made on the spot for tests that run a whole search."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = ("a", "b", "c", "d", "e", "yes", "no", "one", "two", "three", "is", "then", "?", ":")
SOURCES = ("left", "right")


def write_models(folder: Path, *, layers: int = 4) -> None:
    """``base``, ``left`` and ``right``: random weights, one tokenizer."""
    import torch

    config = _config(layers)
    for seed, name in enumerate(("base", *SOURCES)):
        torch.manual_seed(seed)
        _write_model(folder / name, config, _tokenizer())


def write_model(path: Path, *, layers: int = 4, vocabulary: int | None = None, hidden: int = 16) -> None:
    """One more model, which may not fit the others."""
    _write_model(path, _config(layers, vocabulary=vocabulary, hidden=hidden), _tokenizer())


def _config(layers: int, *, vocabulary: int | None = None, hidden: int = 16) -> object:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary or len(WORDS) + 3,
        hidden_size=hidden,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=False,
    )


def _write_model(path: Path, config: object, tokenizer: object) -> None:
    import torch
    from transformers import LlamaForCausalLM

    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)  # type: ignore[attr-defined]


def _tokenizer() -> object:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(("<s>", "</s>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def write_tasks(folder: Path, *, items: int = 24) -> None:
    """``tiny_choice`` (multiple choice) and ``tiny_answer`` (generation), with local data."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = WORDS[:5]
    choice = [
        {"text": f"{letters[i % 5]} {letters[(3 * i) % 5]} ?", "choices": ["yes", "no"], "gold": i % 2}
        for i in range(items)
    ]
    answer = [
        {"text": f"{letters[i % 5]} then {letters[(i + 1) % 5]} is", "gold": letters[i % 5]}
        for i in range(items)
    ]
    _write_task(folder, "tiny_choice", choice, _CHOICE)
    _write_task(folder, "tiny_answer", answer, _ANSWER)


def _write_task(folder: Path, name: str, rows: list[dict[str, object]], body: str) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / f"{name}.yaml").write_text(body.format(name=name, data=json.dumps(str(data))), encoding="utf-8")


_CHOICE = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""

_ANSWER = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{gold}}}}"
generation_kwargs: {{until: ["?"], max_gen_toks: 3, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


def search_text(models: Path, *, candidates: int = 12, extra: str = "") -> str:
    """A search file over the tiny models and tasks."""
    return f"""\
genome:
  models: [{models / "left"}, {models / "right"}]
  merge_method: task_arithmetic
  base_model: {models / "base"}
  layer_granularity: 2
tasks:
  - {{name: tiny_choice}}
  - {{name: tiny_answer, metric: "exact_match,none"}}
holdout: 0.5
budget: {{candidates: {candidates}}}
{extra}"""
