"""Models scored from their folders: as resident ones where both can be, and those that only come so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fitness.errors import ModelError, ScoringError
from fitness.quantisation import Bits
from fitness.transformers_backend import TransformersBackend
from fitness.transformers_folders import TransformersFolders
from tests.fitness.conftest import save_tiny_llama, tiny_tokenizer
from tests.fitness.test_architectures import SHARED, SMALL, generated, save_model

TASKS = (("tiny_say", "exact_match,whole"), "tiny_pick")
ALL = (*TASKS, ("tiny_next", "perplexity,none"), ("tiny_text", "bits_per_byte,none"))
TINY = SHARED | {"hidden_size": 32, "num_hidden_layers": 2}
EXPERTS = SMALL | {"num_experts_per_tok": 2, "moe_intermediate_size": 16}

# Fused experts; states in place of keys and values; both.
CONFIGS: dict[str, dict[str, Any]] = {
    "MixtralConfig": SMALL | {"num_local_experts": 4},
    "Qwen3MoeConfig": EXPERTS | {"num_experts": 4},
    "MambaConfig": TINY | {"state_size": 4},
    "Mamba2Config": TINY | {"state_size": 4, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    "RwkvConfig": TINY | {"attention_hidden_size": 32, "intermediate_size": 64, "context_length": 96},
    "RecurrentGemmaConfig": SMALL | {"num_hidden_layers": 3, "num_key_value_heads": 1, "lru_width": 32},
    "JambaConfig": SMALL
    | {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2}
    | {"expert_layer_offset": 1, "num_experts": 2, "mamba_d_state": 4, "mamba_dt_rank": 4},
}


def test_a_folder_scores_as_the_resident_model_item_by_item(
    model_folder: Path,
    other_folder: Path,
    make_suite: Callable[..., Any],
    weights: Callable[[Path], Any],
) -> None:
    suite = make_suite(*ALL, holdout=0.25)
    resident = TransformersBackend(model_folder, suite, dtype="bfloat16", batch_size=16)
    folders = TransformersFolders(model_folder, suite, dtype="bfloat16", batch_size=16)
    assert folders.suite_digest == resident.suite_digest
    for folder in (model_folder, other_folder, model_folder):
        resident.load(weights(folder))
        for split in ("search", "holdout"):
            assert folders.score(folder, split) == resident.score(split)
    assert folders.forward_s > 0


def test_both_take_the_same_batches_when_nobody_says_which(
    model_folder: Path, make_suite: Callable[..., Any]
) -> None:
    roomy, tight = 10**9, 10**5
    for memory_bytes, expected in ((roomy, 512), (tight, 1)):
        scorer = TransformersFolders(
            model_folder, make_suite(*TASKS), dtype="bfloat16", memory_bytes=memory_bytes
        )
        assert scorer.batch_size == expected


@pytest.mark.parametrize("config", CONFIGS)
def test_what_cannot_be_resident_answers_as_generate_at_any_batch_size(
    config: str, tmp_path: Path, make_suite: Callable[..., Any]
) -> None:
    model = save_model(tmp_path, config, CONFIGS[config])
    suite, answers = make_suite(*TASKS, limit=12), []
    for batch_size in (1, 16):
        scorer = TransformersFolders(tmp_path, suite, dtype="float32", batch_size=batch_size)
        scorer.score(tmp_path, "search")
        say, pick = scorer._suite.tasks.built("search")
        texts = [instance.resps[0] for instance in say.instances]
        assert len(set(texts)) > 1
        assert texts == [generated(model, request.prompt) for request in say.requests]
        answers.append(torch.tensor([instance.resps[0][0] for instance in pick.instances]))
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-4)


def test_a_sampling_generation_config_is_not_followed(tmp_path: Path, make_suite: Callable[..., Any]) -> None:
    from transformers import GenerationConfig

    save_model(tmp_path, "MambaConfig", CONFIGS["MambaConfig"])
    scorer = TransformersFolders(tmp_path, make_suite(TASKS[0], limit=8), dtype="float32", batch_size=8)

    def answers() -> list[str]:
        scorer.score(tmp_path, "search")
        (say,) = scorer._suite.tasks.built("search")
        return [instance.resps[0] for instance in say.instances]

    greedy = answers()
    assert len(set(greedy)) > 1
    GenerationConfig(
        do_sample=True,
        temperature=3.0,
        repetition_penalty=5.0,
        eos_token_id=2,
        bos_token_id=1,
        pad_token_id=0,
    ).save_pretrained(tmp_path)
    assert answers() == greedy


def spoilt(folder: Path, spoil: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    tensors = load_file(file)
    spoil(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("config", ["MambaConfig", "MixtralConfig"])
def test_logits_that_are_no_numbers_name_the_task(
    config: str, tmp_path: Path, make_suite: Callable[..., Any]
) -> None:
    save_model(tmp_path, config, CONFIGS[config])
    scorer = TransformersFolders(tmp_path, make_suite(*TASKS), dtype="float32", batch_size=8)
    name = "backbone.norm_f.weight" if config == "MambaConfig" else "model.norm.weight"
    spoilt(tmp_path, lambda tensors: tensors[name].fill_(torch.nan))
    with pytest.raises(ScoringError, match=r"tiny_say.*logits are NaN"):
        scorer.score(tmp_path, "search")


def test_weights_that_are_not_there_are_never_made_up(tmp_path: Path, make_suite: Callable[..., Any]) -> None:
    save_tiny_llama(tmp_path)
    scorer = TransformersFolders(tmp_path, make_suite("tiny_pick"), dtype="float32", batch_size=8)
    spoilt(tmp_path, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(ModelError, match=r"weights are missing or have another shape: model.norm.weight$"):
        scorer.score(tmp_path, "search")
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match=f"transformers cannot load {tmp_path}: "):
        scorer.score(tmp_path, "search")


def test_a_folder_without_a_model_is_refused(tmp_path: Path, make_suite: Callable[..., Any]) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="not a causal language model that transformers can build"):
        TransformersFolders(tmp_path, make_suite("tiny_pick"), dtype="float32", batch_size=8)


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.1), (4, 0.5)])
def test_quantised_weights_score_nearly_the_same_and_every_time(
    bits: Bits, tolerance: float, tmp_path: Path, make_suite: Callable[..., Any]
) -> None:
    pytest.importorskip("bitsandbytes")
    save_tiny_llama(tmp_path, hidden_size=64, intermediate_size=128)
    suite = make_suite(("tiny_text", "bits_per_byte,none"))
    plain = TransformersFolders(tmp_path, suite, dtype="bfloat16", batch_size=8).score(tmp_path, "search")
    scorer = TransformersFolders(tmp_path, suite, dtype="bfloat16", batch_size=8, bits=bits)
    report = scorer.score(tmp_path, "search")
    assert report != plain
    assert report.tasks[0].value == pytest.approx(plain.tasks[0].value, rel=tolerance)
    assert scorer.score(tmp_path, "search") == report


def test_models_that_cannot_be_quantised_say_so(tmp_path: Path, make_suite: Callable[..., Any]) -> None:
    pytest.importorskip("bitsandbytes")
    save_model(tmp_path, "MambaConfig", CONFIGS["MambaConfig"])
    scorer = TransformersFolders(tmp_path, make_suite("tiny_pick"), dtype="bfloat16", batch_size=8, bits=8)
    message = "MambaForCausalLM does not run with 8-bit weights; leave --load-in-8bit out"
    with pytest.raises(ModelError, match=message):
        scorer.score(tmp_path, "search")
