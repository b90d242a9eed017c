"""Random models for benchmarks, and merge configs over them for any method."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from merge_engine.spec.methods import METHODS
from merge_engine.spec.yaml_io import dump_yaml

_HIDDEN, _INTERMEDIATE, _HEADS, _KV_HEADS, _HEAD = 896, 4864, 14, 2, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A Llama of Qwen2-0.5B's measures: 16 layers are 0.37 B parameters, 24 are 0.49 B."""

    layers: int
    vocabulary: int = 151_936

    def config(self) -> dict[str, object]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": _HIDDEN,
            "intermediate_size": _INTERMEDIATE,
            "num_hidden_layers": self.layers,
            "num_attention_heads": _HEADS,
            "num_key_value_heads": _KV_HEADS,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": True,
            "dtype": "bfloat16",
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor names and shapes."""
        queries, keys = _HEADS * _HEAD, _KV_HEADS * _HEAD
        layer: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj.weight": (queries, _HIDDEN),
            "self_attn.k_proj.weight": (keys, _HIDDEN),
            "self_attn.v_proj.weight": (keys, _HIDDEN),
            "self_attn.o_proj.weight": (_HIDDEN, queries),
            "mlp.gate_proj.weight": (_INTERMEDIATE, _HIDDEN),
            "mlp.up_proj.weight": (_INTERMEDIATE, _HIDDEN),
            "mlp.down_proj.weight": (_HIDDEN, _INTERMEDIATE),
            "input_layernorm.weight": (_HIDDEN,),
            "post_attention_layernorm.weight": (_HIDDEN,),
        }
        named = {
            f"model.layers.{i}.{name}": shape for i in range(self.layers) for name, shape in layer.items()
        }
        return {
            "model.embed_tokens.weight": (self.vocabulary, _HIDDEN),
            **named,
            "model.norm.weight": (_HIDDEN,),
        }

    @property
    def parameters(self) -> int:
        return sum(map(math.prod, self.shapes().values()))


def make_models(folder: Path, size: Size, sources: int, *, distinct: int | None = None) -> list[Path]:
    """A random base and ``sources`` models near it, as bfloat16 folders, made once.

    ``distinct``: how many of them are different, None for all; the others are links, to save room.
    """
    folder = folder / f"{size.layers}-layers-{size.vocabulary}"
    models = [folder / "base", *(folder / f"source{i}" for i in range(sources))]
    for seed, model in enumerate(models):
        original = models[1 + (seed - 1) % distinct] if distinct and seed else model
        if model != original:
            model.unlink(missing_ok=True)
            model.symlink_to(original.name, target_is_directory=True)
        elif not (model / "config.json").exists():
            _make_model(model, size, seed)
    return models


def _make_model(path: Path, size: Size, seed: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    base = torch.Generator().manual_seed(0)
    own = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, shape in size.shapes().items():
        weight = torch.randn(shape, generator=base).mul_(0.02)
        if seed:
            weight += torch.randn(shape, generator=own).mul_(0.002)
        tensors[name] = weight.to(torch.bfloat16)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(size.config()))


def recipe_data(method: str, models: Sequence[Path], candidate: int = 0) -> dict[str, object]:
    """A merge of a base and sources, as many as the method takes, with other numbers for each candidate."""
    row = METHODS[method]
    base, *sources = models
    values = {"weight": 0.3, "density": 0.5, "scale": 0.9}
    entries = []
    for i, path in enumerate(sources[: row.max_models]):
        shift = 0.01 * ((7 * i + 3 * candidate) % 20)
        own = {name: round(value + shift, 2) for name, value in values.items() if row.parameter(name)}
        entries.append({"model": str(path), "parameters": own} if own else {"model": str(path)})
    data: dict[str, object] = {"merge_method": method, "dtype": "bfloat16", "models": entries}
    if row.parameter("t"):
        data["parameters"] = {"t": round(0.3 + 0.01 * (candidate % 20), 2)}
    return {**data, "base_model": str(base)} if row.needs_base else data


def read_models(method: str, models: Sequence[Path]) -> list[Path]:
    """The models that `recipe_data` merges."""
    row = METHODS[method]
    return [*models[: int(row.needs_base)], *models[1:][: row.max_models]]


def config_file(folder: Path, method: str, models: Sequence[Path]) -> Path:
    """`recipe_data` as a merge config."""
    file = folder / f"{method}-{len(models)}.yml"
    file.write_text(dump_yaml(recipe_data(method, models)))
    return file
