"""Small llama-like model folders with random weights, and how far two tensors are apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

_INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def config(*, layers: int = 4, hidden: int = 32, vocabulary: int = 64, **more: object) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocabulary,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        **more,
    }


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    layer = {
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.k_proj.weight": (hidden // 2, hidden),
        "self_attn.v_proj.weight": (hidden // 2, hidden),
        "self_attn.o_proj.weight": (hidden, hidden),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    named: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for i in range(config["num_hidden_layers"]):
        named |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    named["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        named["lm_head.weight"] = (vocabulary, hidden)
    return named


def random_tensors(
    config: Mapping[str, Any],
    seed: int,
    *,
    near: Mapping[str, Tensor] | None = None,
    scale: float = 1.0,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator) * scale for name, shape in shapes(config).items()
    }
    if near is not None:
        tensors = {name: tensor + near[name].float() for name, tensor in tensors.items()}
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def save(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, shards: int = 1) -> Path:
    """A model folder of one or more safetensors files."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = list(tensors)
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[number::shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def family(
    folder: Path, *, sources: str = "abc", dtype: torch.dtype = torch.bfloat16, **more: Any
) -> list[str]:
    """A base and models near it: folders ``base``, ``a``, ``b``, ... as references."""
    settings = config(**more)
    base = random_tensors(settings, 0, dtype=dtype)
    references = [str(save(folder / "base", settings, base, shards=2))]
    for seed, name in enumerate(sources, start=1):
        tensors = random_tensors(settings, seed, near=base, scale=0.3, dtype=dtype)
        references.append(str(save(folder / name, settings, tensors, shards=2)))
    return references


def ulps(a: Tensor, b: Tensor) -> Tensor:
    """How many numbers of the dtype lie between the elements of ``a`` and ``b``."""
    assert a.dtype == b.dtype
    return (_ordered(a) - _ordered(b)).abs()


def _ordered(x: Tensor) -> Tensor:
    integer = x.contiguous().view(_INTEGERS[x.dtype]).to(torch.int64)
    magnitude = integer & (0x7FFF if x.dtype.itemsize == 2 else 0x7FFFFFFF)
    return torch.where(integer < 0, -magnitude, magnitude)
