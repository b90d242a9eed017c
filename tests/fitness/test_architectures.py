"""Other architectures than llama: the same answers as ``model.generate``, or a refusal by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fitness.errors import ModelError
from fitness.transformers_backend import TransformersBackend
from tests.fitness.conftest import tiny_tokenizer

TASKS = (("tiny_say", "exact_match,whole"), "tiny_pick")
SHARED = {"vocab_size": 46, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = SHARED | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 96,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "GPT2Config": SHARED | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96},
    "Qwen3Config": SMALL,
    "Gemma3TextConfig": SMALL | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
}


def save_model(folder: Path, config: str, settings: dict[str, Any], seed: int = 0) -> Any:
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**settings))
        for parameter in model.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model.eval()


def generated(model: Any, prompt: tuple[int, ...]) -> str:
    ids = torch.tensor([prompt])
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    text = tiny_tokenizer().decode(tokens[0, len(prompt) :], skip_special_tokens=True)
    return str(text).split("\n")[0].split("b")[0]


@pytest.mark.parametrize("config", CONFIGS)
def test_answers_are_those_of_generate_at_any_batch_size(
    config: str, tmp_path: Path, make_suite: Callable[..., Any], weights: Callable[[Path], Any]
) -> None:
    model = save_model(tmp_path, config, CONFIGS[config])
    answers = []
    for batch_size in (1, 16):
        backend = TransformersBackend(tmp_path, make_suite(*TASKS), dtype="float32", batch_size=batch_size)
        backend.load(weights(tmp_path))
        backend.score("search")
        say, pick = backend._suite.tasks.built("search")
        texts = [instance.resps[0] for instance in say.instances]
        assert texts == [generated(model, request.prompt) for request in say.requests]
        answers.append(torch.tensor([instance.resps[0][0] for instance in pick.instances]))
    torch.testing.assert_close(*answers)


def test_names_without_the_base_models_prefix_are_known(
    tmp_path: Path, make_suite: Callable[..., Any], weights: Callable[[Path], Any]
) -> None:
    save_model(tmp_path, "GPT2Config", CONFIGS["GPT2Config"])
    stream = [(name.removeprefix("transformer."), tensor) for name, tensor in weights(tmp_path)]
    backend = TransformersBackend(
        tmp_path,
        make_suite("tiny_pick"),
        dtype="float32",
        batch_size=8,
        checkpoint_names=[name for name, _ in stream],
    )
    backend.load(stream)
    assert "h.0.attn.c_attn.weight" in backend.tensors()


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (
            "MixtralConfig",
            SMALL | {"num_local_experts": 2},
            r"score it with --on-disk:\n  in the checkpoint only: .*experts.0.w1.weight",
        ),
        (
            "MambaConfig",
            SHARED | {"hidden_size": 32, "num_hidden_layers": 1},
            "a running state .* score it with --on-disk",
        ),
    ],
)
def test_what_cannot_be_resident_is_refused(
    config: str, settings: dict[str, Any], message: str, tmp_path: Path, make_suite: Callable[..., Any]
) -> None:
    save_model(tmp_path, config, settings)
    with pytest.raises(ModelError, match=message):
        TransformersBackend(tmp_path, make_suite("tiny_pick"), dtype="float32", batch_size=8)


def test_a_folder_without_a_model_is_refused(tmp_path: Path, make_suite: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match="not a causal language model that transformers can build"):
        TransformersBackend(tmp_path, make_suite("tiny_pick"), dtype="float32", batch_size=8)
