"""Scales of the hidden state, absorbed into weights: the same logits as scaling hidden states by hand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_engine.engine import Engine
from merge_engine.folder import write_model
from merge_engine.spec import OutputSlice, Recipe, SliceSource
from merge_engine.spec.residual import RESIDUAL, factor_of, residual_problems, scale_values

os.environ["HF_HUB_OFFLINE"] = "1"

LAYERS = 3
PATH = (0, 1, 1, 2)
SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
VARIANTS: dict[str, list[dict[str, Any]]] = {  # what else a checkpoint of the type may be
    "llama": [{}, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}],
    "mistral": [{"sliding_window": 4}],
    "granite": [{"residual_multiplier": 0.3, "embedding_multiplier": 4.0, "logits_scaling": 2.0}],
    "stablelm": [{}, {"qk_layernorm": True}],
    "gemma": [{"head_dim": 8}],
    "cohere": [{}, {"use_qk_norm": True}],
    "phi": [{}, {"qk_layernorm": True}],
    "gpt_neox": [{}, {"use_parallel_residual": False}],
}
CASES = [
    pytest.param(model_type, changes, id=f"{model_type}-{i}")
    for model_type in RESIDUAL
    for i, changes in enumerate(VARIANTS.get(model_type, [{}]))
]


def save_random_model(folder: Path, model_type: str, changes: dict[str, Any]) -> None:
    """fp32; every weight and bias random, and hidden states large beside the norms' eps."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **{**SMALL, **changes})
    for key in EPSILONS:
        if hasattr(config, key):
            setattr(config, key, 1e-12)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, std=0.3)
            if "norm" in name or "ln_" in name:
                parameter.data += 1.0
            elif "embed" in name or "wte" in name:
                parameter.data *= 30.0
    model.save_pretrained(folder)


def built(source: Path, out: Path, factors: Sequence[float], model_type: str) -> Any:
    """The model of PATH with ``factors`` on the output projections of its layers."""
    from transformers import AutoModelForCausalLM

    slices = []
    for place, (layer, factor) in enumerate(zip(PATH, factors, strict=True)):
        scale = scale_values(RESIDUAL[model_type], factor, last=place == len(PATH) - 1)
        parameters = {"scale": scale} if scale else {}
        piece = SliceSource(model=str(source), layer_range=(layer, layer + 1), parameters=parameters)
        slices.append(OutputSlice(sources=(piece,)))
    recipe = Recipe(merge_method="passthrough", slices=tuple(slices), dtype="float32")
    write_model(Engine(compile="never"), recipe, out)
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(torch.arange(24).reshape(2, 12) + 3, use_cache=False).logits
    return found


def scale_hidden_states(model: Any, scales: Sequence[float]) -> None:
    """Multiply what enters each layer."""
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    layers = next(found for found in lists if len(found) == len(PATH))
    for layer, scale in zip(layers, scales, strict=True):
        layer.register_forward_pre_hook(
            lambda _, args, kwargs, scale=scale: ((args[0] * scale, *args[1:]), kwargs), with_kwargs=True
        )


@pytest.mark.parametrize("scales", [(1.0, 0.5, 1.6, 0.7), (1.3, -0.5, 1.0, 1.4), (-1.0, 2.0, -0.7, 0.9)])
@pytest.mark.parametrize(("model_type", "changes"), CASES)
def test_weights_absorb_the_scales(
    model_type: str, changes: dict[str, Any], scales: tuple[float, ...], tmp_path: Path
) -> None:
    negative = min(scales) < 0
    if negative and not RESIDUAL[model_type].takes_negative:
        pytest.skip("only positive scales are claimed for it")
    save_random_model(tmp_path / "source", model_type, changes)
    plain = built(tmp_path / "source", tmp_path / "plain", [1.0] * len(PATH), model_type)
    unscaled = logits(plain)
    scale_hidden_states(plain, scales)
    factors = (1.0 / torch.tensor(scales, dtype=torch.float64).cumprod(0)).tolist()
    absorbed = logits(built(tmp_path / "source", tmp_path / "absorbed", factors, model_type))
    wanted = logits(plain)
    spread = float(wanted.std())
    assert float((unscaled - wanted).abs().max()) > 0.05 * spread  # the scales matter
    torch.testing.assert_close(absorbed, wanted, rtol=0, atol=2e-4 * spread)


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text", "olmo2", "bert", "glm4", "made_up"])
def test_what_is_not_proven_is_refused_by_name(model_type: str) -> None:
    (problem,) = residual_problems(model_type, ("self_attn.o_proj.weight",), negative=False)
    assert repr(model_type) in problem.what
    assert "scales: none" in problem.remedy


def test_a_sandwich_norm_undoes_what_would_be_absorbed(tmp_path: Path) -> None:
    """Why such architectures are refused: their output projections have no size."""
    save_random_model(tmp_path, "gemma2", {"head_dim": 8})
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    before = logits(model)
    for name, parameter in model.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            parameter.data *= 3.0
    torch.testing.assert_close(logits(model), before, rtol=1e-3, atol=1e-3)


LLAMA_LAYER = (
    "input_layernorm.weight",
    "mlp.down_proj.weight",
    "post_attention_layernorm.weight",
    "self_attn.o_proj.weight",
)


def test_layers_must_have_the_tensors_that_the_table_names() -> None:
    assert residual_problems("llama", LLAMA_LAYER, negative=True) == []
    (problem,) = residual_problems("llama", LLAMA_LAYER[:3], negative=False)
    assert "no tensor named 'self_attn.o_proj'" in problem.what


def test_norms_without_a_sign_take_positive_scales_only() -> None:
    assert residual_problems("gemma", LLAMA_LAYER, negative=False) == []
    (problem,) = residual_problems("gemma", LLAMA_LAYER, negative=True)
    assert problem.where == "layout.scale_bounds"


@pytest.mark.parametrize("factor", [1.0, -1.0, 0.37, -2.5])
def test_the_factor_is_read_back(factor: float) -> None:
    values = scale_values(RESIDUAL["llama"], factor, last=True)
    assert factor_of(values or None) == factor


@pytest.mark.parametrize("scale", [0.5, (0.5, 0.7), ()])
def test_other_scales_have_no_factor(scale: object) -> None:
    assert factor_of(scale) is None
