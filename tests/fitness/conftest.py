"""Tiny models and tasks for the fitness room, built once per test session."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.threads import torch_threads

os.environ["HF_HUB_OFFLINE"] = "1"

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789 :=?+\n"


def tiny_tokenizer(chat_template: str | None = None) -> Any:
    """One token per character, after <pad>, <s> and </s>."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *ALPHABET])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=chat_template,
    )


def save_tiny_llama(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A llama of two layers with random fp32 weights, sharp enough that its answers differ."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**settings | changes))
        for parameter in model.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_task(folder: Path, name: str, documents: list[dict[str, Any]], **config: Any) -> None:
    """An lm-eval task on local JSON data."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    base = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(base | config))


def words(rng: random.Random, low: int, high: int) -> str:
    return "".join(rng.choice("abcdefghij") for _ in range(rng.randint(low, high)))


def generation_documents(count: int) -> list[dict[str, Any]]:
    rng = random.Random(1)
    return [{"question": f"{words(rng, 1, 20)}=", "answer": words(rng, 1, 2)} for _ in range(count)]


def choice_documents(count: int) -> list[dict[str, Any]]:
    rng = random.Random(2)
    return [
        {
            "question": f"{words(rng, 1, 20)}:",
            "choices": [words(rng, 1, 4) + str(place) for place in range(3)],
            "gold": rng.randrange(3),
        }
        for _ in range(count)
    ]


EXACT_MATCH = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
ACCURACY = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]


@pytest.fixture(scope="session", autouse=True)
def _datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["HF_DATASETS_CACHE"] = str(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models run a hundred times slower with more threads than idle cores."""
    with torch_threads(1):
        yield


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "a")


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "b", seed=1)


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks of each kind: tiny_say, tiny_pick, tiny_letter, tiny_next, tiny_text; the group tiny_all."""
    folder = tmp_path_factory.mktemp("tasks")
    choices = choice_documents(24)
    write_task(
        folder,
        "tiny_say",
        generation_documents(30),
        output_type="generate_until",
        generation_kwargs={"until": ["\n", "b"], "max_gen_toks": 12, "do_sample": False},
        metric_list=EXACT_MATCH,
        filter_list=[
            {"name": "whole", "filter": [{"function": "take_first"}]},
            {
                "name": "first-letter",
                "filter": [{"function": "regex", "regex_pattern": "([a-z])"}, {"function": "take_first"}],
            },
        ],
    )
    pick = {"output_type": "multiple_choice", "doc_to_target": "gold", "metric_list": ACCURACY}
    write_task(folder, "tiny_pick", choices, doc_to_choice="choices", **pick)
    write_task(folder, "tiny_letter", choices, doc_to_choice=["a", "b", "c"], **pick)
    write_task(
        folder,
        "tiny_next",
        generation_documents(10),
        output_type="loglikelihood",
        metric_list=[{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}],
    )
    write_task(
        folder,
        "tiny_text",
        [{"text": words(random.Random(index), 5, 250)} for index in range(8)],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
    )
    group = {"group": "tiny_all", "task": ["tiny_pick", "tiny_letter"]}
    (folder / "group.yaml").write_text(yaml.safe_dump(group))
    return folder


@pytest.fixture
def make_suite(task_folder: Path) -> Callable[..., Any]:
    """A suite of ``name`` or ``(name, metric)`` or ``(name, metric, weight)`` entries on the tiny tasks."""
    from fitness.suite import SuiteSpec, TaskSpec

    def make(*tasks: str | tuple[Any, ...], **settings: Any) -> SuiteSpec:
        specs = tuple(
            TaskSpec(name=task)
            if isinstance(task, str)
            else TaskSpec(**dict(zip(("name", "metric", "weight"), task, strict=False)))
            for task in tasks
        )
        return SuiteSpec(**{"tasks": specs, "search_paths": (str(task_folder),)} | settings)

    return make


@pytest.fixture
def weights() -> Callable[[Path], list[tuple[str, Any]]]:
    """The stream of a model folder's tensors."""
    from safetensors.torch import load_file

    return lambda folder: list(load_file(folder / "model.safetensors").items())
