"""Models made from the demo's: an adapter of one, and one with another vocabulary."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from demo_models.suites import write_text
from safetensors.torch import load_file, save_file

ADAPTER, REORDERED = "text_lora", "choice_reordered"
RANK = 16
_NEW_WORDS = ("maybe", "never")


def build_variants(demo: Path) -> None:
    """Make both beside the demo models in ``demo``, anew each time."""
    for name, make in ((ADAPTER, make_adapter), (REORDERED, make_reordered)):
        shutil.rmtree(demo / name, ignore_errors=True)
        make(demo, demo / name)


def make_adapter(demo: Path, out: Path) -> None:
    """A LoRA adapter of the base: the best approximation, of rank 16, of what the text expert changed."""
    base, text = (load_file(demo / name / "model.safetensors") for name in ("base", "text"))
    weights = {}
    for name in sorted(base):
        if "_proj." not in name:
            continue
        u, s, v = torch.linalg.svd(text[name].float() - base[name].float(), full_matrices=False)
        root = s[:RANK].sqrt()
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        weights[f"{stem}.lora_A.weight"] = (root[:, None] * v[:RANK]).contiguous()
        weights[f"{stem}.lora_B.weight"] = (u[:, :RANK] * root).contiguous()
    out.mkdir(parents=True)
    save_file(weights, out / "adapter_model.safetensors", metadata={"format": "pt"})
    modules = sorted({name.split(".")[-3] for name in weights})
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": modules, "bias": "none"}
    write_text(out / "adapter_config.json", json.dumps(settings, indent=1))


def make_reordered(demo: Path, out: Path) -> None:
    """The choice expert with its words numbered backwards and two more of them, whose rows are means."""
    shutil.copytree(demo / "choice", out)
    tokenizer = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"] for token in tokenizer["added_tokens"]}
    old = tokenizer["model"]["vocab"]
    words = [word for word in sorted(old, key=old.__getitem__) if word not in special]
    kept = [word for word in sorted(old, key=old.__getitem__) if word in special]
    new = [*kept, *reversed(words), *_NEW_WORDS]
    tokenizer["model"]["vocab"] = {word: number for number, word in enumerate(new)}
    write_text(out / "tokenizer.json", json.dumps(tokenizer, ensure_ascii=False))
    _reorder_rows(out, [old[word] for word in new if word in old])


def _reorder_rows(folder: Path, rows: list[int]) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        mean = tensors[name].float().mean(0, keepdim=True).to(tensors[name].dtype)
        tensors[name] = torch.cat([tensors[name][rows], mean.expand(len(_NEW_WORDS), -1)])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["vocab_size"] = len(rows) + len(_NEW_WORDS)
    write_text(folder / "config.json", json.dumps(config, indent=2))
